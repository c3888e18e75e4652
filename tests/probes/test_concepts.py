"""Concept vectors against scikit-learn, one concept and site at a time; on noise."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from evidence.errors import InputError
from evidence.seeds import numpy_rng
from probes.concepts.directions import METHODS, draw_pairs, shifted_solve
from probes.concepts.labels import Concepts, concepts_of, crossed_folds, random_concepts
from probes.concepts.quality import alignment, separability, stability
from probes.concepts.tcav import shift_vectors, tcav
from probes.concepts.vectors import concept_vectors
from probes.splits.folds import k_fold

SITES, ROWS, WIDTH, VALUES, ENTITIES = 3, 120, 10, 4, 40


def world(rng, width=WIDTH, strength=2.0):
    """Rows of entities with one label each; every label moves its own direction."""
    entity = np.arange(ROWS) % ENTITIES
    label = (np.arange(ENTITIES) % VALUES)[entity]
    truth = np.linalg.qr(rng.standard_normal((width, VALUES)))[0].T
    scale = rng.uniform(0.3, 3, width)
    x = rng.standard_normal((SITES, ROWS, width)) * scale + 3
    return x + strength * truth[label], label, entity, truth


def unit(v):
    return v / np.linalg.norm(v)


def one_by_one(x, marks, method):
    """What scikit-learn or the definition gives for one concept at one site."""
    used = marks >= 0
    x, y = x[used], marks[used]
    if method == "mean":
        return unit(x[y == 1].mean(0) - x[y == 0].mean(0))
    if method == "kif":
        scale = x.std(0)
        z = x / scale
        return unit(unit(z[y == 1].mean(0) - z[y == 0].mean(0)) / scale)
    if method == "lda":
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
        return unit(lda.fit(x, y).coef_[0])
    scale = x.std(0)
    fit = LogisticRegression(C=0.1, tol=1e-12, max_iter=5000, class_weight="balanced")
    return unit(fit.fit((x - x.mean(0)) / scale, y).coef_[0] / scale)


@pytest.mark.parametrize("width", [WIDTH, 200], ids=["long", "wide"])
@pytest.mark.parametrize("method", ["mean", "kif", "lda", "logistic"])
@pytest.mark.parametrize("siblings", [False, True])
def test_all_at_once_equal_one_at_a_time(rng, method, width, siblings):
    x, label, _, _ = world(rng, width)
    # With siblings the concepts of a kind are marked on rows of their own.
    concepts = concepts_of(label, within=label % 2 if siblings else None)
    found = concept_vectors(x, concepts, method)
    for site in range(SITES):
        for concept in range(VALUES):
            wanted = one_by_one(x[site], concepts.marks[concept], method)
            got = found.vectors[site, concept]
            np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_first_component_of_differences_is_that_of_a_plain_svd(rng):
    x, label, _, _ = world(rng)
    concepts = concepts_of(label)
    found = concept_vectors(x, concepts, "pca", seed=3)
    kinds = np.zeros(ROWS, dtype=np.int64)
    pairs = draw_pairs(concepts.marks, kinds, numpy_rng(3, "pairs"))
    for concept in range(VALUES):
        delta = x[0][pairs[concept][:, 0]] - x[0][pairs[concept][:, 1]]
        top = np.linalg.svd(delta)[2][0]
        top = top * np.sign(delta.mean(0) @ top)
        np.testing.assert_allclose(found.vectors[0, concept], top, atol=1e-8)


def test_pairs_are_of_one_kind_and_of_both_sides(rng):
    marks = np.array([[1, 1, 0, 0, 0, -1]], dtype=np.int8)
    kinds = np.array([0, 1, 0, 1, 1, 0])
    (pairs,) = draw_pairs(marks, kinds, rng)
    assert (kinds[pairs[:, 0]] == kinds[pairs[:, 1]]).all()
    assert (marks[0][pairs[:, 0]] == 1).all() and (marks[0][pairs[:, 1]] == 0).all()


@pytest.mark.parametrize("method", [m for m in METHODS if m != "pca"])
def test_a_weight_of_two_is_the_row_twice(rng, method):
    x, label, _, _ = world(rng)
    weight = rng.integers(0, 3, ROWS)
    weight[:VALUES] = 1
    twice = np.repeat(np.arange(ROWS), weight)
    weighed = concept_vectors(x, concepts_of(label), method, weight=weight)
    repeated = concept_vectors(x[:, twice], concepts_of(label[twice]), method)
    tolerance = 2e-2 if method == "logistic" else 1e-9  # balancing and scale see weights
    assert (alignment(weighed, repeated) > 1 - tolerance).all()
    np.testing.assert_allclose(weighed.gap, repeated.gap, rtol=0.05, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_direction_is_found_and_moving_rows_along_it_moves_their_score(rng, method):
    _, label, _, truth = world(rng)
    x = rng.standard_normal((SITES, ROWS, WIDTH)) + 8 * truth[label]
    found = concept_vectors(x, concepts_of(label), method)
    towards = truth - (truth.sum(0) - truth) / (VALUES - 1)
    for concept in range(VALUES):
        own = found.vectors[:, concept] @ towards[concept]
        others = np.abs(found.vectors[:, concept] @ truth.T)
        assert (own > 0.5).all()
        assert (others.argmax(1) == concept).all()
    before = found.scores(x)
    moved = x + (found.gap[..., None] * found.vectors)[:, 1][:, None]
    after = found.scores(moved)
    np.testing.assert_allclose(after[:, 1] - before[:, 1], 1.0, rtol=1e-6)
    shown = label == 1
    ends = before[:, 1, shown].mean(1), before[:, 1, ~shown].mean(1)
    np.testing.assert_allclose(ends[0], 0.5, atol=1e-9)
    np.testing.assert_allclose(ends[1], -0.5, atol=1e-9)


def test_moving_and_turning_the_space_turns_the_vectors(rng):
    x, label, _, _ = world(rng)
    turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    for method in ("mean", "lda", "pca"):
        plain = concept_vectors(x, concepts_of(label), method)
        rotated = concept_vectors(x @ turn + 7, concepts_of(label), method)
        np.testing.assert_allclose(rotated.vectors, plain.vectors @ turn, atol=1e-7)


def test_held_out_skill_is_that_of_a_loop_and_noise_has_none(rng):
    x, label, entity, _ = world(rng, strength=4.0)
    concepts, folds = concepts_of(label), k_fold(entity, label, 4)
    found = separability(x, concepts, folds, "lda", groups=entity)
    for concept in range(VALUES):
        y = (label == concept).astype(int)
        scores = np.zeros(ROWS)
        for train, test in zip(folds.train, folds.test, strict=True):
            part = concepts_of({"a": np.where(train, y, -1)})
            fit = concept_vectors(x[:1], part, "lda")
            scores[test] = fit.scores(x[:1])[0, 0, test]
        wanted = roc_auc_score(y, scores)
        np.testing.assert_allclose(found.auc[0, concept], wanted, atol=1e-12)
        a, b = scores[y == 1], scores[y == 0]
        pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (ROWS - 2)
        wanted = (a.mean() - b.mean()) / np.sqrt(pooled)
        np.testing.assert_allclose(found.effect[0, concept], wanted, rtol=1e-9)
    assert (found.auc > 0.75).all()
    low, high = found.effect_interval[..., 0], found.effect_interval[..., 1]
    assert ((low < found.effect) & (found.effect < high)).all()
    noise = rng.standard_normal((1, ROWS, 200))
    empty = separability(noise, concepts, folds, "kif", groups=entity)
    assert (np.abs(empty.auc - 0.5) < 0.2).all()
    # In sample the very same vectors look perfect: why rows must be held out.
    inside = concept_vectors(noise, concepts, "kif").scores(noise)[0]
    assert roc_auc_score(label == 0, inside[0]) > 0.95
    assert {"auc", "specificity"} <= set(found.to_frame().columns)


def test_specificity_sees_a_vector_shared_by_two_siblings(rng):
    x, label, entity, truth = world(rng, strength=0.0)
    x = x + 6 * truth[np.where(label == 1, 0, label)]  # 0 and 1 look the same
    folds = k_fold(entity, label, 4)
    found = separability(x, concepts_of(label), folds, groups=entity)
    assert (found.specificity[:, :2] < 0.75).all()
    assert (found.specificity[:, 2:] > 0.9).all()
    assert (np.abs(found.siblings[:, 0, 1] - 0.5) < 0.25).all()


def test_crossed_folds_share_neither_subject_nor_template(rng):
    subjects, templates = np.repeat(np.arange(12), 5), np.tile(np.arange(5), 12)
    folds = crossed_folds(subjects, templates, (3, 2))
    assert (folds.test.sum(0) == 1).all()
    for train, test in zip(folds.train, folds.test, strict=True):
        assert train.any()
        assert not set(subjects[train]) & set(subjects[test])
        assert not set(templates[train]) & set(templates[test])


def test_stability_is_high_for_a_strong_concept_and_low_for_noise(rng):
    x, label, entity, _ = world(rng, width=60, strength=0.0)
    concepts = concepts_of({"real": label == 0, "noise": rng.permutation(label == 0)})
    x = x + 20 * (label == 0)[:, None] * unit(np.ones(60))
    found = stability(x, concepts, groups=entity, draws=20)
    assert (found[:, 0] > 0.95).all() and (found[:, 1] < 0.9).all()


def test_tcav_finds_the_concept_an_output_uses_and_no_other(rng):
    x, label, entity, truth = world(rng, strength=4.0)
    concepts = concepts_of({"used": label == 0, "other": label == 1})
    vectors = concept_vectors(x, concepts, "logistic")
    random = concept_vectors(x, random_concepts(concepts.marks[0], entity, 99, seed=1), "logistic")
    slope = unit(truth[0] - truth[1:].mean(0))
    gradients = np.tile(slope, (SITES, 50, 1))
    gradients = gradients + 0.05 * rng.standard_normal(gradients.shape)
    found = tcav(gradients, vectors, random)
    assert (found.score[:, 0] > 0.95).all()
    noise = tcav(rng.standard_normal((SITES, 50, WIDTH)), vectors, random)
    assert (np.abs(noise.score - 0.5) < 0.35).all()
    assert noise.p_value.min() > 0.02


def test_tcav_test_is_level_under_the_null(rng):
    """A random concept among random concepts is significant as often as it should."""
    x = rng.standard_normal((2, 60, 5))
    marks = (np.arange(60) < 30).astype(np.int8)
    vectors = concept_vectors(x, random_concepts(marks, None, 400, seed=0))
    random = concept_vectors(x, random_concepts(marks, None, 99, seed=1))
    found = tcav(rng.standard_normal((2, 41, 5)) + 0.3, vectors, random)
    assert 0.0 < (found.p_value <= 0.1).mean() < 0.2


def test_random_concepts_keep_counts_and_whole_groups(rng):
    marks = np.where(np.arange(60) % 20 < 5, 1, 0).astype(np.int8)
    marks[:20] = -1
    groups = np.arange(60) % 20
    found = random_concepts(marks, groups, 10)
    assert ((found.marks == 1).sum(1) == 10).all()
    assert (found.marks[:, :20] == -1).all()
    assert (found.marks[:, 20:40] == found.marks[:, 40:]).all()
    assert len(np.unique(found.marks, axis=0)) > 5


def test_shift_vectors_find_what_moved_and_take_off_what_all_did(rng):
    x, label, entity, _ = world(rng)
    moved = x + rng.standard_normal((SITES, 1, WIDTH)) * 5  # everyone alike
    moved = moved + 0.05 * rng.standard_normal(x.shape)
    extra = unit(rng.standard_normal(WIDTH))
    moved[1, label == 2] += extra
    concepts = concepts_of(label)
    found = shift_vectors(x, moved, concepts, groups=entity)
    assert found.p_value[2] < 0.02 and found.vectors[1, 2] @ extra > 0.95
    still = shift_vectors(x, x + 0.05 * rng.standard_normal(x.shape), concepts)
    assert still.p_value.min() > 0.01 and (still.size < 0.02).all()


def test_a_store_is_read_one_site_at_a_time(rng):
    x, label, _, _ = world(rng)

    class Store:
        sites = ("resid.0", "resid.1", "resid.2")

        def site(self, name):
            return x[int(name[-1])]

    found = concept_vectors(Store(), concepts_of(label))
    plain = concept_vectors(x, concepts_of(label))
    assert found.sites == Store.sites
    np.testing.assert_array_equal(found.vectors, plain.vectors)
    vector = found.vector("resid.1", "2")
    assert vector.shape == (WIDTH,) and vector.dtype == torch.float32


BAD = {
    "no positives": (lambda x, y: concepts_of({"a": np.zeros(ROWS)}), "'a' has no positive"),
    "one class": (lambda x, y: concepts_of(np.zeros(ROWS)), "has no negative"),
    "odd marks": (lambda x, y: concepts_of({"a": y}), "unknown values"),
    "name twice": (
        lambda x, y: Concepts(("a", "a"), np.array([[1, 0], [0, 1]], np.int8)),
        "each once",
    ),
    "label of two kinds": (
        lambda x, y: concepts_of(y, within=np.arange(ROWS) % 7),
        "more than one kind",
    ),
    "rows": (lambda x, y: concept_vectors(x[:, 1:], concepts_of(y)), "differ in rows"),
    "method": (lambda x, y: concept_vectors(x, concepts_of(y), "svm"), "method is unknown"),
    "constant": (
        lambda x, y: concept_vectors(x * 0 + 1, concepts_of(y)),
        "have equal means at site.0",
    ),
    "nan": (lambda x, y: concept_vectors(x * np.nan, concepts_of(y)), "NaN"),
    "width": (
        lambda x, y: concept_vectors(x, concepts_of(y)).scores(x[:, :, 1:]),
        "different widths",
    ),
    "sites": (lambda x, y: concept_vectors(x, concepts_of(y)).scores(x[1:]), "different sites"),
    "unknown concept": (
        lambda x, y: concept_vectors(x, concepts_of(y)).vector("site.0", "z"),
        "no vector for concept 'z'",
    ),
    "shift of other rows": (
        lambda x, y: shift_vectors(x, x[:, 1:], concepts_of(y)),
        "do not match",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_clear_error(rng, case):
    x, label, _, _ = world(rng)
    act, words = BAD[case]
    with pytest.raises(InputError, match=words):
        act(x, label)


def test_one_inverse_solves_at_every_shift(rng):
    rows = torch.from_numpy(rng.normal(size=(6, 9)))
    shifts = torch.tensor([1e-3, 0.7, 50.0, 0.0], dtype=torch.float64)
    sides = torch.from_numpy(rng.normal(size=(4, 9)))
    sides[3] = 0
    found = shifted_solve(rows.T @ rows, shifts, sides)
    for side, shift, solved in zip(sides[:3], shifts[:3], found[:3], strict=True):
        system = rows.T @ rows + shift * torch.eye(9, dtype=torch.float64)
        expected = torch.linalg.solve(system, side)
        assert float((solved - expected).norm() / expected.norm()) < 1e-10
    assert not bool(found[3].any())
    assert not bool(shifted_solve(rows.T @ rows, shifts[3:], sides[3:]).any())


@pytest.mark.parametrize("shrinkage", [0.1, 1e-4, 1e-9])
@pytest.mark.parametrize(("width", "twins"), [(20, 0), (20, 8), (200, 0)])
def test_weak_shrinkage_turns_no_discriminant(rng, shrinkage, width, twins):
    """Against the scatter within classes itself, also where it has no full rank."""
    x = rng.normal(size=(60, width)) * np.logspace(0, -3, width)
    x[:, width - twins :] = x[:, :twins]
    mark = rng.permutation(np.arange(60) % 3 == 0)
    within = x - np.where(mark[:, None], x[mark].mean(0), x[~mark].mean(0))
    difference = x[mark].mean(0) - x[~mark].mean(0)
    sizes, axes = np.linalg.svd(within, full_matrices=False)[1:]
    ridge = shrinkage * (sizes**2).sum() / x.size
    inside = axes @ difference
    expected = (inside / ((1 - shrinkage) / 60 * sizes**2 + ridge)) @ axes
    expected += (difference - inside @ axes) / ridge
    found = concept_vectors(x[None], concepts_of(mark.astype(int)), "lda", shrinkage=shrinkage)
    place = found.concepts.index("1")
    assert unit(expected) @ found.vectors[0, place] > 1 - 1e-9
