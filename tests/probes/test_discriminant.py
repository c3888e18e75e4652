"""Held-out discriminants keep their digits where the ridge is next to nothing."""

import numpy as np
import pytest
import torch

from probes.estimators.lda import LDAProbe
from probes.splits.folds import leave_one_group_out


def refitted(x, y, train, row, shrinkage):
    """The decision value in extended precision, by the rows' smaller side."""
    x = x.astype(np.longdouble)
    means = [x[train & (y == code)].mean(0) for code in (0, 1)]
    within = np.concatenate([x[train & (y == code)] - means[code] for code in (0, 1)])
    n, d = within.shape
    ridge = shrinkage * (within**2).sum() / (n * d)
    share = (1 - shrinkage) / n
    system = within @ within.T + np.eye(n, dtype=np.longdouble) * ridge / share
    apart = means[1] - means[0]
    # Solved in double, refined in extended precision.
    inverse = np.linalg.inv(system.astype(float)).astype(np.longdouble)
    side, inner = within @ apart, np.zeros(n, dtype=np.longdouble)
    for _ in range(60):
        inner = inner + inverse @ (side - system @ inner)
    coef = (apart - within.T @ inner) / ridge
    share_of_one = y[train].mean()
    offset = np.log(share_of_one / (1 - share_of_one))
    return float((x[row] - (means[0] + means[1]) / 2) @ coef + offset)


@pytest.mark.parametrize("d", [30, 60, 150])
@pytest.mark.parametrize(("shrinkage", "tolerance"), [(0.1, 1e-12), (1e-4, 1e-10), (1e-6, 1e-8)])
def test_small_shrinkage_costs_no_more_digits_than_it_must(d, shrinkage, tolerance):
    rng = np.random.default_rng(0)
    n = 60
    y = rng.permutation(np.arange(n) % 2)
    x = rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.6
    x = x @ np.linalg.qr(rng.normal(size=(d, d)))[0] + 3.0
    folds = leave_one_group_out(None, n)
    rows, codes = torch.from_numpy(x), torch.from_numpy(y)[None]
    found = LDAProbe(shrinkage).held_out(rows, codes, 2, folds).scores[0, 0].numpy()
    some = range(0, n, 12)
    expected = [refitted(x, y, folds.train[row], row, shrinkage) for row in some]
    gap = np.abs(found[list(some)] - expected).max()
    assert gap <= tolerance * np.abs(expected).max()
