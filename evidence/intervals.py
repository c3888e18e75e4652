"""Confidence intervals for means of values in [0, 1], clustered by entity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evidence.errors import InputError

Interval = tuple[float, float]


@dataclass(frozen=True)
class EntityValues:
    """Mean score of each entity's items, by column.

    Attributes:
        values: (entity, column), each in [0, 1]. Columns are layers, checkpoints or other
            conditions under which the same entities were scored.
        n_items: Number of items.
        entities: (entity,) names, in row order.
        item_variance: (column,) variance of single items; None for binary items.
    """

    values: NDArray[np.float64]
    n_items: int
    entities: tuple[str, ...]
    item_variance: NDArray[np.float64] | None = None

    @property
    def mean(self) -> NDArray[np.float64]:
        """(column,) mean over entities, each with equal weight."""
        return self.values.mean(0)


def average_by_entity(values: NDArray, entities: list[str] | tuple[str, ...]) -> EntityValues:
    """Average item scores within each entity, so that entities have equal weight.

    Args:
        values: (item,) or (item, column), each in [0, 1].
        entities: (item,) entity of each item.

    Raises:
        InputError: there are no items, lengths differ, or values lie outside [0, 1].
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
    row_of = {name: index for index, name in enumerate(names)}
    index = np.array([row_of[entity] for entity in entities])
    sums = np.zeros((len(names), table.shape[1]))
    np.add.at(sums, index, table)
    counts = np.bincount(index, minlength=len(names))
    return EntityValues(sums / counts[:, None], len(table), names, table.var(0))


def average_models(groups: Sequence[EntityValues]) -> EntityValues:
    """Average the scores of several models on the same entities.

    Raises:
        InputError: the groups hold different entities, or there are none.
    """
    if not groups or any(group.entities != groups[0].entities for group in groups):
        raise InputError("groups to average need the same entities in the same order")
    values = np.mean([group.values for group in groups], axis=0)
    variances = [group.item_variance for group in groups if group.item_variance is not None]
    # Averaged scores vary less than single ones; the maximum is conservative.
    variance = np.max(variances, axis=0) if variances else None
    return EntityValues(values, groups[0].n_items, groups[0].entities, variance)


def effective_sample_size(group: EntityValues, column: int) -> float:
    """Number of independent binary trials that carry the same information.

    Computed from the variance between entities. If that variance is zero, the correlation
    within entities is unknown and each entity counts as one trial. Bounded above by the
    information of independent items: their number if they are binary, more if they are graded.
    """
    values = group.values[:, column]
    mean, n = values.mean(), len(values)
    if n < 2:
        return float(n)
    variance = values.var(ddof=1) / n
    spread = mean * (1 - mean)
    if variance <= 0 or spread <= 0:
        return float(n)
    item_variance = spread if group.item_variance is None else group.item_variance[column]
    max_size = group.n_items * spread / item_variance if item_variance > 0 else group.n_items
    return float(min(spread / variance, max_size))


def wilson_interval(mean: float, n_trials: float, quantile: float) -> Interval:
    """Wilson score interval of a rate; its width is positive also at 0 and 1.

    Args:
        mean: The rate.
        n_trials: Number of (effective) trials.
        quantile: Critical value, such as 1.96 for 95 %.

    Source: Wilson (1927), JASA 22:209.
    """
    square = quantile**2
    center = (mean + square / (2 * n_trials)) / (1 + square / n_trials)
    half = np.sqrt(mean * (1 - mean) / n_trials + square / (4 * n_trials**2))
    half *= quantile / (1 + square / n_trials)
    # At 0 and 1 the bound is exact; avoid rounding errors.
    low = 0.0 if mean <= 0 else float(center - half)
    high = 1.0 if mean >= 1 else float(center + half)
    return max(0.0, low), min(1.0, high)


def rate_interval(group: EntityValues, column: int = 0, level: float = 0.95) -> Interval:
    """Wilson interval of the mean over entities, with the effective sample size.

    Uses the t quantile with (entities - 1) degrees of freedom, because the variance between
    entities is estimated.
    """
    values = group.values[:, column]
    quantile = float(stats.t.ppf(0.5 + level / 2, max(len(values) - 1, 1)))
    return wilson_interval(float(values.mean()), effective_sample_size(group, column), quantile)


def difference_interval(
    a: float, a_interval: Interval, b: float, b_interval: Interval, correlation: float = 0.0
) -> Interval:
    """Interval of ``a - b`` from the intervals of ``a`` and ``b`` (variance recovery, MOVER).

    For independent rates this is Newcombe's hybrid score interval; with ``correlation``, its
    form for paired rates.

    Source: Newcombe (1998), Statistics in Medicine 17:873 and 17:2635.
    """

    def distance(x: float, y: float) -> float:
        return float(np.sqrt(max(0.0, x**2 - 2 * correlation * x * y + y**2)))

    low = distance(a - a_interval[0], b_interval[1] - b)
    high = distance(a_interval[1] - a, b - b_interval[0])
    return a - b - low, a - b + high


def paired_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Correlation between two models' scores of the same entities, clipped at 0.

    Returns 0 if either has no variance.
    """
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return 0.0
    return max(0.0, float(np.corrcoef(x, y)[0, 1]))
