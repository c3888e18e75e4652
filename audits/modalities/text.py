"""Language models and question-answer items."""

from collections.abc import Mapping

import numpy as np
from torch import nn

from audits.core import item_sets
from audits.core.answers import (
    free_text,
    score_question_sets,
    score_tables,
    truth_ratios,
    utility_of_text,
)
from audits.core.baseline_scores import RoleBaseline, SiteRank, Utility
from audits.core.config import AuditConfig
from audits.core.context import Run
from audits.core.inputs import Inputs, open_inputs
from audits.core.item_sets import TextSets
from audits.core.preflight import effective_rank
from audits.core.roles import Role
from audits.core.scores import Part
from audits.modalities.amounts import text_amounts, text_work
from audits.modalities.base import Modality, Sources
from audits.modalities.edit_shape import edit_shape
from audits.modalities.planting import MORE_STEPS, Planted, plant, wrong_answers
from audits.modalities.vocabulary import FACTS
from audits.output.workspace import StageRunner
from capture.activations.capture import capture_activations
from capture.data.image_files import is_image_source
from capture.data.items import Item
from capture.data.questions import build_questions
from capture.data.tokenization import encode, encode_items
from capture.network.sites import find_sites
from capture.scoring.answers import score_answers
from capture.scoring.set_validation import swapped_files_error
from erasure.unlearning.config import UnlearnConfig
from erasure.unlearning.run import unlearn_
from evidence.progress import Progress
from evidence.seeds import numpy_rng


def open_sources(sources: Sources, config: AuditConfig, progress: Progress) -> Inputs:
    """Open and check the inputs; no model is run."""
    return open_inputs(
        sources.original,
        sources.unlearned,
        sources.forget,
        sources.retain,
        references=sources.references,
        never_taught=sources.never_taught,
        tokenizer=sources.tokenizer,
        config=config,
        progress=progress,
    )


def select(run: Run, stages: StageRunner) -> TextSets:
    """The items that the original answers, and never-taught ones that mirror the forget set.

    Raises:
        InputError: the original knows too little of either set.
    """
    answered = stages.typed("original", dict[Part, tuple[int, ...]], lambda: _answered(run))
    inputs, config = run.inputs, run.config
    forget = item_sets.select_known_items("forget", inputs.forget, answered[Part.FORGET], config)
    retain = item_sets.select_known_items("retain", inputs.retain, answered[Part.RETAIN], config)
    retain = item_sets.within_budget(retain, config)
    never_taught = inputs.never_taught
    if never_taught is None:
        never_taught = item_sets.invent_never_taught(forget, retain, config)
    return TextSets(forget, retain, never_taught)


def _answered(run: Run) -> dict[Part, tuple[int, ...]]:
    """(item,) 1 where the original answers the main prompt, for every given item."""
    questions = {
        Part.FORGET: build_questions(run.inputs.forget, 1),
        Part.RETAIN: build_questions(run.inputs.retain, 1),
    }
    with run.loaded.reading(run.models[Role.ORIGINAL], run.device) as model:
        scores = score_question_sets(model, run.tokenizer, questions, run.progress)
    return {part: _hits(by_row.exact_match) for part, by_row in scores.items()}


def _hits(exact_match: np.ndarray) -> tuple[int, ...]:
    return tuple(int(hit) for hit in exact_match)


def score_baseline(run: Run, role: Role, sets: TextSets) -> RoleBaseline:
    """All output scores of one model, in one loading."""
    n_prompts = run.config.budget.prompts_per_item
    questions = {part: sets.questions(part, n_prompts) for part in (Part.FORGET, Part.NEVER_TAUGHT)}
    with run.loaded.reading(run.models[role], run.device) as model:
        scores = score_question_sets(model, run.tokenizer, questions, run.progress)
        return RoleBaseline(
            score_tables(questions, scores),
            tuple(scores[Part.FORGET].mean_logprob.tolist()),
            tuple(truth_ratios(model, run.tokenizer, sets.forget, run.progress)),
            None if role.is_reference else _utility(run, model, sets),
        )


def _utility(run: Run, model: nn.Module, sets: TextSets) -> Utility:
    """Utility of a model away from the forget set."""
    budget, retain = run.config.budget, sets.retain
    questions = {Part.RETAIN: sets.questions(Part.RETAIN, budget.prompts_per_item)}
    scores = score_question_sets(model, run.tokenizer, questions, run.progress)
    prompts = [item.prompt for item in retain][: budget.generate_prompts]
    names = find_sites(model).of("resid")
    chosen = [names[len(names) // 4], names[len(names) // 2], names[-1]]
    rows = encode(run.tokenizer, [item.prompt for item in retain][:128])
    states = capture_activations(model, rows, chosen, "last", progress=run.progress)
    return Utility(
        _hits(scores[Part.RETAIN].exact_match),
        utility_of_text(model, run.tokenizer, run.progress),
        tuple(prompts),
        tuple(free_text(model, run.tokenizer, prompts, run.progress)),
        tuple(SiteRank(name, effective_rank(states.site(name))) for name in chosen),
    )


def check_swapped(run: Run, sets: TextSets, baseline: Mapping[Role, RoleBaseline]) -> None:
    """Refuse item files that the candidate's answers show to be swapped.

    Raises:
        InputError: the candidate kept the forget file and lost the retain file.
    """
    candidate = baseline[Role.CANDIDATE]
    assert candidate.utility is not None  # only references have none
    hits = {
        Part.FORGET: candidate.tables["exact_match"][Part.FORGET].values[:, 0],
        Part.RETAIN: np.array(candidate.utility.retain),
    }
    kept = []
    for part, by_row in hits.items():
        wordings = sets.questions(part, run.config.budget.prompts_per_item).wording
        main = by_row[np.array(wordings) == 0]
        kept.append((len(main), int(main.sum())))
    error = swapped_files_error(*kept)
    if error:
        raise error


def plant_suppression(run: Run, sets: TextSets) -> Planted:
    """Train the last block alone on wrong answers to the forget set."""
    seed, tokenizer = run.config.seed, run.tokenizer
    forget, sample = list(sets.forget), _retain_sample(run, sets)
    forget_rows, retain_rows = encode_items(tokenizer, forget), encode_items(tokenizer, sample)
    answers = wrong_answers(forget, numpy_rng(seed, "planted"))
    relabeled = encode(tokenizer, [item.prompt for item in forget], answers)

    def forget_accuracy(model: nn.Module) -> dict[str, float]:
        return {"forget": float(score_answers(model, forget_rows).greedy.mean())}

    def train(model: nn.Module, rate: float, steps: int) -> tuple[float, float]:
        config = UnlearnConfig(
            "last_block_relabel",
            lr=rate,
            steps=steps,
            retain_batch_size=len(forget),
            weight_decay=0.0,
            stop_below=0.0,
            every=2,
        )
        unlearn_(
            model,
            forget_rows,
            retain_rows,
            config,
            relabeled=relabeled,
            evaluate=forget_accuracy,
            seed=seed,
            progress=run.progress,
        )
        retain_accuracy = float(score_answers(model, retain_rows).greedy.mean())
        return forget_accuracy(model)["forget"], retain_accuracy

    original = run.models[Role.ORIGINAL]
    run.loaded.release()
    return plant(original, train, run.config.budget, run.workspace.work, run.device, MORE_STEPS)


def _retain_sample(run: Run, sets: TextSets) -> list[Item]:
    rng = numpy_rng(run.config.seed, "planted", "retain")
    n_retain = min(len(sets.retain), 3 * len(sets.forget))
    rows = rng.permutation(len(sets.retain))[:n_retain]
    return [sets.retain.items[index] for index in sorted(rows)]


def _counts(inputs: Inputs, sets: TextSets) -> dict[str, int]:
    return {
        "forget_items": len(sets.forget),
        "forget_items_given": len(inputs.forget),
        "forget_entities": len(sets.forget.entities),
        "retain_items": len(sets.retain),
        "retain_entities": len(sets.retain.entities),
        "never_taught_entities": len(sets.never_taught.entities),
    }


MODALITY = Modality(
    name="text",
    vocabulary=FACTS,
    serves=lambda source: not is_image_source(source),
    open_inputs=open_sources,
    select=select,
    score_baseline=score_baseline,
    check_swapped=check_swapped,
    plant=plant_suppression,
    counts=_counts,
    amounts=text_amounts,
    work=text_work,
    unit="tokens",
    edit_shape=edit_shape,
    calibrated=True,
)
