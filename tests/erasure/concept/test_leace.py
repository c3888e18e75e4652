"""LEACE: nothing linear is left, with the least change there is."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch.testing import assert_close

from erasure.concept.affine import AffineEraser
from erasure.concept.label_aware import OracleLeace
from erasure.concept.leace import Leace, shrink_covariance
from erasure.concept.moments import Moments
from erasure.concept.projections import MeanDifference
from evidence.arrays import RowsError
from tests.helpers.concept_rows import labelled, mean_gap, onehot, peer, spread

assert_exact = partial(assert_close, rtol=1e-8, atol=1e-9)


def cost(before, after):
    return np.square(np.asarray(before) - np.asarray(after)).sum()


def least_change(rows, target):
    """(P, offset) by the conditions of the optimum, a linear system of their own.

    Least trace of (I - P) S (I - P)' with P C = 0: row p of P solves
    [S C; C' 0] [p; l] = [S e; 0].
    """
    d, k = rows.shape[1], target.shape[1]
    both = np.cov(np.hstack([rows, target]).T, bias=True)
    cov, cross = both[:d, :d], both[:d, d:]
    system = np.block([[cov, cross], [cross.T, np.zeros((k, k))]])
    right = np.vstack([cov, np.zeros((k, d))])
    found = np.linalg.lstsq(system, right, rcond=1e-12)[0][:d].T
    return found, rows.mean(0) - found @ rows.mean(0)


CONCEPTS = {
    "two classes": lambda rng: labelled(rng),
    "five classes": lambda rng: labelled(rng, classes=5),
    "numbers": lambda rng: (lambda x: (x, x[:, :2] ** 2 + x[:, 1:3]))(labelled(rng)[0]),
}


@pytest.fixture(params=CONCEPTS)
def concept(request, rng):
    rows, target = CONCEPTS[request.param](rng)
    return rows, target, onehot(target) if target.ndim == 1 else target


def test_it_is_the_least_change_that_leaves_no_covariance(concept):
    rows, given_target, target = concept
    eraser = Leace().fit(rows, given_target).eraser_
    matrix, offset = least_change(rows, target)
    assert_exact(eraser.matrix.numpy(), matrix)
    assert_exact(eraser.offset.numpy(), offset)


def test_no_linear_reader_is_better_than_a_constant(concept):
    rows, given_target, target = concept
    assert LinearRegression().fit(rows, target).score(rows, target) > 0.2
    after = Leace().fit(rows, given_target).transform(rows)
    assert LinearRegression().fit(after, target).score(after, target) < 1e-10
    if given_target.ndim == 1:
        assert mean_gap(rows, given_target) > 0.2
        assert mean_gap(after, given_target) < 1e-12
        reader = LogisticRegression(C=1e6, tol=1e-8).fit(after, given_target)
        assert np.abs(reader.coef_).max() * spread(after) < 1e-3
        shares = np.bincount(given_target) / len(given_target)
        # A softmax of two classes has one intercept.
        assert np.allclose(reader.predict_proba(after).mean(0), shares, atol=1e-4)


def test_the_mean_stays_and_twice_is_once(concept):
    rows, given_target, _ = concept
    leace = Leace().fit(rows, given_target)
    after = leace.transform(rows)
    assert_close(after.mean(0), rows.mean(0))
    assert_close(leace.transform(after), after)


def test_rank_is_one_less_than_the_classes_or_the_free_columns(rng):
    rows, labels = labelled(rng, classes=4)
    assert Leace().fit(rows, labels).rank_ == 3
    numbers = rows[:, :2] + rng.standard_normal((300, 2))
    assert Leace().fit(rows, np.hstack([numbers, numbers])).rank_ == 2
    assert Leace().fit(rows, np.hstack([numbers, np.ones((300, 1))])).rank_ == 2


def test_it_moves_less_than_the_projection_and_more_than_the_oracle(concept):
    rows, given_target, _ = concept
    own = cost(rows, Leace().fit(rows, given_target).transform(rows))
    projected = cost(rows, MeanDifference().fit(rows, given_target).transform(rows))
    oracle_erased = OracleLeace.fit(rows, given_target).transform(rows, given_target)
    assert cost(rows, oracle_erased) < own < projected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), classes=st.integers(2, 4), power=st.integers(-9, 9))
def test_units_and_coordinates_do_not_matter(seed, classes, power):
    """x -> A x + c first, or after: the same; and so for any scale of x and of z."""
    rng = np.random.default_rng(seed)
    rows, labels = labelled(rng, n=80, d=4, classes=classes)
    after = Leace().fit(rows, labels).transform(rows)
    turn = rng.standard_normal((4, 4)) + 3 * np.eye(4)
    transformed = 10.0**power * (rows @ turn + 5.0)
    wanted = 10.0**power * (after @ turn + 5.0)
    error = np.abs(Leace().fit(transformed, labels).transform(transformed) - wanted).max()
    assert error < 1e-8 * spread(wanted)
    scaled = onehot(labels) * 10.0**power + 7.0
    assert_exact(Leace().fit(rows, scaled).transform(rows), after)


@pytest.mark.parametrize("scale", [0.02, 1e-6, 1e6])
def test_scaled_down_it_erases_as_well_where_the_peer_does_not(rng, scale):
    rows, labels = labelled(rng)
    whole = Leace().fit(rows, labels)
    small = Leace().fit(rows * scale, labels)
    assert small.rank_ == whole.rank_
    assert_exact(small.transform(rows * scale) / scale, whole.transform(rows))
    # A concept in small units: here the peer's absolute tolerance erases nothing.
    numbers = 0.02 * (labels[:, None] - 0.5)
    tiny = Leace().fit(rows, numbers)
    assert_exact(tiny.transform(rows), whole.transform(rows))
    x, z = torch.from_numpy(rows), torch.from_numpy(numbers)
    theirs = peer().LeaceEraser.fit(x, z, shrinkage=False)
    assert mean_gap(theirs(x), labels) > 0.2


def test_rare_classes_are_erased_where_the_peer_leaves_them(rng):
    """A class of one row in 400: its column varies little, which is no tolerance."""
    rows, labels = labelled(rng, n=12_000, classes=2)
    labels = np.where(np.arange(12_000) < 3, 2, labels)
    after = Leace().fit(rows, labels).transform(rows)
    assert mean_gap(after, labels) < 1e-10
    x, z = torch.from_numpy(rows), torch.from_numpy(onehot(labels))
    theirs = peer().LeaceEraser.fit(x, z, shrinkage=False)
    assert mean_gap(theirs(x), labels) > 0.01


def test_it_equals_the_peer_where_that_is_right(concept):
    rows, given_target, target = concept
    x, z = torch.from_numpy(rows), torch.from_numpy(target)
    theirs = peer().LeaceEraser.fit(x, z, shrinkage=False)(x)
    ours = Leace().fit(rows, given_target).transform(rows)
    assert np.abs(ours - theirs.numpy()).max() < 1e-6 * spread(rows)


def deficient(kind, rng):
    rows, labels = labelled(rng, n=200, d=12, classes=3)
    if kind == "fewer rows than features":
        some = np.concatenate([np.flatnonzero(labels == each)[:3] for each in range(3)])
        return rows[some], labels[some]
    if kind == "a constant feature":
        rows[:, 4] = 2.5
    elif kind == "a feature twice":
        rows[:, 4] = rows[:, 5]
    elif kind == "a sum of others":
        rows[:, 4] = rows[:, 5] - 3 * rows[:, 6]
    elif kind == "nearly a sum of others":
        rows[:, 4] = rows[:, 5] - 3 * rows[:, 6] + 1e-9 * rng.standard_normal(200)
    elif kind == "one huge feature":
        rows[:, 4] *= 1e6
    return rows, labels


DEFICIENT = [
    "fewer rows than features",
    "a constant feature",
    "a feature twice",
    "a sum of others",
    "nearly a sum of others",
    "one huge feature",
]


@pytest.mark.parametrize("kind", DEFICIENT)
def test_dependent_features_are_erased_to_the_last_digit(kind, rng):
    rows, labels = deficient(kind, rng)
    leace = Leace().fit(rows, labels)
    after = leace.transform(rows)
    scale = rows.std(0).clip(1e-300)
    means = np.stack([after[labels == each].mean(0) for each in range(3)])
    assert np.abs(means - after.mean(0)).max() < 1e-9 * scale.max()
    assert leace.rank_ == 2
    assert_close(leace.transform(after), after, rtol=1e-7, atol=1e-9 * scale.max())
    # The change is the least: that of the optimum's conditions.
    matrix, offset = least_change(rows, onehot(labels))
    if kind not in ("one huge feature", "nearly a sum of others"):
        wanted = rows @ matrix.T + offset
        assert cost(rows, after) == pytest.approx(cost(rows, wanted), rel=1e-6)


@pytest.mark.parametrize("kind", DEFICIENT[:4])
def test_off_the_span_of_the_rows_it_is_the_papers_map(kind, rng):
    """Pseudo-inverses by NumPy; and new rows are moved as the peer moves them."""
    rows, labels = deficient(kind, rng)
    d = rows.shape[1]
    cov = np.cov(rows.T, bias=True)
    sizes, axes = np.linalg.eigh(cov)
    kept = sizes > 1e-10 * sizes[-1]
    root = np.where(kept, np.sqrt(np.where(kept, sizes, 1)), 0)
    whiten = axes @ np.diag(np.where(kept, 1 / np.where(kept, root, 1), 0)) @ axes.T
    back = axes @ np.diag(root) @ axes.T
    cross = (rows - rows.mean(0)).T @ onehot(labels) / len(rows)
    u, s, _ = np.linalg.svd(whiten @ cross, full_matrices=False)
    u = u[:, s > 1e-8]
    matrix = np.eye(d) - back @ u @ u.T @ whiten
    eraser = Leace().fit(rows, labels).eraser_
    assert_close(eraser.matrix.numpy(), matrix, rtol=1e-6, atol=1e-7)
    new = rng.standard_normal((50, d))
    x, z = torch.from_numpy(rows), torch.from_numpy(onehot(labels))
    theirs = peer().LeaceEraser.fit(x, z, shrinkage=False)(torch.from_numpy(new))
    error = np.abs(eraser.transform(new) - theirs.numpy()).max()
    assert error < 1e-6 * np.abs(theirs.numpy()).max()


def test_sites_together_are_sites_apart_whatever_each_one_lacks(rng):
    rows, labels = labelled(rng, sites=4, classes=3)
    rows[1] = rows[1][:1]  # the embedding of a token that all items share
    rows[2, :, 3] = rows[2, :, 5]
    leace = Leace().fit(rows, labels)
    assert leace.rank_ == (2, 0, 2, 2)
    after = leace.transform(rows)
    for site in range(4):
        alone = Leace().fit(rows[site], labels)
        assert_exact(after[site], alone.transform(rows[site]))
        assert_close(leace.eraser_.at(site).transform(rows[site]), after[site])
    assert_close(after[1], rows[1])
    assert mean_gap(after, labels) < 1e-10


def test_a_concept_wider_than_the_rows_takes_everything(rng):
    """Twelve classes whose means span all six dimensions: only the mean stays."""
    rows, labels = labelled(rng, n=240, d=6, classes=12)
    leace = Leace().fit(rows, labels)
    assert leace.rank_ == 6
    assert np.abs(leace.transform(rows) - rows.mean(0)).max() < 1e-9 * spread(rows)


def test_a_concept_that_is_not_there_changes_nothing(rng):
    half = rng.standard_normal((100, 6))
    rows, labels = np.vstack([half, half]), np.repeat([0, 1], 100)
    leace = Leace().fit(rows, labels)
    assert leace.rank_ == 0
    assert np.array_equal(leace.transform(rows), rows)


def test_streamed_it_is_the_same(rng):
    rows, labels = labelled(rng, n=500, sites=2, classes=3)
    moments = Moments(classes=range(3))
    for start in range(0, 500, 7):
        moments.update(rows[:, start : start + 7], labels[start : start + 7])
    streamed = Leace().fit_moments(moments)
    assert_close(streamed.transform(rows), Leace().fit(rows, labels).transform(rows))


def test_what_comes_first_is_forgotten(rng):
    first, second = labelled(rng, classes=3), labelled(rng, d=7)
    leace = Leace().fit(*first).fit(*second)
    assert_close(leace.eraser_.matrix, Leace().fit(*second).eraser_.matrix)
    assert leace.n_features_in_ == 7


@pytest.mark.parametrize("share", [0.3, 1.0, "oas"])
def test_with_shrinkage_nothing_is_left_either(rng, share):
    rows, labels = labelled(rng, n=14, d=30)
    leace = Leace(shrinkage=share).fit(rows, labels)
    assert mean_gap(leace.transform(rows), labels) < 1e-10
    assert_close(leace.transform(leace.transform(rows)), leace.transform(rows))


def test_with_few_rows_shrinkage_moves_others_less_and_leaves_as_much(rng):
    """What is left of the concept in new rows is the rank's doing, not the metric's."""
    d, n, fresh = 40, 30, 4_000
    shift = rng.standard_normal(d)

    def draw(count):
        labels = np.arange(count) % 2
        return rng.standard_normal((count, d)) + np.outer(labels, shift), labels

    rows, labels = draw(n)
    others, theirs = draw(fresh)
    moved, read = {}, {}
    for share in (0.0, "oas"):
        after = Leace(shrinkage=share).fit(rows, labels).transform(others)
        moved[share] = cost(others, after)
        reader = LogisticRegression(max_iter=1000).fit(after[::3], theirs[::3])
        read[share] = reader.score(after, theirs)
    assert moved["oas"] < 0.7 * moved[0.0]
    assert abs(read["oas"] - read[0.0]) < 0.02
    assert read[0.0] > 0.6  # thirty rows do not say enough about forty features


def test_oas_shrinks_as_the_formula_says_and_next_to_nothing_with_many_rows(rng):
    rows, labels = labelled(rng, n=40, d=8)
    moments = Moments().update(rows, labels)
    cov = moments.cov_xx
    trace, square, d, n = cov[0].trace(), cov[0].square().sum(), 8, 40
    rho = (1 - 2 / d) * square + trace**2
    rho = rho / ((n + 1 - 2 / d) * (square - trace**2 / d))
    wanted = (1 - rho) * cov[0] + rho * trace / d * torch.eye(d)
    assert_close(shrink_covariance(cov, n, "oas")[0], wanted)
    # scikit-learn leaves out the terms 2 / d, which are small.
    theirs = OAS().fit(rows).covariance_
    assert_close(wanted.numpy(), theirs, rtol=0.1, atol=0.02 * np.abs(theirs).max())
    assert_close(shrink_covariance(cov, 10**9, "oas"), cov, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_types_in_are_types_out(rng, kind):
    rows, labels = labelled(rng, offset=40.0)
    x = torch.from_numpy(rows).to(kind)
    leace = Leace().fit(x, torch.from_numpy(labels))
    after = leace.transform(x)
    assert after.dtype == kind
    # A mean of n rounded numbers; their size is that of the offset.
    assert mean_gap(after.double(), labels) < 4 * 40 * torch.finfo(kind).eps


def test_a_file_gives_back_the_same_eraser(rng, tmp_path):
    rows, labels = labelled(rng, sites=3, classes=3)
    leace = Leace().fit(rows, labels)
    leace.save(tmp_path / "leace.safetensors")
    loaded = AffineEraser.load(tmp_path / "leace.safetensors")
    assert np.array_equal(loaded.transform(rows), leace.transform(rows))
    assert loaded.rank_ == leace.rank_
    assert repr(loaded) == repr(leace.eraser_)
    assert [each.name for each in tmp_path.iterdir()] == ["leace.safetensors"]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"tolerance": -1.0}, "tolerance is out of range"),
        ({"tolerance": 1.0}, "tolerance is out of range"),
        ({"shrinkage": 1.5}, "unknown shrinkage"),
        ({"shrinkage": "lw"}, "unknown shrinkage"),
    ],
)
def test_parameters_out_of_range_are_refused(rng, parameters, words):
    with pytest.raises(RowsError, match=words):
        Leace(**parameters).fit(*labelled(rng))


def test_a_concept_that_does_not_vary_is_refused(rng):
    with pytest.raises(RowsError, match="only one class"):
        Leace().fit(labelled(rng)[0], np.ones(300))
