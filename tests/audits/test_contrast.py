"""Telling an entity's answer from the others': exact, and fair to priors."""

import numpy as np
import pytest

from audits.contrast import contrast_of
from audits.data import ask
from capture.items import Item


def questions(n, answers):
    return ask(
        [Item(f"i{k}", f"e{k}", f"Where is e{k}?", answers[k], "r") for k in range(n)],
        1,
    )


def test_the_right_answer_above_all_others_scores_one():
    asked = questions(4, ["a", "b", "c", "d"])
    assert contrast_of(asked, np.eye(4), np.arange(4)).tolist() == [1.0] * 4


def test_liking_one_answer_for_everybody_scores_one_half():
    asked = questions(4, ["a", "b", "c", "d"])
    liked = np.tile([9.0, 0.0, 0.0, -9.0], (4, 1))
    assert contrast_of(asked, liked, np.arange(4)).tolist() == [0.5] * 4


def test_a_suppressed_answer_that_still_goes_with_its_entity_is_seen():
    asked = questions(4, ["a", "b", "c", "d"])
    table = np.eye(4) - 100 * np.array([0, 0, 1, 1])
    assert contrast_of(asked, table, np.arange(4)).tolist() == [1.0] * 4


def test_noise_scores_one_half_on_average():
    n = 400
    rng = np.random.default_rng(0)
    right = rng.integers(0, 20, n)
    asked = questions(n, [f"a{k}" for k in right])
    found = contrast_of(asked, rng.normal(size=(n, 20)), right)
    assert found.mean() == pytest.approx(0.5, abs=0.05)


def test_not_a_number_counts_as_a_tie_and_one_answer_as_nothing_known():
    asked = questions(3, ["a", "b", "c"])
    broken = np.full((3, 3), np.nan)
    assert contrast_of(asked, broken, np.arange(3)).tolist() == [0.5] * 3
    same = questions(3, ["a", "a", "a"])
    assert contrast_of(same, np.ones((3, 1)), np.zeros(3, int)).tolist() == [0.5] * 3
