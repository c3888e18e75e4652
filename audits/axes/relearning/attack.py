"""What a relearning attack is in both modalities: its curves, and the search for a rate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from audits.axes.base import MetricSpec
from audits.core.context import AuditContext
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from evidence.typed_json import FloatArray

NAME = "relearning"
CONTRAST = MetricSpec(
    "contrast",
    "held-out half, contrast",
    stream="contrast",
    unit="other answers outranked (chance 0.5)",
    finding="After teaching one half of them, the candidate ranks the answers of the held-out "
    "half above those of other entities: {value:.2f}",
)
EXACT_MATCH = MetricSpec(
    "exact_match",
    "held-out half, exact match",
    stream="said",
    unit="share of answers given",
    is_share=True,
    finding="Teaching one half of them brings back the other half: the candidate gives "
    "{value:.2f} of them",
)
NAMED = MetricSpec(
    "named",
    "held-out images, predicted as the class",
    stream="images not taught, named as the class",
    unit="share of images predicted as the class",
    is_share=True,
)

# Minimum training accuracy: an attack that does not learn its training half has no
# power.
MIN_LEARNED = 0.9
# Multiples of the budget's steps, tried where no rate learns the training half within
# it.
STEP_MULTIPLES = (2, 4)
# Further multiples for long answers that are unique to an entity: a model that never
# knew such codes learns them much later.
EXTRA_STEP_MULTIPLES = (8, 16)

# Copies of the weights in training: weights, gradients and AdamW's two moments.
TRAINING_COPIES = 4


@dataclass(frozen=True, eq=False)
class Curve:
    """One fine-tuning run.

    Attributes:
        steps: (checkpoint,) optimizer steps so far; 0 first.
        taught: (checkpoint,) accuracy on the training items.
        entities: Part to (row,) entities of the held-out rows that were scored.
        scores: Part to metric to (checkpoint, row).
    """

    steps: tuple[int, ...]
    taught: tuple[float, ...]
    entities: dict[Part, tuple[str, ...]]
    scores: dict[Part, dict[str, FloatArray]]

    @property
    def learned(self) -> np.ndarray:
        """(checkpoint,) mask of those at which the training items had been learned.

        Determined on the training items alone; where they were never learned, the last
        one.
        """
        mask = np.array(self.taught) >= MIN_LEARNED
        mask[0] = False  # before any teaching
        mask[-1] |= not mask.any()
        return mask


@dataclass(frozen=True)
class ChosenRate:
    """Learning rate and steps at which every trial learns, with the runs at that rate.

    Attributes:
        curves: Role to number of the split to run; those of the last attempt where none
            succeeds.
    """

    rate: float
    steps: int
    curves: dict[Role, dict[str, Curve]]


@dataclass(frozen=True, eq=False)
class Measurement:
    """Curves of every fine-tuned model.

    Attributes:
        scores: Held-out scores after learning, by metric, role and part.
        curves: One run a split, by role.
        rate: Learning rate of every run.
    """

    scores: RoleScores
    curves: dict[Role, tuple[Curve, ...]]
    rate: float


def choose_rate(
    attempts: Sequence[tuple[float, int]],
    trials: Sequence[tuple[Role, int]],
    run: Callable[[Role, int, float, int], Curve],
    learned: Callable[[Curve], bool],
) -> ChosenRate:
    """The smallest learning rate, and number of steps, at which every trial learns.

    Decided on the training items alone, so that nothing is selected on held-out ones;
    all models then share the rate and the steps.

    Args:
        attempts: Rates and steps, in the order in which they are tried.
        trials: Models that must learn, each with the number of a split; the hardest to
            teach first, so that rates that are too low fail early.
        run: Fine-tunes a role on a split.
        learned: Whether a run learned its training items.
    """
    chosen = ChosenRate(*attempts[0], {})
    for rate, steps in attempts:
        chosen = ChosenRate(rate, steps, {role: {} for role, _ in trials})
        for role, number in trials:
            curve = run(role, number, rate, steps)
            # JSON keys are strings.
            chosen.curves[role][str(number)] = curve
            if not learned(curve):
                break
        else:
            break
    return chosen


def measure(
    ctx: AuditContext,
    attempts: Sequence[tuple[float, int]],
    trials: Mapping[Role, Sequence[int]],
    splits: Mapping[Role, Sequence[int]],
    run: Callable[[Role, int, float, int], Curve],
    learned: Callable[[Curve], bool],
    original: Mapping[str, ScoreTable],
    order: Sequence[str] = (),
) -> Measurement:
    """Choose a rate, and fine-tune every model at that rate on each of its splits.

    Args:
        attempts: As ``choose_rate``.
        trials: Role to numbers of the splits that it must learn for a rate to be
            chosen.
        splits: Role to numbers of the splits it is trained on.
        run: As ``choose_rate``.
        learned: As ``choose_rate``.
        original: Metric to scores of the original without fine-tuning.
        order: Order of the forgotten entities in the result; by default that of the
            splits.
    """
    pairs = [
        (role, number)
        for role, numbers in trials.items()
        if role in ctx.models
        for number in numbers
    ]
    chosen = ctx.stage(
        f"{NAME}-rate", ChosenRate, lambda: choose_rate(attempts, pairs, run, learned)
    )
    curves: dict[Role, tuple[Curve, ...]] = {}
    for role, numbers in splits.items():
        done = chosen.curves.get(role, {})
        curves[role] = tuple(
            done[str(number)]
            if str(number) in done
            else ctx.stage(
                f"{NAME}-{role}-{number}",
                Curve,
                lambda role=role, number=number: run(role, number, chosen.rate, chosen.steps),
            )
            for number in numbers
        )
    tables = {
        metric: {
            Role.ORIGINAL: {Part.FORGET: table},
            **{
                role: {
                    part: scores_after_learning(runs, part, metric, order)
                    for part in dict.fromkeys(part for each in runs for part in each.entities)
                }
                for role, runs in curves.items()
            },
        }
        for metric, table in original.items()
    }
    return Measurement(RoleScores(("after teaching",), tables), curves, chosen.rate)


def scores_after_learning(
    curves: Sequence[Curve], part: Part, metric: str, order: Sequence[str] = ()
) -> ScoreTable:
    """(row, 1) mean score over the checkpoints at which the training items had been learned.

    A mean selects nothing, so no correction is needed.

    Args:
        order: Entities of the forget part in the order of the result.
    """
    used = [curve for curve in curves if part in curve.entities]
    rows = [curve.scores[part][metric][curve.learned].mean(0) for curve in used]
    names = [name for curve in used for name in curve.entities[part]]
    values = np.concatenate(rows)[:, None]
    if order and part is Part.FORGET:
        position = {name: row for row, name in enumerate(order)}
        sorted_rows = np.argsort([position[name] for name in names], kind="stable")
        names, values = [names[row] for row in sorted_rows], values[sorted_rows]
    return ScoreTable(tuple(names), values)
