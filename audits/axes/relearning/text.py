"""Relearning of language models: one half of the forgotten entities is taught."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from audits.axes.relearning.attack import (
    CONTRAST,
    EXACT_MATCH,
    EXTRA_STEP_MULTIPLES,
    MIN_LEARNED,
    NAME,
    STEP_MULTIPLES,
    Curve,
    Measurement,
    measure,
)
from audits.core.answers import score_many
from audits.core.context import AuditContext
from audits.core.item_sets import TextSets
from audits.core.roles import Role
from audits.core.scores import Part
from capture.data.items import Item
from capture.data.questions import build_questions
from capture.data.tokenization import encode_items
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import finetune_
from evidence.seeds import numpy_rng, stage_seed


@dataclass(frozen=True)
class TextSplit:
    """One split: training items, held-out items, and never-taught items."""

    train: list[Item]
    held_out: list[Item]
    never_taught: list[Item]


def relearning_splits(
    forget: Sequence[Item], never_taught: Sequence[Item], rng: np.random.Generator
) -> list[TextSplit]:
    """Two halves of the entities, each trained on while the other is held out.

    Never-taught items go with the half whose answers they mirror where they come in
    whole copies of the forget set; otherwise they are assigned alternately.
    """
    names = list(dict.fromkeys(item.entity for item in forget))
    order = [names[position] for position in rng.permutation(len(names))]
    halves = (set(order[: len(order) // 2]), set(order[len(order) // 2 :]))
    invented = list(dict.fromkeys(item.entity for item in never_taught))
    splits = []
    for number, taught in enumerate(halves):
        if len(invented) % len(names) == 0:
            # Mirrors are in the order of the items they mirror, copy after copy.
            chosen = {
                name
                for position, name in enumerate(invented)
                if names[position % len(names)] not in taught
            }
        else:
            chosen = set(invented[number::2])
        splits.append(
            TextSplit(
                [item for item in forget if item.entity in taught],
                [item for item in forget if item.entity not in taught],
                [item for item in never_taught if item.entity in chosen],
            )
        )
    return splits


def measure_text(ctx: AuditContext[TextSets]) -> Measurement:
    """Fine-tune every model but the original on each half of the forgotten entities.

    Where the highest rate does not learn its half within the budgeted steps, it gets
    more.
    """
    rates, budgeted = ctx.config.budget.relearn_rates, ctx.config.budget.relearn_steps
    attempts = [(rate, budgeted) for rate in rates]
    attempts += [
        (rates[-1], longer * budgeted) for longer in (*STEP_MULTIPLES, *EXTRA_STEP_MULTIPLES)
    ]
    rng = numpy_rng(ctx.config.seed, NAME, "halves")
    splits = relearning_splits(list(ctx.sets.forget), list(ctx.sets.never_taught), rng)
    baseline = ctx.baseline[Role.ORIGINAL].tables
    return measure(
        ctx,
        attempts,
        # The planted suppression needs a single split.
        {Role.CANDIDATE: [0, 1], Role.PLANTED: [0]},
        {
            role: [0] if role == Role.PLANTED else [0, 1]
            for role in ctx.models
            if role != Role.ORIGINAL
        },
        lambda role, number, rate, steps: relearn_text(ctx, role, splits[number], rate, steps),
        lambda curve: max(curve.taught) >= MIN_LEARNED,
        {metric.id: baseline[metric.id][Part.FORGET] for metric in (CONTRAST, EXACT_MATCH)},
    )


def relearn_text(
    ctx: AuditContext[TextSets], role: Role, split: TextSplit, rate: float, steps: int
) -> Curve:
    """Fine-tune on the training half; evaluate held-out and never-taught items along the way.

    Args:
        steps: Optimizer steps, each on the whole training half.
    """
    budget = ctx.config.budget
    training_rows = encode_items(ctx.tokenizer, split.train)
    taught: list[float] = []
    questions = {
        Part.FORGET: build_questions(split.held_out, budget.prompts_per_item),
        Part.NEVER_TAUGHT: build_questions(split.never_taught, budget.prompts_per_item),
    }
    rows = {part: each.encoded(ctx.tokenizer) for part, each in questions.items()}
    scores: dict[Part, dict[str, list[np.ndarray]]] = {
        part: {CONTRAST.id: [], EXACT_MATCH.id: []} for part in questions
    }

    def evaluate(model: nn.Module) -> dict[str, float]:
        taught.append(float(score_answers(model, training_rows).greedy.mean()))
        for part, by_row in rows.items():
            found = score_many(model, questions[part], by_row)
            scores[part][EXACT_MATCH.id].append(found.exact_match)
            scores[part][CONTRAST.id].append(found.contrast)
        return {"taught": taught[-1]}

    with ctx.fresh(role) as model:
        log = finetune_(
            model,
            training_rows,
            lr=rate,
            steps=steps,
            # Only the order within the full batch is random.
            seed=stage_seed(ctx.config.seed, NAME) % 2**31,
            evaluate=evaluate,
            every=budget.relearn_every,
            label=f"relearn, {role}",
            progress=ctx.progress,
        )
    return Curve(
        tuple(int(row["step"]) for row in log.rows if "taught" in row),
        tuple(taught),
        {part: tuple(each.entities) for part, each in questions.items()},
        {
            part: {metric: np.stack(tables) for metric, tables in by_metric.items()}
            for part, by_metric in scores.items()
        },
    )
