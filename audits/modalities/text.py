"""Language models and question-answer items."""

from collections.abc import Mapping

import numpy as np
from torch import nn

from audits.asking.elicitation import Elicited, elicit
from audits.asking.selection import select_sets
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
from audits.core.scores import Part, ScoreTable
from audits.modalities.amounts import text_amounts, text_spoken, text_work
from audits.modalities.base import Modality, Sources
from audits.modalities.edit_shape import edit_shape
from audits.modalities.planting import MORE_STEPS, Planted, plant, wrong_answers
from audits.modalities.vocabulary import FACTS
from audits.output.workspace import StageRunner
from capture.activations.capture import capture_activations
from capture.data.asking import ask
from capture.data.image_files import is_image_source
from capture.data.items import Item
from capture.data.tokenization import encode, encode_items
from capture.network.sites import find_sites
from capture.scoring.answers import score_answers
from capture.scoring.scorers import SCORERS, Metric, SaidScores, given, score_said
from capture.scoring.set_validation import swapped_files_error
from erasure.unlearning.config import UnlearnConfig
from erasure.unlearning.run import unlearn_
from evidence.progress import Progress
from evidence.seeds import numpy_rng
from evidence.typed_json import Json


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
        columns=sources.columns,
        config=config,
        progress=progress,
        base=sources.base,
    )


def select(run: Run, stages: StageRunner) -> TextSets:
    """The items that the original answers, and never-taught ones that mirror the forget set.

    Raises:
        InputError: the original knows too little of either set.
    """
    elicited = stages.typed("original", Elicited, lambda: _elicited(run))
    inputs = run.inputs
    return select_sets(elicited, inputs.forget, inputs.retain, inputs.never_taught, run.config)


def _elicited(run: Run) -> Elicited:
    inputs = run.inputs
    with run.loaded.reading(run.models[Role.ORIGINAL], run.device) as model:
        return elicit(
            model,
            run.tokenizer,
            inputs.forget,
            inputs.retain,
            inputs.never_taught,
            run.config,
            run.progress,
        )


def _hits(exact_match: np.ndarray) -> tuple[int, ...]:
    return tuple(int(hit) for hit in exact_match)


def score_baseline(run: Run, role: Role, sets: TextSets) -> RoleBaseline:
    """All output scores of one model, in one loading."""
    n_prompts = run.config.budget.prompts_per_item
    questions = {part: sets.questions(part, n_prompts) for part in (Part.FORGET, Part.NEVER_TAUGHT)}
    with run.loaded.reading(run.models[role], run.device) as model:
        scores = score_question_sets(model, run.tokenizer, questions, run.progress)
        said = {
            part: score_said(
                model,
                run.tokenizer,
                items,
                SCORERS[sets.scorer],
                sets.asking,
                n_prompts,
                run.progress,
            )
            for part, items in sets.asked.items()
            if part in questions
        }
        return RoleBaseline(
            score_tables(questions, scores) | _said_tables(said),
            tuple(scores[Part.FORGET].mean_logprob.tolist()),
            tuple(truth_ratios(model, run.tokenizer, sets.forget, run.progress)),
            None if role.is_reference else _utility(run, model, sets),
            said[Part.FORGET].texts if said else (),
        )


def _said_tables(said: Mapping[Part, SaidScores]) -> dict[str, dict[Part, ScoreTable]]:
    """Metric to part to (row, 1) scores of free answers."""
    tables: dict[str, dict[Part, ScoreTable]] = {}
    for part, scores in said.items():
        for metric, values in scores.by_metric.items():
            tables.setdefault(metric, {})[part] = ScoreTable(scores.entities, values[:, None])
    return tables


def _utility(run: Run, model: nn.Module, sets: TextSets) -> Utility:
    """Utility of a model away from the forget set."""
    budget, retain = run.config.budget, sets.retain
    asked = ask(run.tokenizer, sets.asked.get(Part.RETAIN, retain), sets.asking)
    prompts = [item.prompt for item in asked][: budget.generate_prompts]
    names = find_sites(model).of("resid")
    chosen = [names[len(names) // 4], names[len(names) // 2], names[-1]]
    rows = encode(run.tokenizer, [item.prompt for item in retain][:128])
    states = capture_activations(model, rows, chosen, "last", progress=run.progress)
    return Utility(
        _retain_hits(run, model, sets),
        utility_of_text(model, run.tokenizer, run.progress, bos=sets.asking.bos),
        tuple(prompts),
        tuple(free_text(model, run.tokenizer, prompts, run.progress)),
        tuple(SiteRank(name, effective_rank(states.site(name))) for name in chosen),
    )


def _retain_hits(run: Run, model: nn.Module, sets: TextSets) -> tuple[int, ...]:
    """(row,) 1 where a retain item is answered, in the model's own words where it may speak."""
    if not sets.asked or not SCORERS[sets.retain_scorer].metrics:
        questions = {Part.RETAIN: sets.questions(Part.RETAIN, run.config.budget.prompts_per_item)}
        scores = score_question_sets(model, run.tokenizer, questions, run.progress)
        return _hits(scores[Part.RETAIN].exact_match)
    items = sets.asked[Part.RETAIN]
    scorer = SCORERS[sets.retain_scorer]
    said = score_said(model, run.tokenizer, items, scorer, sets.asking, progress=run.progress)
    return _hits(given(said.by_metric, scorer))


def check_swapped(run: Run, sets: TextSets, baseline: Mapping[Role, RoleBaseline]) -> None:
    """Refuse item files that the candidate's answers show to be swapped.

    Raises:
        InputError: the candidate kept the forget file and lost the retain file.
    """
    candidate = baseline[Role.CANDIDATE]
    assert candidate.utility is not None  # only references have none
    by_row = {
        Part.FORGET: candidate.tables["exact_match"][Part.FORGET].values[:, 0],
        Part.RETAIN: np.array(candidate.utility.retain),
    }
    n_prompts = run.config.budget.prompts_per_item
    if not sets.asked:
        hits = {part: rows[_main_prompts(sets, part, n_prompts)] for part, rows in by_row.items()}
    else:
        scorer = SCORERS[sets.scorer]
        said: dict[Metric, np.ndarray] = {
            metric: candidate.tables[metric][Part.FORGET].values[:, 0]
            for metric in scorer.known
            if metric in candidate.tables
        }
        hits = {Part.FORGET: given(said, scorer), Part.RETAIN: by_row[Part.RETAIN]}
    kept = [(len(rows), int(rows.sum())) for rows in (hits[Part.FORGET], hits[Part.RETAIN])]
    error = swapped_files_error(*kept)
    if error:
        raise error


def _main_prompts(sets: TextSets, part: Part, n_prompts: int) -> np.ndarray:
    """(row,) True for an item's own prompt."""
    return np.array(sets.questions(part, n_prompts).wording) == 0


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


def _asking(run: Run, sets: TextSets) -> dict[str, Json]:
    if not sets.notes:
        return {}
    return {
        "chat": sets.asking.chat,
        "system": sets.asking.system,
        "bos": sets.asking.bos,
        "scorer": sets.scorer,
        "floor": sets.floor,
        "notes": list(sets.notes),
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
    spoken=text_spoken,
    floor=lambda sets: "permuted" if sets.floor == "permuted" else "never_taught",
    asking=_asking,
    calibrated=True,
)
