"""Permutation tests over entities, equivalence tests and correction for multiple testing."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from evidence.errors import InputError
from evidence.intervals import Interval
from evidence.results import Reading

MAX_DRAWN = 1 << 23
"""Entities times permutations in memory at a time, 64 MB of numbers."""


@dataclass(frozen=True)
class MaxTest:
    """Result of a one-sided max-statistic permutation test.

    Attributes:
        difference: (column,) observed mean difference.
        p_value: (1 + b) / (1 + B) for the largest difference over columns.
        p_column: (column,) p-value of each column against the null of the maximum.
        p_below: As ``p_value`` for the most negative difference. A small value means
            significantly *below* the floor, which is information or leakage.
        smallest_p: Smallest p-value that these data and this many permutations can give.
        null_quantile: 95th percentile of the maximum under the null.
    """

    difference: NDArray[np.float64]
    p_value: float
    p_column: NDArray[np.float64]
    p_below: float
    smallest_p: float
    null_quantile: float


def max_test(observed: NDArray[np.float64], null: NDArray[np.float64], n_distinct: int) -> MaxTest:
    """Compare observed differences with the null distribution of their maximum over columns.

    Args:
        observed: (column,) differences.
        null: (permutation, column) differences under the null.
        n_distinct: Number of distinct permutations. Python's int, because with some hundred
            entities the number exceeds the range of floats.
    """
    top, bottom = null.max(1), null.min(1)
    n = len(null)
    # Ties count as exceedances, also if rounding separates them.
    tolerance = 1e-12
    p_column = (1 + (top[:, None] >= observed - tolerance).sum(0)) / (1 + n)
    return MaxTest(
        difference=observed,
        p_value=float(p_column.min()),
        p_column=p_column,
        p_below=float((1 + (bottom <= observed.min() + tolerance).sum()) / (1 + n)),
        smallest_p=float(max(1 / (1 + n), 1 / n_distinct)),
        null_quantile=float(np.quantile(top, 0.95)),
    )


def unpaired_max_test(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    rng: np.random.Generator,
    n_permutations: int = 2000,
) -> MaxTest:
    """Test whether the entities of ``x`` score higher than those of ``y`` in some column.

    Whole rows are permuted between the groups, which preserves the correlation of columns.

    Args:
        x: (entity, column).
        y: (other entity, column).
    """
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 1:
        raise InputError("groups to compare need entities and the same columns")
    pooled, n = np.concatenate([x, y]), len(x)
    total = pooled.sum(0)
    # With one indicator row per permutation the null is a matrix product.
    parts = []
    for count in _slabs(n_permutations, len(pooled)):
        order = rng.random((count, len(pooled))).argpartition(n - 1, axis=1)
        chosen = np.zeros((count, len(pooled)))
        np.put_along_axis(chosen, order[:, :n], 1.0, axis=1)
        parts.append(chosen @ pooled)
    sums = np.concatenate(parts)
    null = sums / n - (total - sums) / len(y)
    observed = x.mean(0) - y.mean(0)
    return max_test(observed, null, comb(len(pooled), n))


def paired_max_test(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    rng: np.random.Generator,
    n_permutations: int = 2000,
) -> MaxTest:
    """``unpaired_max_test`` for paired scores of the same entities (sign-flip test).

    Swapping the two scores of an entity flips the sign of its row of differences.
    """
    if x.shape != y.shape or len(x) < 1:
        raise InputError("paired groups need the same entities and columns")
    delta = x - y
    null = np.concatenate(
        [
            rng.choice([-1.0, 1.0], size=(count, len(delta))) @ delta / len(delta)
            for count in _slabs(n_permutations, len(delta))
        ]
    )
    return max_test(delta.mean(0), null, 2 ** len(delta))


def _slabs(n_permutations: int, n_entities: int) -> list[int]:
    """Numbers of permutations that are drawn at a time, within ``MAX_DRAWN``."""
    most = max(1, MAX_DRAWN // n_entities)
    full, rest = divmod(n_permutations, most)
    return [most] * full + [rest] * (rest > 0)


def is_equivalent(interval: Interval, margin: float) -> bool:
    """Two one-sided tests (TOST): whether a 90 % interval lies within +-``margin``.

    With a 90 % interval, each of the two tests has level 5 %.

    Source: Schuirmann (1987), J. Pharmacokinetics and Biopharmaceutics 15:657.
    """
    return -margin < interval[0] and interval[1] < margin


def readings_above_floor(
    readings: Mapping[str, Reading], alpha: float, min_residual: float
) -> dict[str, float]:
    """Readings significantly and relevantly above their floor: name to adjusted p-value.

    A reading must be significant and have a residual whose lower bound exceeds
    ``min_residual``. Significance alone is not enough: with many entities the test detects
    irrelevant differences, such as those between two training seeds.

    Args:
        readings: By name; all of them count towards the correction.
        alpha: Level after Holm's correction.
        min_residual: Lower bound that the residual interval at the peak must exceed.
    """
    adjusted = holm_adjusted({name: reading.p_value for name, reading in readings.items()})
    return {
        name: p
        for name, p in adjusted.items()
        if p < alpha and readings[name].residual_interval_at_peak[0] > min_residual
    }


def holm_adjusted(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values, which control the family-wise error rate.

    Source: Holm (1979), Scandinavian Journal of Statistics 6:65.
    """
    if not p_values:
        return {}
    # statsmodels runs a full garbage collection per call (0.1 s), which is too slow for
    # re-evaluating thousands of audits. A test compares the results.
    names = sorted(p_values, key=lambda name: p_values[name])
    steps = [p_values[name] * (len(names) - rank) for rank, name in enumerate(names)]
    adjusted = np.minimum(np.maximum.accumulate(steps), 1.0).tolist()
    by_name = dict(zip(names, adjusted, strict=True))
    return {name: by_name[name] for name in p_values}
