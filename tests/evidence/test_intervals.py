"""Intervals by entity: against statsmodels, at the edges, and under clustering."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from evidence.errors import InputError
from evidence.intervals import (
    EntityValues,
    average_by_entity,
    difference_interval,
    effective_sample_size,
    paired_correlation,
    rate_interval,
    wilson_interval,
)


def group(column, n_items):
    names = tuple(map(str, range(len(column))))
    return EntityValues(column[:, None], n_items, names)


@pytest.mark.parametrize("correlated", [False, True])
def test_interval_of_fine_grades_is_as_wide_as_they_vary(correlated):
    rng = np.random.default_rng(2)
    covered, widths = 0, []
    for _ in range(400):
        scores = rng.random((24, 6))
        if correlated:
            scores = scores[:, :1].repeat(6, 1)
        names = [str(i) for i in range(24) for _ in range(6)]
        low, high = rate_interval(average_by_entity(scores.ravel(), names), level=0.9)
        covered += low <= 0.5 <= high
        widths.append(high - low)
    assert 0.87 <= covered / 400 <= 0.96
    # Yes/no items would give 0.14 and 0.33.
    assert np.mean(widths) < (0.22 if correlated else 0.10)


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (1, 20), (7, 24), (20, 20)])
def test_wilson_matches_statsmodels(hits, n):
    reference = proportion_confint(hits, n, method="wilson")
    assert wilson_interval(hits / n, n, 1.959963984540054) == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize(("a", "b"), [((5, 20), (1, 20)), ((0, 24), (0, 24))])
def test_difference_of_two_rates_is_newcombes(a, b):
    quantile = 1.959963984540054
    low, high = difference_interval(
        a[0] / a[1],
        wilson_interval(a[0] / a[1], a[1], quantile),
        b[0] / b[1],
        wilson_interval(b[0] / b[1], b[1], quantile),
    )
    reference = confint_proportions_2indep(*a, *b, method="newcomb")
    assert (low, high) == pytest.approx(reference, abs=1e-9)


@given(st.integers(2, 200), st.floats(0.8, 0.999))
def test_all_wrong_never_gives_a_zero_width_interval(n, level):
    low, high = rate_interval(group(np.zeros(n), 3 * n), level=level)
    assert low == 0.0
    assert 0 < high <= 1


def test_perfectly_correlated_items_count_once_an_entity():
    # 10 entities with 5 equal items each are worth 10 trials, not 50.
    column = np.array([1.0, 0.0] * 5)
    assert effective_sample_size(group(column, 50), 0) == pytest.approx(9, abs=1.5)


def test_independent_items_count_nearly_all():
    rng = np.random.default_rng(0)
    column = rng.binomial(20, 0.5, size=400) / 20
    assert effective_sample_size(group(column, 8000), 0) > 6000


def test_interval_covers_the_truth_under_clustering():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        rates = rng.beta(0.5, 0.5, size=24)  # strong correlation within an entity
        column = rng.binomial(4, rates) / 4
        low, high = rate_interval(group(column, 96))
        covered += low <= 0.5 <= high
    assert 0.92 <= covered / 400 <= 0.99


def test_by_entity_weighs_entities_not_items():
    values = average_by_entity(np.array([1, 1, 1, 0]), ["a", "a", "a", "b"])
    assert values.mean[0] == 0.5
    assert values.entities == ("a", "b")
    assert values.n_items == 4


@pytest.mark.parametrize(
    ("values", "entities"), [([], []), ([1.0], ["a", "b"]), ([2.0], ["a"]), ([float("nan")], ["a"])]
)
def test_by_entity_refuses_what_is_no_rate(values, entities):
    with pytest.raises(InputError):
        average_by_entity(np.array(values), entities)


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_paired_interval_covers_and_shrinks_with_correlation(shared):
    rng = np.random.default_rng(3)
    covered, widths = 0, []
    for _ in range(400):
        common = rng.random((24, 1))
        x, y = (shared * common + (1 - shared) * rng.random((24, 1)) for _ in range(2))
        a, b = (average_by_entity(v, [str(i) for i in range(24)]) for v in (x, y))
        low, high = difference_interval(
            a.mean[0],
            rate_interval(a, level=0.9),
            b.mean[0],
            rate_interval(b, level=0.9),
            paired_correlation(x[:, 0], y[:, 0]),
        )
        covered += low <= 0 <= high
        widths.append(high - low)
    assert 0.86 <= covered / 400 <= 0.97
    assert np.mean(widths) < (0.1 if shared else 0.3)
