"""Restoration trial of one model: an edit is chosen on one half, and tested on the other.

The forgotten entities (images of the class) are halved. One fixed edit is fitted and chosen on
one half, within limits on its side effects (``audits.axes.restoration.search``), and tested on the
other; then the halves are swapped, so that each is tested once. After arXiv 2602.18505, whose own
test is in ``audits.axes.restoration.state_injection``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from audits.axes.restoration.autoencoder import Reconstruction
from audits.axes.restoration.search import Choice
from audits.axes.restoration.state_injection import InjectionOutcome
from audits.core.scores import ScoreTable
from evidence.intervals import EntityValues

NAME = "restoration"


class Arm(StrEnum):
    """How items were scored."""

    PLAIN = "plain"
    """Forgotten items without an edit."""
    STEERED = "steered"
    """Forgotten items under the chosen edit."""
    RANDOM = "random"
    """Under a random edit of equal size."""
    OTHERS = "others"
    """Under an edit from other items' states, or for other entities or another class."""
    OWN_END = "own"
    """Images: under the best edit that keeps the candidate's own last block."""
    NEVER_TAUGHT = "never"
    """Never-taught items under the chosen edit; images under the best for their own class."""
    RETAIN = "retain"
    """Retain items under the chosen edit."""


@dataclass(frozen=True)
class CurvePoint:
    """Exact match at one strength of the chosen edits, with both halves pooled.

    Attributes:
        shares: By arm: share, and its 95 % interval over entities.
    """

    strength: float
    shares: dict[Arm, tuple[float, float, float]]


@dataclass(frozen=True)
class Retractions:
    """Answers given in free text.

    Attributes:
        prompts: Number of texts.
        share: Share that gives the answer.
        retracted: Share of these that name another answer of the relation within a few tokens.
    """

    prompts: int
    share: float
    retracted: float


@dataclass(frozen=True, eq=False)
class Trial:
    """Scores of one model under steering, every forgotten item tested once.

    Attributes:
        scores: Metric to arm to (row, 1) scores of the forgotten items, or of never-taught items.
        choices: The choice made on each half.
        curve: Text: exact match by strength, on items' main prompts.
        retractions: Text: in the steered model's free text.
        reconstruction: Text: of the autoencoder; None without one.
        injection: Text: the published test.
        never_taught_classes: Images: (never-taught row,) number of its class.
    """

    scores: dict[str, dict[Arm, ScoreTable]]
    choices: tuple[Choice, ...]
    curve: tuple[CurvePoint, ...] = ()
    retractions: Retractions | None = None
    reconstruction: Reconstruction | None = None
    injection: InjectionOutcome | None = None
    never_taught_classes: tuple[int, ...] = ()

    def values(self, metric: str, arm: Arm) -> EntityValues:
        """(entity, 1) means of one arm."""
        return self.scores[metric][arm].by_entity()


def pool_halves(
    halves: Sequence[tuple[NDArray[np.int64], Mapping[Arm, Mapping[str, NDArray[np.float64]]]]],
    entities: Sequence[str],
    plain: Mapping[str, NDArray[np.float64]],
) -> dict[str, dict[Arm, ScoreTable]]:
    """Metric to arm to scores of all forgotten rows, in their order.

    Args:
        halves: Each half under the choice made on the other: its rows among the forgotten, and
            arm to metric to (tested row,) scores.
        entities: (row,) entity of each.
        plain: Metric to (row,) scores without an edit.
    """
    tables: dict[str, dict[Arm, ScoreTable]] = {}
    for metric, unsteered in plain.items():
        by_arm = {Arm.PLAIN: unsteered} | {arm: np.zeros(len(entities)) for arm in halves[0][1]}
        for rows, arms in halves:
            for arm, scores in arms.items():
                by_arm[arm][rows] = scores[metric]
        names = tuple(entities)
        tables[metric] = {arm: ScoreTable(names, each[:, None]) for arm, each in by_arm.items()}
    return tables
