"""Two classes among the features: the same optimum, whatever start and type."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from probes.estimators.logistic import LogisticProbe
from probes.solvers.crossfit import crossfit
from probes.solvers.newton import newton_primal
from probes.solvers.newton.newton_cg import ACCEPTED_TOL
from probes.solvers.newton.newton_primal import minimize_primal
from probes.solvers.objective.batch import Batch, Work
from probes.solvers.objective.factor import Operator, factor_features
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import LogisticOptions, one_hot
from probes.splits.folds import k_fold


def problems(seed, n=90, d=7, C=1.0, folds=3, gap=1.0):
    """Rows, and one problem a fold whose rows have no weight in it."""
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(rng.integers(0, 2, n))
    codes[:4] = torch.tensor([0, 1, 0, 1])
    rows = torch.from_numpy(rng.normal(size=(n, d)))
    rows[:, 0] += gap * codes
    rows -= rows.mean(0)
    kept = torch.from_numpy(np.arange(n) % folds != np.arange(folds)[:, None])
    loss = Loss(one_hot(codes[None], 2), (C * kept.double())[:, None])
    factor = factor_features(rows, torch.full((1, n), 0.1 * C).double())
    return rows, codes, kept, loss, Operator(factor, factor.weight[None])


def solved(loss, operator, count, start=None, kind=torch.float64, target=1e-9):
    n = operator.factor.weight.shape[1]
    start = torch.zeros(count, 1, n).double() if start is None else start
    batch = Batch(loss, operator, start, operator(start))
    return minimize_primal(batch, target, kind, 60, Work())


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
@pytest.mark.parametrize("C", [0.01, 1.0, 1000.0])
def test_every_fold_is_that_of_scikit_learn(C, kind):
    rows, codes, kept, loss, operator = problems(0, C=C)
    scores, dual, certificate = solved(loss, operator, 3, kind=kind)
    assert float(certificate.max()) <= ACCEPTED_TOL[torch.float64]
    for fold, inside in enumerate(kept.numpy()):
        peer = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10)
        peer.fit(rows.numpy()[inside], codes.numpy()[inside])
        wanted = peer.decision_function(rows.numpy())
        np.testing.assert_allclose(
            scores[fold, 0].numpy(), wanted, atol=1e-6 * np.abs(wanted).max()
        )
        # c = alpha + w E, and alpha gives the weights.
        pull = (dual - operator.weight * scores)[fold, 0]
        np.testing.assert_allclose(
            (pull @ rows).numpy(), peer.coef_[0], atol=1e-5 * np.abs(peer.coef_).max()
        )


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    d=st.integers(1, 12),
    C=st.sampled_from([0.01, 1.0, 100.0]),
    gap=st.sampled_from([0.0, 2.0, 8.0]),
)
def test_what_it_returns_is_consistent_and_bounded(seed, d, C, gap):
    _, _, _, loss, operator = problems(seed, d=d, C=C, gap=gap)
    scores, dual, certificate = solved(loss, operator, 3, kind=torch.float32)
    assert float(certificate.max()) <= ACCEPTED_TOL[torch.float64]
    torch.testing.assert_close(operator(dual), scores, rtol=1e-9, atol=1e-9)
    # At an optimum no row pulls by more than its weight, and held-out rows not at all.
    pull = (dual - operator.weight * scores)[:, 0]
    size = float(scores.abs().max())
    assert bool((pull.abs() <= loss.weight[:, 0] + 1e-7 * C * (1 + size)).all())


def test_the_start_does_not_matter_and_a_wild_one_is_brought_back():
    _, _, _, loss, operator = problems(1, C=10.0, gap=4.0)
    plain, _, _ = solved(loss, operator, 3)
    noise = torch.randn(3, 1, 90, generator=torch.Generator().manual_seed(0)).double()
    for size in (1.0, 1e3):
        found, _, certificate = solved(loss, operator, 3, size * noise)
        assert float(certificate.max()) <= ACCEPTED_TOL[torch.float64]
        torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)


def test_rows_removed_from_the_factor_or_only_from_the_loss_are_the_same():
    from probes.solvers.objective.factor import remove_rows

    _, _, kept, loss, operator = problems(2, n=60, folds=30)
    out = (~kept).nonzero()[:, 1].view(30, 2)
    removed, _ = remove_rows(operator.factor, out, torch.ones_like(out).bool())
    plain, _, _ = solved(loss, operator, 30)
    start = torch.zeros(30, 1, 60).double()
    batch = Batch(loss, removed, start, removed(start))
    scores, dual, certificate = minimize_primal(batch, 1e-9, torch.float64, 60, Work())
    assert float(certificate.max()) <= ACCEPTED_TOL[torch.float64]
    torch.testing.assert_close(scores, plain, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(removed(dual), scores, rtol=1e-7, atol=1e-7)


def test_a_step_that_could_not_be_solved_for_certifies_nothing(monkeypatch):
    """Cut short, conjugate gradients make what is left look shorter than it is."""
    _, _, _, loss, operator = problems(4, C=10.0, gap=4.0)
    _, dual, certificate = solved(loss, operator, 3)
    assert float(certificate.max()) <= ACCEPTED_TOL[torch.float64]
    monkeypatch.setattr(newton_primal, "MAX_CG_STEPS", 1)
    _, _, certificate = solved(loss, operator, 3, dual)
    assert bool(torch.isinf(certificate).all())


def test_products_are_counted():
    """No step from the optimum: one product to arrive, two to answer, some to judge."""
    _, _, _, loss, operator = problems(5, folds=3)
    _, dual, _ = solved(loss, operator, 3)
    work = Work()
    batch = Batch(loss, operator, dual, operator(dual))
    minimize_primal(batch, 1e-6, torch.float64, 60, work)
    assert 3 * 2 < work.products <= 3 * 20
    assert work.flops == work.products * operator.flops


def test_what_cannot_be_reached_is_not_certified():
    """Few steps from a far start: the certificate must say so."""
    _, _, _, loss, operator = problems(3, C=1000.0, gap=6.0)
    start = torch.zeros(3, 1, 90).double()
    batch = Batch(loss, operator, start, operator(start))
    _, _, certificate = minimize_primal(batch, 1e-9, torch.float64, 1, Work())
    assert float(certificate.min()) > ACCEPTED_TOL[torch.float64]


@pytest.mark.parametrize(
    ("n", "d", "scale", "gap", "C"),
    [
        (600, 40, 100.0, 10.0, 1e4),
        (1500, 20, 100.0, 10.0, 1e4),
        (600, 40, 10.0, 4.0, 1e4),
        (1500, 20, 1.0, 10.0, 1e4),
        (600, 40, 1.0, 0.0, 1e-4),
    ],
)
def test_what_is_certified_is_right_however_stiff(n, d, scale, gap, C):
    """Separable rows lose their curvature, and the factor's metric says nothing."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, n)
    rows = rng.normal(size=(n, d)) * scale
    rows[:, 0] += gap * scale * codes
    folds = k_fold(None, codes, 3)
    options = LogisticOptions(C=C, standardize=None, precision=torch.float64)
    found = crossfit(torch.from_numpy(rows), torch.from_numpy(codes)[None], 2, folds, options)
    assert found.n_uncertified == 0
    peer = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=500)
    for train, test in zip(folds.train, folds.test, strict=True):
        wanted = peer.fit(rows[train], codes[train]).decision_function(rows[test])
        off = np.abs(found.scores[0, 0].numpy()[test] - wanted).max()
        assert off <= 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("C", [1.0, 100.0])
def test_float32_probes_keep_their_coefficients(C):
    """Coefficients are differences of large numbers: scores are rounded after them."""
    rng = np.random.default_rng(1)
    rows, codes = rng.normal(size=(3000, 20)) * 30, rng.integers(0, 2, 3000)
    rough = LogisticProbe(C=C, precision="float32").fit(rows, codes)
    peer = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10)
    wanted = peer.fit(rows, codes).decision_function(rows)
    off = np.abs(rough.decision_function(rows) - wanted).max()
    assert off <= 1e-4 * np.abs(wanted).max()
