"""Which models count as damaged."""

import numpy as np
import pytest

from audits.core.answers import distinct_share
from audits.core.baseline_scores import GeneralText, SiteRank, Utility
from audits.core.config import Rule, make_config
from audits.core.preflight import compare_utility, effective_rank
from evidence.errors import InputError


def useful(retain=1.0, general=-3.0, texts=("a b c d",), rank=10.0, n=100):
    return Utility(
        tuple(int(i < retain * n) for i in range(n)),
        GeneralText(general, -10.0),
        ("Once",),
        tuple(texts),
        (SiteRank("resid.3", rank),),
    )


@pytest.mark.parametrize(
    ("candidate", "word"),
    [
        (useful(retain=0.5), "retain accuracy"),
        (useful(general=-3.5), "general text"),
        (useful(texts=("and and and and",)), "repeats"),
        (useful(rank=1.5), "effective rank"),
    ],
)
def test_each_sign_of_damage_is_found_and_named(candidate, word):
    found = compare_utility(useful(), candidate, Rule())
    assert found.found
    assert word in found.reasons[0]


def test_a_model_that_is_well_is_not_damaged():
    assert not compare_utility(useful(), useful(retain=0.9, general=-3.1), Rule()).found


def test_text_the_original_cannot_read_does_not_count():
    original = useful(general=-9.0)
    found = compare_utility(original, useful(general=-30.0), Rule())
    assert not found.found
    assert "general text, probability a token" not in found.shares


def test_effective_rank_counts_directions():
    rng = np.random.default_rng(0)
    full = effective_rank(rng.normal(size=(2000, 10)))
    flat = effective_rank(np.outer(rng.normal(size=50), rng.normal(size=10)))
    assert full == pytest.approx(10, rel=0.05)
    assert flat == pytest.approx(1)
    assert effective_rank(np.ones((5, 3))) == 1.0
    assert effective_rank(np.full((5, 3), np.nan)) == 1.0


def test_repetition_is_measured_in_words():
    assert distinct_share(["and and and and"]) == 0.25
    assert distinct_share([""]) == 0.0


@pytest.mark.parametrize(
    "settings", [{"profil": "quick"}, {"profile": "huge"}, {"axes": ("smell",)}, {"seed": -1}]
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(InputError, match="known settings"):
        make_config(settings)
