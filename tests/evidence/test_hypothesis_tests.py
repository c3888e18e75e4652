"""Permutation tests: level under the null, power, ties, and the floor of p."""

import numpy as np
import pytest
from scipy import stats

from evidence import hypothesis_tests
from evidence.errors import InputError
from evidence.hypothesis_tests import paired_max_test, unpaired_max_test


def noise(rng, n, columns, rate=0.3):
    shared = rng.random((n, 1)) < rate
    own = rng.random((n, columns)) < rate
    return np.where(rng.random((n, columns)) < 0.5, shared, own).astype(float)


@pytest.mark.parametrize("test", [unpaired_max_test, paired_max_test])
def test_level_holds_over_many_correlated_columns(test):
    rng = np.random.default_rng(0)
    p = [test(noise(rng, 20, 8), noise(rng, 20, 8), rng, 199).p_value for _ in range(300)]
    rejected = np.mean(np.array(p) < 0.05)
    # Discrete scores make the test conservative, never liberal.
    assert rejected <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize("test", [unpaired_max_test, paired_max_test])
def test_p_values_are_uniform_for_continuous_noise(test):
    rng = np.random.default_rng(1)
    p = [test(rng.random((15, 3)), rng.random((15, 3)), rng, 199).p_value for _ in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize("test", [unpaired_max_test, paired_max_test])
def test_one_strong_column_is_found_and_named(test):
    rng = np.random.default_rng(2)
    x, y = noise(rng, 20, 6), noise(rng, 20, 6)
    x[:, 4] = 1.0
    found = test(x, y, rng, 999)
    assert found.p_value < 0.01
    assert int(np.argmin(found.p_column)) == 4
    assert found.p_below > 0.2


def test_below_the_floor_is_reported_as_such():
    rng = np.random.default_rng(3)
    found = unpaired_max_test(np.zeros((20, 1)), np.ones((20, 1)), rng, 999)
    assert found.p_below < 0.01
    assert found.p_value > 0.9


def test_all_ties_are_no_evidence():
    rng = np.random.default_rng(4)
    found = unpaired_max_test(np.ones((10, 2)), np.ones((10, 2)), rng, 99)
    assert found.p_value == 1.0


def test_the_smallest_p_of_few_entities_is_told():
    rng = np.random.default_rng(5)
    assert paired_max_test(np.ones((5, 1)), np.zeros((5, 1)), rng, 9999).smallest_p == (
        pytest.approx(1 / 32)
    )
    assert unpaired_max_test(
        np.ones((3, 1)), np.zeros((3, 1)), rng, 9999
    ).smallest_p == pytest.approx(1 / 20)


@pytest.mark.parametrize("test", [unpaired_max_test, paired_max_test])
@pytest.mark.parametrize("n", [40, 120, 2000])
def test_many_entities_are_no_trouble(test, n):
    # There are more permutations of them than the largest floating-point number.
    rng = np.random.default_rng(9)
    found = test(np.ones((n, 1)), np.zeros((n, 1)), rng, 19)
    assert found.smallest_p == 1 / 20
    assert found.p_value == 1 / 20


def test_chunks_of_the_same_stream_do_not_matter():
    x, y = np.random.default_rng(6).random((2, 12, 3))
    one = unpaired_max_test(x, y, np.random.default_rng(7), 500)
    two = unpaired_max_test(x, y, np.random.default_rng(7), 500)
    assert one.p_value == two.p_value


def test_unequal_columns_are_refused():
    rng = np.random.default_rng(8)
    with pytest.raises(InputError):
        unpaired_max_test(np.ones((3, 2)), np.ones((3, 1)), rng)
    with pytest.raises(InputError):
        paired_max_test(np.ones((3, 2)), np.ones((4, 2)), rng)


@pytest.mark.parametrize("test", [unpaired_max_test, paired_max_test])
def test_permutations_drawn_in_parts_are_as_many_and_as_valid(test, monkeypatch):
    rng = np.random.default_rng(3)
    x, y = rng.random((20, 4)), rng.random((20, 4))
    whole = test(x, y, np.random.default_rng(0), 199)
    monkeypatch.setattr(hypothesis_tests, "MAX_DRAWN", 1000)
    parts = test(x, y, np.random.default_rng(0), 199)
    assert parts.smallest_p == whole.smallest_p
    assert parts.difference.tolist() == whole.difference.tolist()
    assert abs(parts.p_value - whole.p_value) < 0.15
    if test is unpaired_max_test:  # row by row, from the same stream
        assert parts.p_column.tolist() == whole.p_column.tolist()
