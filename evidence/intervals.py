"""Intervals for a mean of values in [0, 1] when the unit is the entity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evidence.errors import InputError

Interval = tuple[float, float]


@dataclass(frozen=True)
class EntityValues:
    """One row an entity: the mean of that entity's items, column by column.

    Attributes:
        values: (entity, column), each in [0, 1]. Columns are layers, checkpoints or
            whatever the same entities were scored at.
        n_items: How many items went into it.
        entities: (entity,) names, in row order.
        item_variance: (column,) variance of single items, where they are graded more
            finely than yes or no; None takes them for yes/no.
    """

    values: NDArray[np.float64]
    n_items: int
    entities: tuple[str, ...]
    item_variance: NDArray[np.float64] | None = None

    @property
    def mean(self) -> NDArray[np.float64]:
        """(column,), every entity counting once."""
        return self.values.mean(0)


def average_by_entity(
    values: NDArray, entities: list[str] | tuple[str, ...]
) -> EntityValues:
    """Average item scores within each entity, so that every entity counts once.

    Args:
        values: (item,) or (item, column), each in [0, 1].
        entities: (item,) entity of each item.

    Raises:
        InputError: no items, unequal lengths, or values outside [0, 1].
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if len(table) != len(entities) or len(table) == 0:
        raise InputError(
            "every item needs an entity",
            expected=f"{len(table)} (at least one)",
            got=str(len(entities)),
        )
    if not ((table >= 0) & (table <= 1)).all():
        raise InputError("scores must lie in [0, 1]", got=f"{table.min()}..")
    names = tuple(dict.fromkeys(entities))
    place = {name: index for index, name in enumerate(names)}
    index = np.array([place[entity] for entity in entities])
    sums = np.zeros((len(names), table.shape[1]))
    np.add.at(sums, index, table)
    counts = np.bincount(index, minlength=len(names))
    return EntityValues(sums / counts[:, None], len(table), names, table.var(0))


def average_models(groups: Sequence[EntityValues]) -> EntityValues:
    """The mean of several models' scores on the same entities.

    Raises:
        InputError: the groups hold different entities, or there are none.
    """
    if not groups or any(each.entities != groups[0].entities for each in groups):
        raise InputError("groups to average need the same entities in the same order")
    values = np.mean([each.values for each in groups], axis=0)
    variances = [
        each.item_variance for each in groups if each.item_variance is not None
    ]
    # Averaged scores vary less than single ones; the larger variance is the safe one.
    variance = np.max(variances, axis=0) if variances else None
    return EntityValues(values, groups[0].n_items, groups[0].entities, variance)


def effective_sample_size(group: EntityValues, column: int) -> float:
    """How many independent yes/no trials carry as much as these entity means.

    The variance between entities decides; where it is zero (all right or all wrong)
    nothing is known of the correlation within an entity, so each entity counts as
    one trial. Never more than independent items would carry, which is their number
    for yes/no items and more for finer grades.
    """
    values = group.values[:, column]
    mean, n = values.mean(), len(values)
    if n < 2:
        return float(n)
    variance = values.var(ddof=1) / n
    spread = mean * (1 - mean)
    if variance <= 0 or spread <= 0:
        return float(n)
    own = spread if group.item_variance is None else group.item_variance[column]
    most = group.n_items * spread / own if own > 0 else group.n_items
    return float(min(spread / variance, most))


def wilson_interval(mean: float, n_trials: float, quantile: float) -> Interval:
    """Wilson score interval of a rate; never of zero width, also at 0 and 1.

    Args:
        mean: The rate.
        n_trials: Number of (effective) trials.
        quantile: Critical value, e.g. 1.96 for 95 %.

    Source: Wilson (1927), JASA 22:209.
    """
    square = quantile**2
    centre = (mean + square / (2 * n_trials)) / (1 + square / n_trials)
    half = np.sqrt(mean * (1 - mean) / n_trials + square / (4 * n_trials**2))
    half *= quantile / (1 + square / n_trials)
    # At 0 and 1 the bound is exactly there; rounding must not say otherwise.
    low = 0.0 if mean <= 0 else float(centre - half)
    high = 1.0 if mean >= 1 else float(centre + half)
    return max(0.0, low), min(1.0, high)


def rate_interval(
    group: EntityValues, column: int = 0, level: float = 0.95
) -> Interval:
    """Interval of the mean over entities: Wilson on the effective size.

    A t quantile on entities - 1 degrees of freedom stands in for the normal one, as
    the between-entity variance is itself estimated.
    """
    values = group.values[:, column]
    quantile = float(stats.t.ppf(0.5 + level / 2, max(len(values) - 1, 1)))
    return wilson_interval(
        float(values.mean()), effective_sample_size(group, column), quantile
    )


def difference_interval(
    a: float,
    a_interval: Interval,
    b: float,
    b_interval: Interval,
    correlation: float = 0.0,
) -> Interval:
    """Interval of ``a - b`` from the intervals of each (method of variance recovery).

    For two independent rates this is Newcombe's hybrid score interval; with the
    ``correlation`` of paired estimates, its form for paired rates.

    Source: Newcombe (1998), Statistics in Medicine 17:873 and 17:2635.
    """

    def reach(x: float, y: float) -> float:
        return float(np.sqrt(max(0.0, x**2 - 2 * correlation * x * y + y**2)))

    low = reach(a - a_interval[0], b_interval[1] - b)
    high = reach(a_interval[1] - a, b - b_interval[0])
    return a - b - low, a - b + high


def paired_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Correlation of the same entities' scores in two models, at least 0.

    A negative one is taken for noise, and zero stands where either does not vary.
    """
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return 0.0
    return max(0.0, float(np.corrcoef(x, y)[0, 1]))
