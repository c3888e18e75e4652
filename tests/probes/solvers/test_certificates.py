"""What is certified is the optimum, also where rows have lost their curvature."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from probes.solvers.crossfit import crossfit
from probes.solvers.newton import newton_cg
from probes.solvers.objective.batch import Batch, Work
from probes.solvers.objective.factor import Operator, factor_gram
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import LogisticOptions, one_hot
from probes.splits.folds import k_fold


def objective(weights, shift, rows, codes, C):
    """Penalised loss of a probe; one row of weights for two classes."""
    scores = rows @ weights.T + shift
    if len(weights) == 1:
        loss = np.logaddexp(0, -(2 * codes - 1) * scores[:, 0])
    else:
        loss = logsumexp(scores, 1) - scores[np.arange(len(codes)), codes]
    return C * loss.sum() + 0.5 * np.square(weights).sum()


@pytest.mark.parametrize(
    ("n", "d", "classes", "scale", "gap", "C"),
    [
        (120, 100, 4, 100.0, 0.0, 1e4),
        (120, 100, 4, 10.0, 4.0, 1e4),
        (120, 100, 4, 1.0, 0.0, 100.0),
        (150, 120, 2, 100.0, 10.0, 1e4),
        (150, 120, 2, 100.0, 10.0, 1e5),
        (200, 300, 2, 10.0, 4.0, 1e4),
    ],
)
def test_certified_probes_are_no_worse_than_newtons(n, d, classes, scale, gap, C):
    """Once 0.236 was certified, with certificate 0, where the optimum is 0.0265.

    Scores cannot be compared where scikit-learn itself stops short; values can.
    """
    rng = np.random.default_rng(0)
    codes = rng.integers(0, classes, n)
    rows = rng.normal(size=(n, d)) * scale
    rows[np.arange(n), codes] += gap * scale
    folds = k_fold(None, codes, 3)
    options = LogisticOptions(C=C, standardize=None, precision=torch.float64)
    found = crossfit(
        torch.from_numpy(rows),
        torch.from_numpy(codes)[None],
        classes,
        folds,
        options,
        coefficients=True,
    )
    assert found.n_uncertified == 0
    peer = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=500)
    assert found.coef is not None and found.intercept is not None
    for fold, train in enumerate(folds.train):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it stops short
            peer.fit(rows[train], codes[train])
        part = rows[train], codes[train], C
        best = objective(peer.coef_, peer.intercept_, *part)
        ours = found.coef[0, fold].numpy(), found.intercept[0, fold].numpy()
        assert objective(*ours, *part) <= best * (1 + 1e-7)


def test_a_step_that_could_not_be_solved_for_certifies_nothing(monkeypatch):
    """Cut short, conjugate gradients make what is left look shorter than it is."""
    rng = np.random.default_rng(1)
    n, classes = 120, 3
    codes = torch.from_numpy(rng.integers(0, classes, n))[None]
    rows = torch.from_numpy(rng.normal(size=(n, 90)) * 3)
    rows -= rows.mean(0)
    loss = Loss(one_hot(codes, classes), torch.full((1, 1, n), 10.0).double())
    weight = torch.full((1, n), 1.0).double()
    operator = Operator(factor_gram(rows @ rows.T, weight), weight[None])
    nothing = torch.zeros_like(loss.target)
    batch = Batch(loss, operator, nothing, nothing)
    scores, dual, certificate = newton_cg.minimize(batch)
    assert float(certificate.max()) <= newton_cg.ACCEPTED_TOL[torch.float64]
    short = partial(newton_cg.solve_newton_system, max_steps=1)
    monkeypatch.setattr(newton_cg, "solve_newton_system", short)
    found = newton_cg.local_certificates(batch, scores, dual, certificate, Work())
    assert float(found.min()) > 1


def test_a_metric_that_shortens_steps_is_made_up_for():
    """Folds of other scales are judged with an operator that is not quite theirs."""
    rng = np.random.default_rng(2)
    n = 80
    codes = torch.from_numpy(rng.integers(0, 2, n))[None]
    rows = torch.from_numpy(rng.normal(size=(n, 60)))
    rows -= rows.mean(0)
    loss = Loss(one_hot(codes, 2), torch.full((1, 1, n), 1e4).double())
    weight = torch.full((1, n), 1e6).double()
    operator = Operator(factor_gram(rows @ rows.T, weight), weight[None])
    dual = torch.from_numpy(rng.normal(size=(1, 1, n))) * 1e4
    batch = Batch(loss, operator, dual, operator(dual))
    # The factor is so much stiffer than the loss that only the step which is left can
    # say how far it is to the optimum.
    small = torch.full((1,), 1e-9).double()
    plain = newton_cg.local_certificates(batch, batch.scores, dual, small, Work())
    wider = newton_cg.local_certificates(
        batch, batch.scores, dual, small, Work(), torch.full((1,), 3.0).double()
    )
    assert float(plain) > 1e-3
    assert float(wider) == pytest.approx(3 * float(plain), rel=1e-6)


@pytest.mark.parametrize(
    ("n", "d", "gap", "C", "folds"),
    [(150, 120, 3.0, 1e6, 10), (60, 576, 1.0, 1e5, 60), (120, 100, 0.0, 100.0, 10)],
)
def test_folds_with_scales_of_their_own_are_no_worse_than_newtons(n, d, gap, C, folds):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, n)
    rows = rng.normal(size=(n, d))
    rows[np.arange(n), codes] += gap
    rows[:, 1] *= 1 + 5 * (rng.random(n) < 0.05)  # a column whose scale is a few rows'
    split = k_fold(None, codes, folds)
    found = crossfit(
        torch.from_numpy(rows),
        torch.from_numpy(codes)[None],
        2,
        split,
        LogisticOptions(C=C, standardize="fold", precision=torch.float64),
        coefficients=True,
    )
    assert found.n_uncertified == 0
    peer = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=500)
    assert found.coef is not None and found.intercept is not None
    for fold, train in enumerate(split.train[:12]):
        mean, size = rows[train].mean(0), rows[train].std(0)
        part = (rows[train] - mean) / size, codes[train], C
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it stops short
            peer.fit(*part[:2])
        best = objective(peer.coef_, peer.intercept_, *part)
        weights = found.coef[0, fold].numpy()
        shift = found.intercept[0, fold].numpy() + weights @ mean
        assert objective(weights * size, shift, *part) <= best * (1 + 1e-7)
