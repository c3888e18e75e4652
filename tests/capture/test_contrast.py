"""Telling an entity's answer from the others': exact, and fair to priors."""

import numpy as np
import pytest

from capture.data.items import Item
from capture.data.questions import build_questions
from capture.data.sequences import Sequences
from capture.scoring.answers import score_answers
from capture.scoring.contrast import (
    discriminating_tokens,
    entity_contrast,
    first_tokens,
    score_questions,
)
from evidence.errors import InputError
from tests.helpers.tiny_models import llama


def questions(n, answers):
    return build_questions(
        [Item(f"i{k}", f"e{k}", f"Where is e{k}?", answers[k], "r") for k in range(n)], 1
    )


def test_the_right_answer_above_all_others_scores_one():
    asked = questions(4, ["a", "b", "c", "d"])
    assert entity_contrast(asked, np.eye(4), np.arange(4)).tolist() == [1.0] * 4


def test_liking_one_answer_for_everybody_scores_one_half():
    asked = questions(4, ["a", "b", "c", "d"])
    liked = np.tile([9.0, 0.0, 0.0, -9.0], (4, 1))
    assert entity_contrast(asked, liked, np.arange(4)).tolist() == [0.5] * 4


def test_a_suppressed_answer_that_still_goes_with_its_entity_is_seen():
    asked = questions(4, ["a", "b", "c", "d"])
    table = np.eye(4) - 100 * np.array([0, 0, 1, 1])
    assert entity_contrast(asked, table, np.arange(4)).tolist() == [1.0] * 4


def test_noise_scores_one_half_on_average():
    n = 400
    rng = np.random.default_rng(0)
    right = rng.integers(0, 20, n)
    asked = questions(n, [f"a{k}" for k in right])
    found = entity_contrast(asked, rng.normal(size=(n, 20)), right)
    assert found.mean() == pytest.approx(0.5, abs=0.05)


def test_not_a_number_counts_as_a_tie_and_one_answer_as_nothing_known():
    asked = questions(3, ["a", "b", "c"])
    broken = np.full((3, 3), np.nan)
    assert entity_contrast(asked, broken, np.arange(3)).tolist() == [0.5] * 3
    same = questions(3, ["a", "a", "a"])
    assert entity_contrast(same, np.ones((3, 1)), np.zeros(3, int)).tolist() == [0.5] * 3


def coded(n, rng):
    """Questions with codes of three tokens, and their rows."""
    codes = rng.integers(2, 12, size=(n, 3))
    asked = questions(n, ["".join(map(str, code)) for code in codes])
    ids = [(20 + k % 7, 30 + k, *map(int, code)) for k, code in enumerate(codes)]
    return asked, Sequences(tuple(ids), (2,) * n)


def test_codes_are_told_apart_at_every_place():
    rng = np.random.default_rng(4)
    asked, rows = coded(12, rng)
    watch, right = discriminating_tokens(rows)
    assert right.shape == (12, 3)
    for row, ids in enumerate(rows.ids):
        assert [watch[at] for at in right[row]] == list(enumerate(ids[2:]))
    # The second digit is known and no other: as far as that goes.
    logits = np.zeros((12, len(watch)))
    logits[np.arange(12), right[:, 1]] = 1
    assert entity_contrast(asked, logits, right) == pytest.approx(2 / 3)
    whole = np.zeros((12, len(watch)))
    np.put_along_axis(whole, right, 1.0, axis=1)
    assert entity_contrast(asked, whole, right) == pytest.approx(1)


def test_a_place_where_all_answers_agree_tells_nothing():
    asked = questions(3, ["19a", "19b", "19c"])
    rows = Sequences(tuple((7, 1, 9, k) for k in (3, 4, 5)), (1,) * 3)
    watch, right = discriminating_tokens(rows)
    logits = np.zeros((3, len(watch)))
    logits[np.arange(3), right[:, 2]] = 1
    assert entity_contrast(asked, logits, right) == pytest.approx(1)


def test_of_answers_of_several_lengths_the_first_token_tells():
    rows = Sequences(((7, 1, 9), (7, 2), (7, 1, 4)), (1, 1, 1))
    watch, right = discriminating_tokens(rows)
    assert watch == [(0, 1), (0, 2)]
    assert right[:, 0].tolist() == [0, 1, 0]
    assert first_tokens(rows) == [1, 2, 1]


def test_a_model_is_watched_place_by_place():
    rng = np.random.default_rng(5)
    asked, rows = coded(9, rng)
    model = llama(60).eval()
    watch, _ = discriminating_tokens(rows)
    # Brute force: each place by itself, with what comes before it as the prompt.
    found = []
    for place in range(3):
        cut = Sequences(rows.ids, tuple(start + place for start in rows.answer_start))
        tokens = [token for at, token in watch if at == place]
        scores = score_answers(model, cut, watch=tokens)
        own = np.array([tokens.index(each) for each in first_tokens(cut)])
        found.append(entity_contrast(asked, scores.watched, own))
    question_scores = score_questions(model, asked, rows)
    np.testing.assert_allclose(question_scores.contrast, np.mean(found, axis=0), atol=1e-12)


def test_watching_beyond_an_answers_end_is_refused():
    rows = Sequences(((7, 1, 9), (7, 2)), (1, 1))
    with pytest.raises(InputError, match="beyond the end of an answer"):
        score_answers(llama(60), rows, watch=[(1, 3)])
