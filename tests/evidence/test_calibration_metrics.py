import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence.calibration_metrics import (
    expected_calibration_error,
    reliability,
    risk_coverage_curve,
)
from evidence.errors import InputError

ANSWERS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60).map(
    lambda pairs: tuple(map(list, zip(*pairs, strict=True)))
)


def test_known_answers():
    confidence, right = [0.95, 0.95, 0.55, 0.55], [True, True, True, False]
    low, high = reliability(confidence, right)
    assert (low.n, low.confidence, low.right) == (2, 0.55, 0.5)
    assert (high.low, high.high, high.right) == (0.9, 1.0, 1.0)
    assert expected_calibration_error(confidence, right) == pytest.approx(0.05)
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1.0
    kept, wrong = risk_coverage_curve(confidence, right)
    # The two of equal confidence come together.
    assert kept.tolist() == [0.5, 1.0]
    assert wrong.tolist() == [0.0, 0.25]


@given(ANSWERS)
def test_bins_hold_every_answer_once_and_full_coverage_is_all(answers):
    confidence, right = answers
    found = reliability(confidence, right)
    assert sum(each.n for each in found) == len(right)
    for each in found:  # a mean of equal numbers may be rounded past them
        assert each.low - 1e-12 <= each.confidence <= each.high + 1e-12
    kept, wrong = risk_coverage_curve(confidence, right)
    assert kept[-1] == 1.0
    assert wrong[-1] == pytest.approx(1 - np.mean(right))
    assert (np.diff(kept) > 0).all()
    order = np.random.default_rng(0).permutation(len(right))
    reordered = risk_coverage_curve(np.array(confidence)[order], np.array(right)[order])
    np.testing.assert_allclose(reordered, (kept, wrong))


def test_true_probabilities_have_a_small_error():
    rng = np.random.default_rng(3)
    confidence = rng.uniform(size=20_000)
    right = rng.uniform(size=20_000) < confidence
    assert expected_calibration_error(confidence, right) < 0.02
    assert expected_calibration_error(confidence, ~right) > 0.3


@pytest.mark.parametrize("confidence, right", [([], []), ([0.5], [True, False]), ([1.2], [True])])
def test_what_is_no_probability_is_refused(confidence, right):
    with pytest.raises(InputError):
        reliability(confidence, right)
