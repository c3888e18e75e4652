"""The depth score against its formula by hand, and what it must not hide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution.patching.depth_score import unlearning_depth
from evidence.errors import InputError


def test_the_formula_by_hand():
    first = np.array([[0.0, 1.0, 3.0], [0.02, 0.04, 2.0]])
    second = np.array([[5.0, 0.5, 6.0], [1.0, 1.0, 0.0]])
    depth = unlearning_depth(first, second)
    # Layer 0 holds neither item; layer 1 only the first.
    assert depth.score == pytest.approx([(1 * 0.5 + 3 * 1.0) / 4, 0.0])
    assert depth.mean == pytest.approx(3.5 / 8)
    assert np.isnan(depth.loss_ratio[0])
    assert depth.loss_ratio[1:] == pytest.approx([0.5, 6 / 5])
    assert depth.min_ratio == pytest.approx(0.5)
    assert depth.excess_share == pytest.approx(1 / 3)


def test_intact_is_nought_and_the_twin_itself_is_one():
    first = np.array([[0.5, 2.0], [1.0, 4.0]])
    intact = unlearning_depth(first, np.zeros_like(first))
    assert (intact.mean, intact.min_ratio, intact.excess_share) == (0.0, 0.0, 0.0)
    twin = unlearning_depth(first, first)
    assert (twin.mean, twin.min_ratio, twin.excess_share) == (1.0, 1.0, 0.0)


def test_more_than_the_twin_lost_is_reported():
    first = np.full((3, 2), 2.0)
    depth = unlearning_depth(first, 3 * first)
    assert depth.mean == 1.0
    assert depth.min_ratio == 3.0
    assert depth.excess_share == 1.0


def test_items_that_no_layer_holds_have_no_score():
    depth = unlearning_depth(np.full((2, 2), 0.01), np.ones((2, 2)))
    assert np.isnan(depth.score).all()
    assert np.isnan([depth.mean, depth.min_ratio, depth.excess_share]).all()


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
def test_the_score_lies_between_nought_and_one(items, layers, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(1, 2, (2, items, layers))
    depth = unlearning_depth(first, second)
    known = depth.score[~np.isnan(depth.score)]
    assert ((known >= 0) & (known <= 1)).all()
    order = rng.permutation(layers)
    permuted = unlearning_depth(first[:, order], second[:, order])
    assert np.allclose(permuted.score, depth.score, equal_nan=True)


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="differ in shape"):
        unlearning_depth(np.ones((2, 3)), np.ones((2, 2)))
