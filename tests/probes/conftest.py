"""Rows with a class signal, seeded."""

import numpy as np
import pytest

from probes.solvers.compiled import dispatch


def make_rows(n, d, classes, groups, seed=0):
    """Off-centre rows of unequal column scales, shuffled labels, group of each row."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % classes)
    x = rng.standard_normal((n, d)) * rng.uniform(0.2, 3, d) + 4
    x[:, 0] += codes
    return x, codes, np.arange(n) % groups


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(scope="module")
def however_few():
    """The compiled way for small cases too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "MIN_PROBLEMS", 1)
        yield
