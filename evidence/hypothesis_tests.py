"""Permutation tests by entity, corrected for looking at many columns at once."""

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from evidence.errors import InputError


@dataclass(frozen=True)
class MaxTest:
    """A one-sided test of several columns at once.

    Attributes:
        difference: (column,) observed mean difference.
        p_value: (1 + b) / (1 + B) for the largest difference over columns.
        p_column: (column,) the same, each column against the null of the maximum.
        p_below: As ``p_value`` for the most negative difference: small means
            significantly *below* the floor, which is information or leakage.
        smallest_p: The least p these data and this many permutations can give.
        null_quantile: 95th percentile of the maximum under the null.
    """

    difference: NDArray[np.float64]
    p_value: float
    p_column: NDArray[np.float64]
    p_below: float
    smallest_p: float
    null_quantile: float


def max_test(
    observed: NDArray[np.float64], null: NDArray[np.float64], n_distinct: int
) -> MaxTest:
    """Hold an observed row against its null, the largest column of each draw.

    Args:
        observed: (column,) differences.
        null: (permutation, column) the same under the null.
        n_distinct: How many different permutations there are: a whole number, for with
            some hundred entities it is larger than any floating-point number.
    """
    top, bottom = null.max(1), null.min(1)
    n = len(null)
    # A rounding error must not turn a tie into a win: ties count against us.
    slack = 1e-12
    p_column = (1 + (top[:, None] >= observed - slack).sum(0)) / (1 + n)
    return MaxTest(
        difference=observed,
        p_value=float(p_column.min()),
        p_column=p_column,
        p_below=float((1 + (bottom <= observed.min() + slack).sum()) / (1 + n)),
        smallest_p=float(max(1 / (1 + n), 1 / n_distinct)),
        null_quantile=float(np.quantile(top, 0.95)),
    )


def unpaired_max_test(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    rng: np.random.Generator,
    n_permutations: int = 2000,
) -> MaxTest:
    """Are the entities of ``x`` higher than those of ``y`` in some column?

    Entities are exchanged between the two groups as whole rows, so the correlation
    between columns is kept and the maximum over columns is corrected for.

    Args:
        x: (entity, column).
        y: (other entity, column).
        rng: Generator of the permutations.
        n_permutations: How many are drawn.
    """
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 1:
        raise InputError("groups to compare need entities and the same columns")
    pooled, n = np.concatenate([x, y]), len(x)
    total = pooled.sum(0)
    # One mask a permutation turns the whole null into a single matrix product.
    order = rng.random((n_permutations, len(pooled))).argpartition(n - 1, axis=1)
    chosen = np.zeros((n_permutations, len(pooled)))
    np.put_along_axis(chosen, order[:, :n], 1.0, axis=1)
    sums = chosen @ pooled
    null = sums / n - (total - sums) / len(y)
    observed = x.mean(0) - y.mean(0)
    return max_test(observed, null, comb(len(pooled), n))


def paired_max_test(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    rng: np.random.Generator,
    n_permutations: int = 2000,
) -> MaxTest:
    """As ``unpaired_max_test`` for the same entities scored twice, row by row.

    Under the null the two scores of an entity may be swapped, which flips the sign of
    that entity's whole row of differences.
    """
    if x.shape != y.shape or len(x) < 1:
        raise InputError("paired groups need the same entities and columns")
    delta = x - y
    signs = rng.choice([-1.0, 1.0], size=(n_permutations, len(delta)))
    return max_test(delta.mean(0), signs @ delta / len(delta), 2 ** len(delta))
