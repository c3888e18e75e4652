"""Few folds of many rows: the optimum, whatever the metric they went down in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from probes.solvers import crossfit as module
from probes.solvers.crossfit import crossfit
from probes.solvers.newton import newton_primal_rough
from probes.solvers.objective.batch import Work
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import LogisticOptions, one_hot
from probes.splits.folds import k_fold


def data(seed=0, n=300, d=20, scale=1.0, gap=1.0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2, n)
    rows = rng.normal(size=(n, d)) * scale
    rows[:, 0] += gap * scale * codes
    return rows - rows.mean(0), codes


def loss_of(codes, train, C):
    weight = C * torch.from_numpy(train).double()[:, None]
    return Loss(one_hot(torch.from_numpy(codes)[None], 2), weight)


@pytest.mark.parametrize(
    ("C", "scale", "gap"), [(1e-3, 0.1, 1.0), (1.0, 1.0, 1.0), (1e3, 1.0, 1.0), (1e-3, 30.0, 3.0)]
)
def test_weights_are_scikit_learns(C, scale, gap):
    rows, codes = data(scale=scale, gap=gap)
    train = k_fold(None, codes, 5).train
    loss = loss_of(codes, train, C)
    found = newton_primal_rough.fit_primal(torch.from_numpy(rows), loss, 1e-9, Work())
    point, scores, certificate = found
    assert float(certificate.max()) <= 1e-9
    for fold, kept in enumerate(train):
        peer = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=500)
        peer.fit(rows[kept], codes[kept])
        expected = peer.decision_function(rows)
        gap_of = np.abs(scores[fold].numpy() - expected).max()
        assert gap_of <= 1e-8 * np.abs(expected).max()
        by_hand = rows @ point[fold, :-1].numpy() + float(point[fold, -1])
        np.testing.assert_allclose(by_hand, scores[fold].numpy(), rtol=1e-9, atol=1e-9)


def test_a_wrong_metric_costs_steps_and_no_digits(monkeypatch):
    rows, codes = data()
    loss = loss_of(codes, k_fold(None, codes, 5).train, 1.0)
    rows = torch.from_numpy(rows)
    plain, off = Work(), Work()
    expected = newton_primal_rough.fit_primal(rows, loss, 1e-9, plain)[1]
    make = newton_primal_rough._preconditioner

    def warped(table, bend, exact):
        return make(table, bend * torch.linspace(0.2, 5, len(table)), exact)

    monkeypatch.setattr(newton_primal_rough, "_preconditioner", warped)
    found, certificate = newton_primal_rough.fit_primal(rows, loss, 1e-9, off)[1:]
    assert float(certificate.max()) <= 1e-9
    assert float((found - expected).abs().max()) <= 1e-8 * float(expected.abs().max())
    assert off.products > plain.products


def concepts(count=20, each=20, d=100):
    """One concept against all others, classes weighing the same."""
    rng = np.random.default_rng(0)
    of = rng.permutation(np.repeat(np.arange(count), each))
    rows = rng.normal(size=(len(of), d)) + rng.normal(size=(count, d))[of]
    codes = (of == np.arange(count)[:, None]).astype(int)
    weight = np.where(codes == 1, count / 2, count / (2 * (count - 1)))[:, None]
    target = one_hot(torch.from_numpy(codes), 2)
    return rows - rows.mean(0), codes, Loss(target, 0.1 * torch.from_numpy(weight))


def test_rare_classes_are_scikit_learns():
    rows, codes, loss = concepts()
    _, scores, certificate = newton_primal_rough.fit_primal(
        torch.from_numpy(rows), loss, 1e-9, Work()
    )
    assert float(certificate.max()) <= 1e-9
    for code, own in zip(codes[:3], scores[:3].numpy(), strict=True):
        peer = LogisticRegression(
            C=0.1, solver="newton-cholesky", tol=1e-12, max_iter=500, class_weight="balanced"
        )
        expected = peer.fit(rows, code).decision_function(rows)
        assert np.abs(own - expected).max() <= 1e-8 * np.abs(expected).max()


def test_what_a_problem_bends_of_its_own_saves_steps(monkeypatch):
    rows, _, loss = concepts()
    rows, plain, without = torch.from_numpy(rows), Work(), Work()
    newton_primal_rough.fit_primal(rows, loss, 1e-9, plain)
    make = newton_primal_rough._preconditioner

    def shared(table, bend, exact):
        found = make(table, bend, exact)
        assert found is not None
        return replace(found, own=torch.zeros_like(found.own))

    monkeypatch.setattr(newton_primal_rough, "_preconditioner", shared)
    newton_primal_rough.fit_primal(rows, loss, 1e-9, without)
    assert without.products > 1.2 * plain.products


def test_rounding_is_left_to_the_exact_steps(monkeypatch):
    rows, codes = data()
    loss = loss_of(codes, k_fold(None, codes, 5).train, 1.0)
    rows, brief, long = torch.from_numpy(rows), Work(), Work()
    # A certificate that float32 cannot reach.
    monkeypatch.setattr(newton_primal_rough, "FLOAT32_TOL", 0.0)
    _, scores, certificate = newton_primal_rough.fit_primal(rows, loss, 1e-9, brief)
    assert float(certificate.max()) <= 1e-9
    monkeypatch.setattr(newton_primal_rough, "FLOAT32_FLOOR", 0.0)
    expected = newton_primal_rough.fit_primal(rows, loss, 1e-9, long)[1]
    assert brief.products < 0.7 * long.products
    assert float((scores - expected).abs().max()) <= 1e-8 * float(expected.abs().max())


def test_a_row_that_does_not_bend_gives_no_metric():
    table = torch.ones(4, 3)
    assert newton_primal_rough._preconditioner(table, torch.zeros(2, 4), exact=False) is None
    assert newton_primal_rough._preconditioner(table, torch.zeros(2, 4), exact=True) is None


def test_unsolved_problems_have_no_certificate(monkeypatch):
    rows, codes = data()
    loss = loss_of(codes, k_fold(None, codes, 5).train, 1.0)
    monkeypatch.setattr(newton_primal_rough, "MAX_NEWTON_STEPS", 1)
    certificate = newton_primal_rough.fit_primal(torch.from_numpy(rows), loss, 1e-9, Work())[2]
    assert not bool((certificate <= 1e-9).any())


def test_what_it_leaves_is_solved_on_exact_factors(monkeypatch):
    rows, codes = data()
    folds = k_fold(None, codes, 5)
    args = torch.from_numpy(rows), torch.from_numpy(codes)[None], 2, folds
    expected = crossfit(*args, LogisticOptions(), coefficients=True)
    fit = newton_primal_rough.fit_primal

    def give_up(*arguments):
        point, scores, certificate = fit(*arguments)
        certificate[1:3], scores[1:3] = torch.inf, torch.nan
        return point, scores, certificate

    monkeypatch.setattr(module, "fit_primal", give_up)
    found = crossfit(*args, LogisticOptions(), coefficients=True)
    assert found.n_uncertified == 0
    scale = float(expected.scores.abs().max())
    assert float((found.scores - expected.scores).abs().max()) <= 1e-8 * scale
    assert found.coef is not None and expected.coef is not None
    assert float((found.coef - expected.coef).abs().max()) <= 1e-7


@pytest.mark.parametrize(
    ("C", "scale", "gap"), [(3.0, 1.0, 1.0), (1e3, 30.0, 3.0), (1e5, 10.0, 1.0)]
)
def test_the_exact_route_gives_the_same(C, scale, gap, monkeypatch):
    """Also with next to no penalty, where the rough metric leaves the folds to it."""
    rows, codes = data(scale=scale, gap=gap)
    folds = k_fold(None, codes, 5)
    args = torch.from_numpy(rows), torch.from_numpy(codes)[None], 2, folds
    quick = crossfit(*args, LogisticOptions(C=C))
    assert quick.n_uncertified == 0
    quick = quick.scores
    monkeypatch.setattr(module, "MAX_PRIMAL_FOLDS", 0)
    exact = crossfit(*args, LogisticOptions(C=C)).scores
    assert float((quick - exact).abs().max()) <= 1e-8 * float(exact.abs().max())
