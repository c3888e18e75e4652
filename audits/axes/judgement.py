"""A candidate's figures against its floors, the same way for every axis."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audits.core.config import AuditConfig, Rule
from evidence.comparison import compare
from evidence.hypothesis_tests import MaxTest
from evidence.intervals import EntityValues, average_models
from evidence.results import Reading
from evidence.seeds import numpy_rng

# Below this distance between original and floor a residual would be noise over noise.
MIN_SPAN = 0.15


@dataclass(frozen=True)
class MetricComparison:
    """One figure of the candidate.

    Attributes:
        name: Of the reading.
        stream: Names the permutations' stream of random numbers.
        candidate: (entity, column) of the forgotten entities.
        ceiling: The same of the original.
        references: The same of each model retrained without them, if there are any.
        never_taught: (other entity, column) of never-taught items in the candidate.
        min_difference: As in ``evidence.comparison.compare``.
    """

    name: str
    stream: str
    candidate: EntityValues
    ceiling: EntityValues
    references: Sequence[EntityValues]
    never_taught: EntityValues
    min_difference: float = 0.0


def compare_to_floors(
    axis: str,
    comparisons: Sequence[MetricComparison],
    columns: Sequence[str],
    config: AuditConfig,
    mask: NDArray[np.bool_] | None = None,
) -> list[Reading]:
    """Each figure against the primary floor, then each against the other.

    The primary floor is the references, where there are any; never-taught items are
    then shown beside it.

    Args:
        axis: Its name, for the random numbers.
        comparisons: The figures.
        columns: Names of the columns.
        config: Settings.
        mask: (column,) which columns count; all by default.
    """
    paired = bool(comparisons[0].references)
    readings = []
    for kind in ("reference", "never_taught") if paired else ("never_taught",):
        for each in comparisons:
            second = paired and kind == "never_taught"
            readings.append(
                compare(
                    f"{each.name}, against never-taught items" if second else each.name,
                    each.candidate,
                    average_models(each.references)
                    if kind == "reference"
                    else each.never_taught,
                    each.ceiling,
                    columns=columns,
                    floor_kind=kind,
                    rng=numpy_rng(config.seed, axis, kind, each.stream),
                    n_permutations=config.budget.permutations,
                    mask=None if mask is None else mask.tolist(),
                    min_residual=each.min_difference,
                )
            )
    return readings


def informative_columns(power: MaxTest, rule: Rule) -> NDArray[np.bool_]:
    """(column,) where the original itself is read, so that silence says something.

    Args:
        power: The original's forgotten entities against never-taught ones.
        rule: Thresholds.
    """
    strong = power.difference >= 0.5 * power.difference.max()
    return strong & (power.p_column < rule.alpha) & (power.difference > MIN_SPAN)
