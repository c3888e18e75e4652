"""Readers of hidden states on degenerate sites."""

import numpy as np
import pytest

from audits.readers import fit_readers
from evidence.progress import SILENT


def states(rows=90, width=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(3, 2, size=(3, rows, width)).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 20])
def test_a_site_of_equal_rows_reads_nothing(classes):
    """An embedding read at one and the same token, in float32."""
    x = states(216, 128)
    rng = np.random.default_rng(2)
    x[0] = rng.normal(0, 0.1, size=128).astype(np.float32)
    (reader,) = fit_readers(x, [np.arange(216) % classes], 0.003, SILENT)
    assert not reader.weights[0].any() and not reader.bias[0].any()
    assert reader.weights[1].any()
