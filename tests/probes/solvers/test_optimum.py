"""Every fold at its optimum: against scikit-learn, refits, and itself transformed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from probes.estimators.lda import LDAProbe
from probes.estimators.logistic import LogisticProbe
from probes.estimators.nearest_mean import MeanDifferenceProbe
from probes.estimators.ridge import RidgeProbe
from probes.solvers.crossfit import crossfit
from probes.solvers.newton import newton_cg, newton_direct
from probes.solvers.objective.batch import Batch
from probes.solvers.objective.factor import Operator, factor_features, factor_gram
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import LogisticOptions, one_hot
from probes.splits.folds import Folds, from_splits, k_fold, leave_one_group_out, rebalanced

_spec = importlib.util.spec_from_file_location(
    "probe_rows", Path(__file__).parents[1] / "conftest.py"
)
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
make_rows = _module.make_rows

SHAPES = [(40, 90, 2, 40), (40, 90, 3, 10), (120, 5, 2, 12), (120, 5, 4, 30)]
IDS = ["wide", "wide-3", "long", "long-4"]


def sklearn_scores(x, codes, folds, fold, scaling, **options):
    train, test = folds.train[fold], folds.test[fold]
    scaler = StandardScaler(with_std=scaling is not None)
    scaler.fit(x if scaling == "all" else x[train])
    model = LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=500, **options)
    model.fit(scaler.transform(x[train]), codes[train])
    scores = model.decision_function(scaler.transform(x[test]))
    scores = scores[:, None] if scores.ndim == 1 else scores
    return scores, model.coef_ / (scaler.scale_ if scaling else 1)


def centered(scores):
    """Softmax scores are free up to a constant a row."""
    return scores - scores.mean(1, keepdims=True) if scores.shape[1] > 1 else scores


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize("scaling", [None, "all", "fold"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_logistic_folds_reach_the_optimum(shape, scaling, precision, tolerance, class_weight):
    n, d, classes, groups = shape
    x, codes, group = make_rows(n, d, classes, groups)
    folds = leave_one_group_out(group, n)
    probe = LogisticProbe(0.7, class_weight, scaling, precision)
    result = probe.held_out(
        torch.from_numpy(x), torch.from_numpy(codes)[None], classes, folds, coefficients=True
    )
    assert result.coef is not None and result.intercept is not None
    for fold in range(0, groups, 5):
        expected, weights = sklearn_scores(
            x, codes, folds, fold, scaling, C=0.7, class_weight=class_weight
        )
        ours = result.scores[0][:, torch.from_numpy(folds.test[fold])].T.numpy()
        gap = np.abs(centered(ours) - centered(expected)).max()
        assert gap < tolerance * np.abs(expected).max()
        coef = result.coef[0, fold].numpy()
        gap = np.abs(centered(coef.T) - centered(weights.T)).max()
        assert gap < 10 * tolerance * np.abs(weights).max()
        by_hand = x[folds.test[fold]] @ coef.T + result.intercept[0, fold].numpy()
        assert np.abs(by_hand - ours).max() < 50 * tolerance * np.abs(ours).max()


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_many_label_vectors_equal_one_at_a_time(shape, rng):
    # From 8 label vectors on, each fold gets its own factor: another route.
    n, d, classes, groups = shape
    x, codes, group = make_rows(n, d, classes, groups)
    folds = k_fold(group, codes, 5)
    labels = np.stack([codes] + [rng.permutation(codes) for _ in range(39)])
    x = torch.from_numpy(x)
    probe = LogisticProbe()
    together = probe.held_out(x, torch.from_numpy(labels), classes, folds).scores
    for label in (0, 7, 39):
        one = torch.from_numpy(labels[label : label + 1])
        alone = probe.held_out(x, one, classes, folds).scores[0]
        scale = alone.abs().max()
        assert (together[label] - alone).abs().max() < 2e-8 * scale


BRUTE = {
    "ridge": (RidgeProbe(2.0), lambda: RidgeClassifier(alpha=2.0, solver="cholesky")),
    "lda": (LDAProbe(0.3), lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3)),
}


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize("name", list(BRUTE))
def test_closed_forms_equal_scikit_learn_refitted(shape, name):
    n, d, classes, groups = shape
    x, codes, group = make_rows(n, d, classes, groups)
    probe, peer = BRUTE[name]
    folds = leave_one_group_out(group, n)
    ours = probe.held_out(
        torch.from_numpy(x), torch.from_numpy(codes)[None], classes, folds
    ).scores[0]
    for fold in range(len(folds)):
        train, test = folds.train[fold], folds.test[fold]
        expected = peer().fit(x[train], codes[train]).decision_function(x[test])
        expected = expected[:, None] if expected.ndim == 1 else expected
        got = ours[:, torch.from_numpy(test)].T.numpy()
        gap = centered(got) - centered(expected) if name == "lda" else got - expected
        assert np.abs(gap).max() < 1e-10 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize("scaling", [None, "all", "fold"])
@pytest.mark.parametrize(
    "probe", [RidgeProbe(), LDAProbe(), MeanDifferenceProbe()], ids=lambda p: type(p)
)
@pytest.mark.parametrize("balance", [False, True])
def test_closed_forms_equal_own_refits(shape, scaling, probe, balance):
    n, d, classes, groups = shape
    x, codes, group = make_rows(n, d, classes, groups)
    folds = leave_one_group_out(group, n)
    folds = rebalanced(folds, codes) if balance else folds
    probe.set_params(standardize=scaling)
    ours = probe.held_out(
        torch.from_numpy(x), torch.from_numpy(codes)[None], classes, folds
    ).scores[0]
    if scaling == "all":
        x = (x - x.mean(0)) / x.std(0)
    for fold in range(0, len(folds), 3):
        train, test = folds.train[fold], folds.test[fold]
        refit = clone(probe)
        assert isinstance(refit, RidgeProbe | LDAProbe | MeanDifferenceProbe)
        refit.set_params(standardize=None if scaling == "all" else scaling)
        fitted = refit.fit(x[train], codes[train])
        expected = fitted.decision_function(x[test])
        expected = expected[:, None] if expected.ndim == 1 else expected
        got = ours[:, torch.from_numpy(test)].T.numpy()
        if not isinstance(probe, RidgeProbe):
            got, expected = centered(got), centered(expected)
        assert np.abs(got - expected).max() < 1e-9 * max(1, np.abs(expected).max())


PROBES = [LogisticProbe(), RidgeProbe(), LDAProbe(), MeanDifferenceProbe()]


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: type(p).__name__)
def test_order_and_rotation_change_nothing(probe, rng):
    x, codes, group = make_rows(30, 8, 3, 10)
    rotation = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    order = rng.permutation(30)

    def scores(rows, labels, groups):
        return probe.held_out(
            torch.from_numpy(rows),
            torch.from_numpy(labels)[None],
            3,
            leave_one_group_out(groups, 30),
        ).scores[0]

    plain = scores(x, codes, group)
    moved = scores((x @ rotation)[order], codes[order], group[order])
    torch.testing.assert_close(moved, plain[:, order], rtol=1e-7, atol=1e-7)


def test_scaling_rows_is_scaling_the_penalty():
    x, codes, _ = make_rows(50, 6, 2, 50)
    plain = LogisticProbe(2.0).fit(x, codes)
    scaled = LogisticProbe(2.0 / 9).fit(3 * x, codes)
    np.testing.assert_allclose(3 * scaled.coef_, plain.coef_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("d", [5, 200])
def test_doubled_rows_are_weights_of_two(d):
    x, codes, _ = make_rows(40, d, 3, 40)
    weight = np.where(np.arange(40) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(40), weight.astype(int))
    weighted = LogisticProbe().fit(x, codes, weight)
    repeated = LogisticProbe().fit(x[twice], codes[twice])
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(weighted.intercept_, repeated.intercept_, rtol=1e-6, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(
    half=st.integers(1, 12), d=st.integers(1, 30), C=st.floats(1e-3, 1e3), seed=st.integers(0, 1000)
)
def test_any_shape_meets_the_gradient_condition(half, d, C, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2 * half, d)) * 10 ** rng.uniform(-2, 2)
    y = np.arange(2 * half) % 2
    fitted = LogisticProbe(C).fit(x, y)
    # At the optimum W = C X'(y - p) and sum(y - p) = 0.
    gap = y - fitted.predict_proba(x)[:, 1]
    scale = np.abs(C * x.T * gap).sum(1).max() + np.abs(fitted.coef_).max()
    assert np.abs(fitted.coef_[0] - C * x.T @ gap).max() <= 1e-5 * scale + 1e-12
    assert abs(gap.sum()) <= 1e-6 * half


@pytest.mark.parametrize("d", [6, 150])
@pytest.mark.parametrize("labels", [1, 12])
def test_any_memory_budget_gives_the_same_numbers(d, labels, rng):
    x, codes, group = make_rows(60, d, 2, 20)
    many = np.stack([rng.permutation(codes) for _ in range(labels)])
    folds = leave_one_group_out(group, 60)
    args = torch.from_numpy(x), torch.from_numpy(many), 2, folds
    wide = crossfit(*args, LogisticOptions())
    fixed = 8 * (2 * 60 * d + 4 * 3600)
    tight = crossfit(*args, LogisticOptions(memory=fixed + 60000))
    torch.testing.assert_close(tight.scores, wide.scores, rtol=1e-7, atol=1e-8)


def test_given_splits_may_leave_rows_unscored():
    x, codes, _ = make_rows(20, 4, 2, 20)
    folds = from_splits([(np.arange(5, 20), np.arange(5))], 20)
    for probe in PROBES:
        scores = probe.held_out(
            torch.from_numpy(x), torch.from_numpy(codes)[None], 2, folds
        ).scores[0, 0]
        assert torch.isfinite(scores[:5]).all() and torch.isnan(scores[5:]).all()


@pytest.mark.parametrize("C", [0.1, 10.0])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_many_rows_need_no_elimination(C, precision, monkeypatch):
    # What the features cannot see of the residual once kept float32 from converging.
    x, codes, group = make_rows(800, 60, 2, 200)

    def refuse(*_):
        raise AssertionError("conjugate gradients did not converge")

    monkeypatch.setattr("probes.solvers.newton.newton_cg.solve_direct", refuse)
    scores = LogisticProbe(C, precision=precision).held_out(
        torch.from_numpy(x), torch.from_numpy(codes)[None], 2, k_fold(group, codes, 10)
    )
    assert torch.isfinite(scores.scores).all()


def nearly_separable(n=600, d=40):
    """Rows whose class one direction gives away but for two rows in a hundred."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.6
    y = (x[:, 0] > 0).astype(int) ^ (rng.random(n) < 0.02)
    x[:, 0] *= 30
    return x, y, np.arange(n) // 3


def newton_cholesky(x, y, folds, C):
    found = np.full(len(y), np.nan)
    for train, test in zip(folds.train, folds.test, strict=True):
        model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=500)
        center = x[train].mean(0)
        model.fit(x[train] - center, y[train])
        found[test] = model.decision_function(x[test] - center)
    return found


@pytest.mark.parametrize("eliminated", [False, True])
@pytest.mark.parametrize("C", [1.0, 100.0])
@pytest.mark.parametrize("left_out", [None, 10])
def test_many_nearly_separable_rows(C, left_out, eliminated, monkeypatch):
    """A factor of constant weights once made this minutes of n^3 elimination."""
    x, y, group = nearly_separable()
    if left_out is None:
        folds = leave_one_group_out(group, len(y))
        kept = slice(0, 20)
        folds = Folds(folds.train[kept], folds.test[kept], "some")
    else:
        folds = k_fold(group, y, left_out)
    stage = newton_cg._newton_cg

    def give_up(*arguments):
        scores, dual, certificate = stage(*arguments)
        return scores, dual, certificate * np.inf

    def refuse(*_):
        raise AssertionError("conjugate gradients did not converge")

    if eliminated:
        monkeypatch.setattr(newton_cg, "_newton_cg", give_up)
    else:
        monkeypatch.setattr(newton_cg, "solve_direct", refuse)
    scored = folds.test.any(0)
    scores = LogisticProbe(C).held_out(torch.from_numpy(x), torch.from_numpy(y)[None], 2, folds)
    expected = newton_cholesky(x, y, folds, C)[scored]
    error = np.abs(scores.scores[0, 0].numpy()[scored] - expected).max()
    assert error / np.abs(expected).max() <= 1e-8


@pytest.mark.parametrize("classes", [2, 20])
@pytest.mark.parametrize("scaling", [None, "fold", "all"])
def test_equal_rows_fit_the_intercept_alone(classes, scaling):
    """A site that sees one and the same token in every row, as an embedding does."""
    rows = torch.full((216, 128), 0.15, dtype=torch.float64)
    codes = torch.arange(216) % classes
    every = np.ones((1, 216), bool)
    found = LogisticProbe(0.003, standardize=scaling).held_out(
        rows, codes[None], classes, Folds(every, ~every, "all rows"), coefficients=True
    )
    assert found.coef is not None and found.intercept is not None
    assert float(found.coef.abs().max()) == 0
    counts = torch.bincount(codes).double()
    expected = counts.log() if classes > 2 else (counts[1] / counts[0]).log()[None]
    fitted = found.intercept[0, 0]
    torch.testing.assert_close(
        fitted - fitted.mean(), expected - expected.mean(), rtol=1e-6, atol=1e-6
    )


def test_scores_that_went_astray_are_computed_anew():
    """A certificate on scores that do not belong to their dual values means nothing."""
    x, y, _ = nearly_separable()
    rows = torch.from_numpy(x - x.mean(0))
    loss = Loss(torch.from_numpy(y)[None, None].double(), torch.ones(1, 1, len(y)).double())
    factor = factor_features(rows, torch.full((1, len(y)), 0.1).double())
    operator = Operator(factor, factor.weight[None])
    dual = torch.zeros(1, 1, len(y)).double()
    # Not the same for all rows: the intercept, which costs nothing, would take that up.
    lost = torch.from_numpy(np.random.default_rng(5).normal(size=(1, 1, len(y))))
    found, _, certificate = newton_cg.minimize(Batch(loss, operator, dual, lost))
    whole = Folds(np.ones((1, len(y)), bool), np.zeros((1, len(y)), bool), "all")
    fitted = LogisticProbe().held_out(rows, torch.from_numpy(y)[None], 2, whole, coefficients=True)
    assert fitted.coef is not None and fitted.intercept is not None
    expected = rows @ fitted.coef[0, 0, 0] + fitted.intercept[0, 0, 0]
    assert float(certificate[0]) <= 1e-8
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("seed", [2, 3, 29, 52, 57])
def test_float32_keeps_its_promise_where_rows_outnumber_features(seed):
    """Rounding there is unseen by the certificate; these reached 1e-4 to 5e-4."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(10, 60)), int(rng.integers(1, 8))
    x = rng.normal(size=(n, d)) * 10 ** rng.uniform(-1, 1.5)
    y = (x[:, 0] + rng.normal(size=n) > 0).astype(int)
    C = 10 ** rng.uniform(-2, 2)
    rows, codes = torch.from_numpy(x), torch.from_numpy(y)[None]
    folds = leave_one_group_out(None, n)
    exact, rough = (
        crossfit(rows, codes, 2, folds, LogisticOptions(C=C, precision=kind)).scores
        for kind in (torch.float64, torch.float32)
    )
    assert float((exact - rough).abs().max() / exact.abs().max()) <= 5e-5


def test_what_float32_leaves_unsolved_is_eliminated():
    rng = np.random.default_rng(7)
    n = 2 * newton_cg.MAX_DIRECT_SIZE
    rows = torch.from_numpy(rng.normal(size=(n, 400)))
    rows = rows - rows.mean(0)
    codes = torch.from_numpy(np.tile([0, 1], n // 2))[None]
    loss = Loss(one_hot(codes, 2), torch.ones(1, 1, n).double())
    weight = torch.full((1, n), 0.1).double()
    operator = Operator(factor_gram(rows @ rows.T, weight), weight[None])
    nothing = torch.zeros_like(loss.target)
    found = []
    for dtype in (torch.float64, torch.float32):
        batch = Batch(loss.to(dtype), operator.to(dtype), nothing.to(dtype), nothing.to(dtype))
        # One step solves nothing: the rest is left to elimination.
        scores, _, certificate = newton_cg.minimize(batch, steps=1)
        assert scores.dtype == certificate.dtype == dtype
        assert float(certificate.max()) <= newton_cg.ACCEPTED_TOL[dtype]
        found.append(scores.double())
    # The factor itself was rounded, which costs more than the solver may.
    worst = float((found[0] - found[1]).abs().max() / found[0].abs().max())
    assert worst <= 1e-3


@pytest.mark.parametrize("classes", [2, 4])
def test_elimination_goes_on_from_where_it_is_put(classes, monkeypatch):
    """Near the optimum it needs a step or two; from a point worse than none, none."""
    rng = np.random.default_rng(11)
    n = 60
    codes = torch.from_numpy(rng.permutation(np.arange(n) % classes))[None]
    x = rng.normal(size=(n, 80)) * 3
    x[np.arange(n), codes[0].numpy()] += 8
    rows = torch.from_numpy(x - x.mean(0))
    loss = Loss(one_hot(codes, classes), torch.ones(1, 1, n).double())
    weight = torch.full((1, n), 0.1).double()
    operator = Operator(factor_gram(rows @ rows.T, weight), weight[None])
    nothing = torch.zeros_like(loss.target)
    taken = []
    step = newton_direct.take_safeguarded_step
    monkeypatch.setattr(
        newton_direct, "take_safeguarded_step", lambda *args: (taken.append(1), step(*args))[1]
    )

    def solved_from(dual):
        taken.clear()
        batch = Batch(loss, operator, dual, operator(dual))
        scores, found, certificate = newton_direct.solve_direct(batch, 1e-9)
        assert float(certificate.max()) <= 1e-8
        return scores, found, len(taken)

    scores, optimum, cold = solved_from(nothing)
    noise = torch.from_numpy(rng.normal(size=optimum.shape))
    # A softmax does not feel what its classes share.
    noise = noise - noise.mean(1, keepdim=True) if classes > 2 else noise
    near, _, warm = solved_from(optimum + 1e-4 * optimum.abs().max() * noise)
    torch.testing.assert_close(near, scores, rtol=1e-6, atol=1e-6)
    assert warm <= cold // 2
    for bad in (1e3 * noise, torch.full_like(noise, torch.nan)):
        far, _, steps = solved_from(bad)
        torch.testing.assert_close(far, scores, rtol=1e-6, atol=1e-6)
        assert steps == cold


@pytest.mark.parametrize("d", [90, 12])
@pytest.mark.parametrize("size", [3, 11])
@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("short", [False, True], ids=["roomy", "short"])
def test_classes_with_factors_of_their_own_and_in_common(d, size, count, short):
    """Few folds or little memory: one factor for all classes; else one for each."""
    n, classes = 66, 3
    x, codes, _ = make_rows(n, d, classes, n)
    rows = np.arange(n)
    held = [rows[k * size : (k + 1) * size] for k in range(count)]
    folds = from_splits([(np.setdiff1d(rows, part), part) for part in held], n)
    square = 4 * n * n if d == 90 else 0
    memory = 8 * (2 * n * d + square + 40 * classes * n * 3) if short else 1 << 30
    found = crossfit(
        torch.from_numpy(x),
        torch.from_numpy(codes)[None],
        classes,
        folds,
        LogisticOptions(memory=memory),
    )
    for fold in range(count):
        expected, _ = sklearn_scores(x, codes, folds, fold, None)
        ours = found.scores[0][:, torch.from_numpy(folds.test[fold])].T.numpy()
        # What classes share is nothing: rows are compared with each other.
        assert np.abs(ours.mean(1)).max() < 1e-8 * np.abs(expected).max()
        gap = np.abs(ours - centered(expected)).max()
        assert gap < 1e-8 * np.abs(expected).max()


@pytest.mark.parametrize("taken", [False, True])
def test_a_start_of_huge_pulls_is_no_start(taken, monkeypatch):
    """Dual values of 1e15 whose products cancel, as conjugate gradients may leave.

    Taken as a start all the same, what was lost to rounding must not be certified.
    """
    if taken:
        monkeypatch.setattr(newton_direct, "_set_start", lambda batch, work: None)
    rng = np.random.default_rng(3)
    n, d = 300, 12
    rows = torch.from_numpy(rng.normal(size=(n, d)))
    rows -= rows.mean(0)
    codes = (rows[:, 0] > 0).long()[None]
    loss = Loss(one_hot(codes, 2), torch.full((1, 1, n), 1000.0).double())
    weight = torch.full((1, n), 0.1).double()
    operator = Operator(factor_features(rows, weight), weight[None])
    # What the features and the intercept cannot see moves no score.
    seen = torch.linalg.qr(torch.cat([rows, torch.ones(n, 1).double()], 1))[0]
    unseen = torch.from_numpy(rng.normal(size=n))
    unseen -= seen @ (seen.T @ unseen)
    start = (1e15 * unseen)[None, None]
    batch = Batch(loss, operator, start, operator(start))
    scores, dual, certificate = newton_direct.solve_direct(batch, 1e-9)
    assert float(certificate) <= 1e-8
    assert float((operator(dual) - scores).abs().max()) <= 1e-9 * float(scores.max())
    peer = LogisticRegression(C=1000.0, solver="newton-cholesky", tol=1e-10)
    peer.fit(rows.numpy(), codes[0].numpy())
    wanted = peer.decision_function(rows.numpy())
    np.testing.assert_allclose(scores[0, 0].numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_separable_rows_and_a_large_penalty_are_solved():
    """No row bends far out, so that Newton's system once had no Cholesky factor."""
    draw = torch.Generator().manual_seed(3)
    n, d = 400, 64
    codes = torch.arange(n) % 2
    x = torch.randn(n, d, generator=draw).double() * torch.logspace(0, -2, d).double()
    x[:, :2] += 6 * torch.nn.functional.one_hot(codes, 2)
    folds = leave_one_group_out(np.arange(n) // 20, n)
    options = LogisticOptions(C=1000.0, standardize="all", precision=torch.float64)
    found = crossfit(x, codes[None], 2, folds, options)
    assert found.n_uncertified == 0
    scaled = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    peer = LogisticRegression(C=1000.0, solver="newton-cholesky", tol=1e-10)
    for fold in (0, 13):
        out = np.arange(n) // 20 == fold
        peer.fit(scaled[~out], codes[~out].numpy())
        wanted = peer.decision_function(scaled[out])
        np.testing.assert_allclose(found.scores[0, 0, out].numpy(), wanted, rtol=1e-5)
