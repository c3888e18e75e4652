"""Baseline scores of every model, and the items kept for the rest of the audit."""

from typing import Any

from torch import nn

from audits.core import item_sets
from audits.core.answers import free_text, score_question_sets, truth_ratios, utility_of_text
from audits.core.context import ImageRun, Run
from audits.core.preflight import spread
from capture.activations.capture import capture_activations
from capture.activations.loss_gradients import loss_gradients
from capture.checkpoints.weight_change import (
    LossGradients,
    by_component,
    compare_weights,
    update_shapes,
)
from capture.data.items import ItemSet
from capture.data.questions import Questions, build_questions
from capture.data.tokenization import encode, encode_items
from capture.network.sites import find_sites
from capture.scoring.set_validation import swapped_files_error
from evidence.seeds import numpy_rng


def weight_difference(run: Run | ImageRun) -> dict[str, Any]:
    """Size and location of the weight change; fails where architectures differ."""
    change = compare_weights(run.inputs.original, run.inputs.unlearned, run.progress)
    for reference in run.inputs.references:
        compare_weights(run.inputs.original, reference, run.progress)
    # JSON has no infinity, which is the relative change of a tensor of zeros.
    return {
        "relative": min(change.relative, 1e6),
        "layers": [
            {"layer": layer, "relative": min(value, 1e6)} for layer, value in change.layers.items()
        ],
        "tensors_changed": sum(tensor.relative > 0 for tensor in change.tensors),
        "tensors": len(change.tensors),
    }


def score_given_items(run: Run) -> dict[str, Any]:
    """Scores of the original on the main prompt of every given item."""
    questions = {
        "forget": build_questions(run.inputs.forget, 1),
        "retain": build_questions(run.inputs.retain, 1),
    }
    with run.models["original"].loaded(run.device) as model:
        return score_question_sets(model, run.tokenizer, questions, run.progress)


def select_known_items(run: Run, given_scores: dict[str, Any]) -> tuple[ItemSet, ItemSet]:
    """The items that the original answers; retain entities within the budget.

    Raises:
        InputError: the original knows too little of either set.
    """
    given = {"forget": run.inputs.forget, "retain": run.inputs.retain}
    known = {
        name: item_sets.select_known_items(name, items, given_scores[name]["greedy"], run.config)
        for name, items in given.items()
    }
    return known["forget"], item_sets.within_budget(known["retain"], run.config)


def never_taught(run: Run, forget: ItemSet, retain: ItemSet) -> ItemSet:
    """The given never-taught items, or invented ones that mirror the forget set."""
    if run.inputs.never_taught is not None:
        return run.inputs.never_taught
    return item_sets.invent_never_taught(forget, retain, run.config)


def score_baseline(
    run: Run, role: str, forget: ItemSet, retain: ItemSet, never_taught: ItemSet
) -> dict[str, Any]:
    """All output scores of one model, in one loading."""
    budget, tokenizer = run.config.budget, run.tokenizer
    questions = {
        "forget": build_questions(forget, budget.prompts_per_item),
        "never_taught": build_questions(never_taught, budget.prompts_per_item),
    }
    with run.models[role].loaded(run.device) as model:
        scores = score_question_sets(model, tokenizer, questions, run.progress)
        scores["ratios"] = truth_ratios(model, tokenizer, forget, run.progress)
        if not role.startswith("reference"):
            scores["useful"] = _useful(run, model, retain)
    return scores


def _useful(run: Run, model: nn.Module, retain: ItemSet) -> dict[str, Any]:
    """Utility of a model away from the forget set."""
    budget = run.config.budget
    questions: Questions = build_questions(retain, budget.prompts_per_item)
    scores = score_question_sets(model, run.tokenizer, {"retain": questions}, run.progress)
    prompts = [item.prompt for item in retain][: budget.generate_prompts]
    names = find_sites(model).of("resid")
    chosen = [names[len(names) // 4], names[len(names) // 2], names[-1]]
    rows = encode(run.tokenizer, [item.prompt for item in retain][:128])
    states = capture_activations(model, rows, chosen, "last", progress=run.progress)
    return {
        "retain": scores["retain"]["greedy"],
        "general": utility_of_text(model, run.tokenizer, run.progress),
        "prompts": prompts,
        "texts": free_text(model, run.tokenizer, prompts, run.progress),
        "spread": [{"site": name, **spread(states.site(name))} for name in chosen],
    }


def check_swap(questions: dict[str, Questions], baseline_scores: dict[str, Any]) -> None:
    """Refuse item files that the candidate's answers show to be swapped.

    Args:
        questions: ``forget`` and ``retain`` items that the original knows.
        baseline_scores: ``score_baseline`` by role.

    Raises:
        InputError: the candidate kept the forget file and lost the retain file.
    """
    candidate_scores = baseline_scores["unlearned"]
    error = swapped_files_error(
        _kept(questions["forget"], candidate_scores["forget"]["greedy"]),
        _kept(questions["retain"], candidate_scores["useful"]["retain"]),
    )
    if error:
        raise error


def _kept(questions: Questions, greedy: list[int]) -> tuple[int, int]:
    """Number of items, and of those answered after their main prompt."""
    main_prompt_hits = [
        hit for hit, wording in zip(greedy, questions.wording, strict=True) if wording == 0
    ]
    return len(main_prompt_hits), sum(main_prompt_hits)


# Items of each set that the loss gradient is taken over.
N_ITEMS = 16
# For larger models no gradients are taken: two of them would not fit in memory.
MAX_PARAMETERS = 1_000_000_000


def edit_shape(run: Run, forget: ItemSet, retain: ItemSet) -> list[dict[str, Any]]:
    """Weight geometry by component; without gradients where the model is too large."""
    original, unlearned = run.inputs.original, run.inputs.unlearned
    change = compare_weights(original, unlearned, run.progress)
    names = [tensor.name for tensor in change.tensors if tensor.relative > 0]
    if not names:
        return []
    gradients = None
    with run.models["original"].loaded(run.device) as model:
        if sum(p.numel() for p in model.parameters()) <= MAX_PARAMETERS:
            by_set = []
            for name, items in (("forget", forget), ("retain", retain)):
                rng = numpy_rng(run.config.seed, "edit shape", name)
                rows = rng.permutation(len(items))[:N_ITEMS]
                sample = ItemSet(tuple(items.items[row] for row in sorted(rows)))
                encoded = encode_items(run.tokenizer, sample)
                gradients_of_set = loss_gradients(model, encoded, names)
                by_set.append({key: value.cpu() for key, value in gradients_of_set.items()})
            gradients = LossGradients(*by_set)
    return by_component(
        update_shapes(original, unlearned, gradients=gradients, progress=run.progress)
    )
