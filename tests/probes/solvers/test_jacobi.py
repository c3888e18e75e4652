"""Each row's equation solved on its own ends at the optimum, and says when not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from probes.solvers.compiled import dispatch
from probes.solvers.crossfit import crossfit
from probes.solvers.newton.initial_fit import initial_fit
from probes.solvers.newton.newton_cg import ACCEPTED_TOL, minimize
from probes.solvers.objective.batch import Batch, Work
from probes.solvers.objective.factor import (
    MAX_SWEPT_ROWS,
    Operator,
    factor_gram,
    floor_weight,
    remove_rows,
)
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import LogisticOptions, one_hot
from probes.splits.folds import Folds, leave_one_group_out

pytest.importorskip("numba", reason="without numba there is no compiled way to test")
pytestmark = pytest.mark.usefixtures("however_few")

TIGHT = ACCEPTED_TOL[torch.float64]


def table(n, d, classes, scale, seed, spread=1):
    """Rows in groups of 1 to ``spread`` and labels of which no fold lacks one."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d)) * scale
    codes = rng.permutation(np.arange(n) % classes)
    groups = np.sort(rng.integers(0, max(n // spread, 4), n))
    return rows, codes, np.unique(groups, return_inverse=True)[1]


def both(rows, codes, classes, folds, options, **more):
    """Compiled, and as the torch expressions have it."""
    given = torch.from_numpy(rows), torch.from_numpy(codes)[None], classes, folds
    found = crossfit(*given, options, coefficients=True, **more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "numba_installed", lambda: False)
        plain = crossfit(*given, options, coefficients=True, **more)
    assert found.n_uncertified == plain.n_uncertified == 0
    return found, plain


def gap(found, plain, name):
    mine, theirs = getattr(found, name), getattr(plain, name)
    return float((mine - theirs).abs().max() / theirs.abs().max())


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(24, 60),
    d=st.integers(30, 90),
    classes=st.sampled_from([2, 2, 3, 5]),
    spread=st.integers(1, 3),
    scale=st.sampled_from([0.03, 0.3, 1.0]),
    C=st.sampled_from([0.1, 1.0, 30.0]),
    balanced=st.booleans(),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_folds_are_those_of_the_torch_expressions(
    n, d, classes, spread, scale, C, balanced, weighted, seed
):
    rows, codes, groups = table(n, d, classes, scale, seed, spread)
    folds = leave_one_group_out(groups, n)
    kept = [len(np.unique(codes[train])) == classes for train in folds.train]
    folds = Folds(folds.train[kept], folds.test[kept], "some")
    weight = None
    if weighted:
        weight = torch.from_numpy(np.random.default_rng(seed).uniform(0.2, 2, n))
    options = LogisticOptions(C=C, balanced=balanced)
    found, plain = both(rows, codes, classes, folds, options, sample_weight=weight)
    left_out = torch.from_numpy(~folds.test.any(0))
    found.scores[..., left_out] = plain.scores[..., left_out] = 0
    # Both are within 1e-8 of the optimum in length; one score may be off by more.
    assert gap(found, plain, "scores") <= 5e-8
    assert gap(found, plain, "coef") <= 5e-8
    if classes == 2:
        assert gap(found, plain, "intercept") <= 5e-8 + 5e-8 / scale


@pytest.mark.parametrize("classes", [2, 4])
def test_rows_that_are_nearly_alike_are_left_to_the_other_ways(classes):
    """Four of a kind with labels of their own: turn by turn they would not get on."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(20, 100)), 4, 0)
    rows += 1e-3 * rng.normal(size=rows.shape)
    codes = rng.permutation(np.arange(80) % classes)
    folds = leave_one_group_out(None, 80)
    found, plain = both(rows, codes, classes, folds, LogisticOptions(C=10.0))
    assert gap(found, plain, "scores") <= 5e-8


@pytest.mark.parametrize("classes", [2, 4])
def test_float32_answers_keep_their_own_tolerance(classes):
    rows, codes, groups = table(60, 90, classes, 1.0, 2, 2)
    folds = leave_one_group_out(groups, 60)
    options = LogisticOptions(precision=torch.float32)
    found, plain = both(rows, codes, classes, folds, options)
    assert found.scores.dtype == torch.float32
    assert gap(found, plain, "scores") <= 1e-4
    exact = both(rows, codes, classes, folds, LogisticOptions())[0]
    far = (found.scores.double() - exact.scores).abs().max()
    assert float(far) <= 1e-4 * float(exact.scores.abs().max())


def test_from_starts_that_are_far_off_it_ends_there_too():
    """Steps that long are cut short or given up, and the next way begins afresh."""
    rng = np.random.default_rng(5)
    rows = torch.from_numpy(rng.normal(size=(50, 80)) * 3)
    rows -= rows.mean(0)
    gram = rows @ rows.T
    fixed = floor_weight(torch.full((1, 50), 0.2).double(), gram.diagonal())
    operator = Operator(factor_gram(gram, fixed), fixed[None])
    codes = torch.from_numpy(rng.integers(0, 2, (20, 50)))
    loss = Loss(one_hot(codes, 2), torch.ones(1, 1, 50).double())
    ends = []
    for size in (0.0, 1.0, 1e3):
        dual = torch.from_numpy(size * rng.normal(size=(20, 1, 50)))
        batch = Batch(loss, operator, dual, operator(dual))
        scores, _, certificate = minimize(batch, iteration_dtype=torch.float32)
        assert float(certificate.max()) <= TIGHT
        ends.append(scores)
    for other in ends[1:]:
        assert float((other - ends[0]).abs().max() / ends[0].abs().max()) <= 5e-8


def test_a_fold_may_keep_rows_that_weigh_nothing():
    rows, codes, _ = table(40, 60, 2, 0.5, 3)
    weight = torch.ones(40).double()
    weight[[3, 17]] = 0
    folds = leave_one_group_out(None, 40)
    found, plain = both(rows, codes, 2, folds, LogisticOptions(), sample_weight=weight)
    assert gap(found, plain, "scores") <= 5e-8


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(6, 30),
    d=st.integers(1, 40),
    width=st.integers(0, 3),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    seed=st.integers(0, 99),
)
def test_the_bound_of_a_residual_is_one(n, d, width, scale, seed):
    """r'Qr is at most the sum of r^2 / w, rows taken out or not."""
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.normal(size=(n, d)) * scale)
    rows -= rows.mean(0)
    gram = rows @ rows.T
    fixed = torch.from_numpy(rng.uniform(0.01, 0.3, (1, n)))
    factor = factor_gram(gram, floor_weight(fixed, gram.diagonal()))
    operator, residual = Operator(factor, factor.weight[None]), torch.randn(1, 1, n)
    residual = residual.double()
    if width:
        out = torch.from_numpy(rng.choice(n, (1, width), replace=False))
        operator, _ = remove_rows(factor, out, torch.ones_like(out, dtype=torch.bool))
        residual[0, 0, out[0]] = 0
    square = float((residual * operator(residual)).sum())
    assert square <= float((residual.square() / factor.weight).sum()) * (1 + 1e-9)


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("classes", [3, 6])
def test_certificates_of_classes_bound_what_is_left(classes, scale):
    """Against Newton's step on the whole Hessian at the point that was certified."""
    rng = np.random.default_rng(classes)
    n, d = 30, 45
    rows = torch.from_numpy(rng.normal(size=(n, d)) * scale)
    rows -= rows.mean(0)
    codes = torch.from_numpy(rng.permutation(np.arange(n) % classes))[None]
    loss = Loss(one_hot(codes, classes), torch.ones(4, 1, n).double())
    fixed = torch.full((classes, n), 1 / classes).double()
    gram = rows @ rows.T
    factor = factor_gram(gram, floor_weight(fixed, gram.diagonal()))
    operator = Operator(factor, factor.weight[None])
    nothing = torch.zeros(4, classes, n).double()
    batch = Batch(loss, operator, nothing, nothing.clone())
    for target in (1e-2, 1e-5):
        scores, dual, certificate = dispatch.solve_softmax(
            batch, target, 1.0, torch.float64, 60, Work()
        )
        certified = torch.isfinite(certificate)
        # From nothing, on weights that are those of no scores, some are left.
        assert bool(certified.all()) or scale > 0.5
        if not bool(certified[0]):
            continue
        alpha = (dual - operator.weight * scores)[0]
        assert float(alpha.sum(0).abs().max()) <= 1e-12
        assert float((operator(dual) - scores).abs().max()) <= 1e-9 * (1 + scale)
        assert true_length(rows, loss, alpha, scores[0]) <= 2 * float(certificate[0])


def true_length(rows, loss, alpha, scores):
    """Length of Newton's step over that of the parameters, in the own Hessian's metric.

    The shift that all classes share is free, and held by a small penalty here.
    """
    classes, n = scores.shape
    wide = torch.cat([rows, torch.ones(n, 1).double()], 1)
    chance = torch.softmax(scores, 0)
    point = torch.cat([alpha @ rows, (scores - alpha @ rows @ rows.T).mean(1)[:, None]], 1)
    pull = (loss.target[0] - chance) * loss.weight[0]
    side = pull @ wide
    side[:, :-1] -= point[:, :-1]
    bend = torch.diag_embed(chance.T) - chance.T[:, :, None] * chance.T[:, None]
    hessian = torch.einsum("nab,ni,nj->aibj", bend, wide, wide)
    penalty = torch.ones(classes, wide.shape[1]).double()
    penalty[:, -1] = 1e-6
    size = penalty.numel()
    hessian = hessian.reshape(size, size) + torch.diag(penalty.flatten())
    step = torch.linalg.solve(hessian, side.flatten())
    norm = point.flatten() @ hessian @ point.flatten()
    return float((step @ hessian @ step / norm).sqrt())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
def test_a_fit_without_a_factor_comes_near_as_one_with_does(scale, share, C):
    rng = np.random.default_rng(3)
    n = 70
    target = torch.from_numpy(rng.permutation(np.arange(n) < share * n)).double()
    rows = torch.from_numpy(rng.normal(size=(n, 90)) * scale)
    rows -= rows.mean(0)
    loss = Loss(target[None, None], torch.full((1, 1, n), C).double())
    gram = rows @ rows.T
    exact = initial_fit(gram, loss, tol=1e-6).scores
    fit, plain = (initial_fit(gram, loss, compiled=each) for each in (True, False))
    own, other = ((each.scores - exact).abs().max() for each in (fit, plain))
    # Where rows lose their curvature neither gets near in a step of a tenth.
    assert float(own) <= max(0.15 * float(exact.abs().max()), 1.5 * float(other))
    # Dual values, intercept and scores fit each other whatever it stopped at.
    assert float(fit.dual.sum().abs()) <= 1e-9 * float(fit.dual.abs().sum())
    recomputed = fit.dual @ gram + fit.intercept
    assert float((recomputed - fit.scores).abs().max()) <= 1e-9 * float(exact.abs().max())


@pytest.mark.parametrize("classes", [2, 5])
def test_a_turn_takes_one_product_and_few_turns_are_enough(classes):
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(120, 300)) * np.arange(1, 301) ** -0.5
    codes = rng.permutation(np.arange(120) % classes)
    folds = leave_one_group_out(np.arange(120) // 2, 120)
    options = LogisticOptions()
    found, plain = both(rows, codes, classes, folds, options)
    assert found.work.products <= 0.7 * plain.work.products
    for fold in (0, 31, 59):
        peer = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=500)
        train, test = folds.train[fold], folds.test[fold]
        peer.fit(rows[train], codes[train])
        expected = peer.decision_function(rows[test]).T
        got = found.scores[0][:, torch.from_numpy(test)].numpy()
        if classes > 2:
            got, expected = got - got.mean(0), expected - expected.mean(0)
        largest = float(found.scores.abs().max())
        assert np.abs(got - expected).max() <= 2e-8 * largest


def test_many_rows_out_of_a_fold_are_not_its_own():
    rows = table(60, 90, 2, 0.5, 1)[0]
    gram = torch.from_numpy(rows @ rows.T)
    factor = factor_gram(gram, torch.full((1, 60), 0.2).double())
    assert dispatch.supports_leave_out(factor, 20, MAX_SWEPT_ROWS)
    assert not dispatch.supports_leave_out(factor, 20, MAX_SWEPT_ROWS + 1)


def test_the_limit_of_turns_leaves_what_is_unsolved():
    batch = Batch(
        Loss(one_hot(torch.arange(30)[None] % 3, 3), torch.ones(5, 1, 30).double()),
        Operator(
            factor_gram(torch.eye(30).double() * 9, torch.full((1, 30), 0.3).double()),
            torch.full((1, 1, 30), 0.3).double(),
        ),
        torch.zeros(5, 3, 30).double(),
        torch.zeros(5, 3, 30).double(),
    )
    short = dispatch.solve_softmax(batch, 1e-9, TIGHT, torch.float32, 1, Work())[2]
    assert bool(torch.isinf(short).all())
    long = dispatch.solve_softmax(batch, 1e-9, TIGHT, torch.float32, 40, Work())[2]
    assert float(long.max()) <= TIGHT
    # The batch is left as it was.
    assert not bool(batch.scores.any()) and not bool(batch.dual.any())


def test_certificates_hold_where_weights_are_far_above_the_curvature():
    """A faint signal under a strong penalty: what a factor holds is a thousand times
    what rows bend, and so seem its parameters. Scores were off by 1e-7 of themselves
    with certificates of 5e-9."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for n, d, scale, C in ((17, 74, 0.0136, 0.011), (13, 60, 0.015, 0.02)):
        for _ in range(8):
            rows, codes = rng.normal(size=(n, d)) * scale, np.arange(n) % 2
            folds = leave_one_group_out(None, n)
            options = LogisticOptions(C=C)
            given = torch.from_numpy(rows), torch.from_numpy(codes)[None], 2, folds
            found = crossfit(*given, options, coefficients=True)
            assert found.n_uncertified == 0
            assert found.coef is not None and found.intercept is not None
            for fold, train in enumerate(folds.train):
                coef, shift = found.coef[0, fold, 0], found.intercept[0, fold, 0]
                score = rows[train] @ coef.numpy() + float(shift)
                chance = 1 / (1 + np.exp(-score))
                # Newton's step of the intercept, which nothing but the rows holds.
                pull, bend = codes[train] - chance, chance * (1 - chance)
                step = pull.sum() / bend.sum()
                if abs(score).max() > 0.01:  # smaller ones count as nothing
                    worst = max(worst, abs(step) / abs(score).max())
    assert 0 < worst <= 2e-8
