"""CAD: its known values, what it does not depend on, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from attribution.circuits.divergence import divergence, retained_mass
from evidence.errors import InputError

ORIGINAL = np.array([-4.0, 2.0, 0.5, -0.25, 0.0, 0.1])
CHOSEN = np.array([True, True, False, False, False, False])
TABLES = arrays(float, (5, 6), elements=st.floats(-9, 9, width=32))


def test_the_original_itself_has_lost_nothing():
    same = np.tile(ORIGINAL, (3, 1))
    assert retained_mass(same, ORIGINAL, CHOSEN).tolist() == [1.0, 1.0, 1.0]
    found = divergence(same, ORIGINAL, CHOSEN)
    assert (found.mass_lost, found.overlap) == (0.0, 1.0)
    assert found.shape == pytest.approx(0, abs=1e-12)
    assert found.rank == pytest.approx(1)


def test_half_the_scores_are_half_the_mass_and_the_same_shape():
    half = np.tile(ORIGINAL / 2, (3, 1))
    assert retained_mass(half, ORIGINAL, CHOSEN) == pytest.approx([0.5] * 3)
    found = divergence(half, ORIGINAL, CHOSEN)
    assert found.mass_lost == pytest.approx(0.5)
    assert found.shape == pytest.approx(0, abs=1e-12)


def test_edges_that_turned_round_keep_their_size_and_lose_their_direction():
    flipped = -np.tile(ORIGINAL, (3, 1))
    assert retained_mass(flipped, ORIGINAL, CHOSEN) == pytest.approx([-1] * 3)
    assert divergence(flipped, ORIGINAL, CHOSEN).mass_lost == pytest.approx(0)


def test_scores_of_either_sign_average_out():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4000, 6)) * 4
    assert abs(retained_mass(noise, ORIGINAL, CHOSEN).mean()) < 0.05


def test_a_silent_candidate_has_lost_all_and_has_no_shape():
    found = divergence(np.zeros((3, 6)), ORIGINAL, CHOSEN)
    assert (found.mass_lost, found.shape, found.rank) == (1.0, 1.0, 0.0)


def test_another_circuit_shows_in_shape_and_overlap():
    moved = np.tile(ORIGINAL[::-1], (3, 1))
    found = divergence(moved, ORIGINAL, CHOSEN)
    # Of C and C' together, each side's mass: (4, 2, 0, .1) and (.1, 0, 2, 4).
    p, q = np.array([4, 2, 0, 0.1]) / 6.1, np.array([0.1, 0, 2, 4]) / 6.1
    m = (p + q) / 2
    terms = [x[x > 0] @ np.log2(x[x > 0] / m[x > 0]) for x in (p, q)]
    assert found.shape == pytest.approx(sum(terms) / 2)
    assert found.overlap == 0.0


@settings(max_examples=50, deadline=None)
@given(TABLES, st.permutations(range(6)))
def test_the_order_of_edges_and_entities_does_not_matter(table, order):
    table = table + np.arange(6) * 1e-3  # no ties, which are broken by place
    one = divergence(table, ORIGINAL, CHOSEN)
    order = list(order)
    other = divergence(table[::-1][:, order], ORIGINAL[order], CHOSEN[order])
    for name in ("mass_lost", "shape", "rank", "overlap"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), abs=1e-9)
    assert 0 <= one.shape <= 1 + 1e-9 and 0 <= one.overlap <= 1
    expected = np.asarray(spearmanr(np.abs(ORIGINAL), np.abs(table.mean(0))))[0]
    if np.isfinite(expected):
        assert one.rank == pytest.approx(expected, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(TABLES)
def test_kept_mass_never_exceeds_what_absolute_mass_allows(table):
    kept = retained_mass(table, ORIGINAL, CHOSEN).mean()
    assert kept <= 1 - divergence(table, ORIGINAL, CHOSEN).mass_lost + 1e-9


@pytest.mark.parametrize(
    ("table", "chosen", "message"),
    [
        (np.zeros((2, 5)), CHOSEN, "different graphs"),
        (np.zeros((2, 6)), np.zeros(6, bool), "carries nothing"),
        (np.zeros((2, 6)), np.arange(6) == 4, "carries nothing"),
    ],
)
def test_what_has_no_meaning_is_refused(table, chosen, message):
    with pytest.raises(InputError, match=message):
        retained_mass(table, ORIGINAL, chosen)
    with pytest.raises(InputError, match=message):
        divergence(table, ORIGINAL, chosen)
