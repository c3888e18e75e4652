"""The short way ends where the safeguarded steps end, or says that it did not."""

import numpy as np
import pytest
import torch

from probes.solvers.compiled import dispatch
from probes.solvers.newton import newton_cg, newton_cg_mixed
from probes.solvers.newton.initial_fit import _newton, initial_fit
from probes.solvers.objective.batch import Batch, Work
from probes.solvers.objective.factor import factor_gram, remove_rows
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import one_hot

ACCEPTED = newton_cg.ACCEPTED_TOL[torch.float64]

pytestmark = pytest.mark.usefixtures("however_few")


def problems(classes, n=60, d=80, folds=20, scale=1.0, seed=0, C=1.0):
    """Every third row left out in turn, from nothing, on a factor without it."""
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(rng.permutation(np.arange(n) % classes))[None]
    rows = torch.from_numpy(rng.normal(size=(n, d)) * scale)
    rows -= rows.mean(0)
    out = torch.arange(0, n, n // folds)[:folds, None]
    weight = torch.full((folds, 1, n), C).double()
    weight.scatter_(2, out[:, None], 0.0)
    target = one_hot(codes, classes)
    fixed = torch.full((1, n), 0.05 * C).double()
    factor = factor_gram(rows @ rows.T, fixed)
    operator, _ = remove_rows(factor, out, torch.ones_like(out, dtype=torch.bool))
    nothing = target.new_zeros(folds, target.shape[1], n)
    return Batch(Loss(target, weight), operator, nothing, nothing.clone())


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def way(request, monkeypatch):
    """Both the compiled steps, where numba is there, and the torch expressions."""
    if request.param == "torch":
        monkeypatch.setattr(dispatch, "numba_installed", lambda: False)
    elif not dispatch.numba_installed():
        pytest.skip("numba is not installed; the torch expressions are tested")


def approached(batch, iterations=torch.float32, steps=60):
    return newton_cg_mixed.solve_mixed(batch, 1e-9, ACCEPTED, iterations, steps, Work())


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("iterations", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_it_ends_where_safeguarded_steps_end(classes, iterations, scale):
    batch = problems(classes, scale=scale)
    scores, dual, certificate = approached(batch, iterations)
    own = problems(classes, scale=scale)  # it moves the batch that it is given
    slow, _, reached = newton_cg._solve_safeguarded(own, 1e-10, 60, True, Work())
    assert float(reached.max()) <= ACCEPTED
    solved = certificate <= ACCEPTED
    # Far from a factor of constant weights some are left to the others.
    assert scale > 1 or bool(solved.all())
    whole = newton_cg.minimize(batch, iteration_dtype=iterations)
    assert float(whole[2].max()) <= ACCEPTED
    # A certificate of 1e-8 is one of length: a single score may be off by more.
    few = 2e-8 if scale <= 1 else 1e-7
    gap = (whole[0] - slow).abs().max()
    assert float(gap) <= few * float(slow.abs().max())
    gap = (scores - slow)[solved].abs()
    assert bool((gap <= few * float(slow.abs().max())).all())
    fresh = batch.operator(dual)[solved]
    torch.testing.assert_close(fresh, scores[solved], rtol=1e-8, atol=1e-9)


def test_the_order_of_problems_changes_nothing():
    batch = problems(2)
    reversed_order = torch.arange(len(batch.scores)).flip(0)
    straight = approached(batch)[0]
    backwards = approached(batch.select(reversed_order))[0].flip(0)
    scale = float(straight.abs().max())
    assert float((straight - backwards).abs().max()) <= 1e-8 * scale


def test_finished_problems_leave_and_come_back_in_place(monkeypatch):
    """Copied together and cut off alike, whatever is left."""
    batch = problems(2)
    expected = approached(batch)[0]
    # Half of them start where they end: they are finished from the first look on.
    done = torch.arange(len(batch.scores)) % 2 == 0
    scores, dual, _ = approached(batch)
    batch.dual = torch.where(done[:, None, None], dual, 0.0)
    batch.scores = torch.where(done[:, None, None], scores, 0.0)
    for fewer in (0.0, 0.9):
        monkeypatch.setattr(newton_cg_mixed, "COMPACT_BELOW", fewer)
        found, _, certificate = approached(batch)
        assert float(certificate.max()) <= ACCEPTED
        scale = float(expected.abs().max())
        assert float((found - expected).abs().max()) <= 1e-8 * scale


def test_what_is_left_on_the_way_has_no_certificate():
    _, _, certificate = approached(problems(2), steps=1)
    assert bool(torch.isinf(certificate).all())


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_on_the_own_metric_is_one(seed):
    """Against the decrement itself, from dense systems of every problem."""
    rng = np.random.default_rng(seed)
    batch = problems(2, folds=12, seed=seed, scale=2.0)
    n = batch.scores.shape[2]
    # Anywhere: rows that lost their curvature and rows that gained some.
    scores = torch.from_numpy(rng.normal(size=(12, 1, n))) * 4
    residual = torch.from_numpy(rng.normal(size=(12, 1, n))) * (batch.loss.weight > 0)
    fixed = batch.operator.weight
    own = batch.loss.curvature(torch.sigmoid(scores))
    over = torch.where(fixed > 0, 1 / fixed, 0.0)
    curvature = newton_cg_mixed.Curvature(own - fixed)
    product = batch.operator(residual)
    square = (residual * product).sum((1, 2))
    size = torch.ones(12).double()
    leverage = batch.operator.leverage().expand_as(over)
    _, bound = newton_cg_mixed._certificates(
        size, over, leverage, curvature, residual, square, Work()
    )
    dense = batch.operator.dense()[:, 0]
    for problem in range(12):
        system = torch.eye(n) + curvature.diagonal[problem, 0, :, None] * dense[problem]
        step = torch.linalg.solve(system, residual[problem, 0])
        true = float(residual[problem, 0] @ dense[problem] @ step) ** 0.5
        assert true <= float(bound[problem]) * (1 + 1e-9)


def test_leverage_is_the_diagonal_of_what_the_operator_applies():
    batch = problems(2, n=30, d=40, folds=6)
    dense = batch.operator.dense()[:, 0].diagonal(dim1=1, dim2=2)
    expected = batch.operator.weight[:, 0] * dense
    torch.testing.assert_close(batch.operator.leverage()[:, 0], expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_newton_on_all_rows_is_the_same_in_arrays_and_tensors(scale):
    rng = np.random.default_rng(3)
    rows = scale * rng.normal(size=(80, 200))
    gram = rows @ rows.T
    goal, base = rng.permutation(np.arange(80.0) % 2), np.ones(80)
    given = (gram, goal, base)
    found = _newton(*given, tol=1e-9, steps=40)
    same = _newton(*map(torch.from_numpy, given), tol=1e-9, steps=40)
    assert found is not None and same is not None
    np.testing.assert_allclose(found[0], same[0], atol=1e-10 * abs(found[0]).max())
    largest = abs(gram @ found[0]).max()
    np.testing.assert_allclose(found[1], same[1], atol=1e-9 * largest)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
def test_the_full_fit_ends_at_the_optimum_whatever_it_guessed(scale, share, C):
    rng = np.random.default_rng(3)
    n = 70
    target = torch.from_numpy(rng.permutation(np.arange(n) < share * n)).double()
    rows = torch.from_numpy(rng.normal(size=(n, 90)) * scale)
    rows -= rows.mean(0)
    loss = Loss(target[None, None], torch.full((1, 1, n), C).double())
    gram = rows @ rows.T
    fit = initial_fit(gram, loss, tol=1e-5)
    pull = C * (target - torch.sigmoid(fit.scores[0]))
    gap = (pull - fit.dual[0]).abs().max()
    assert float(gap) <= 1e-3 * float(fit.dual.abs().max()) + 1e-6 * C
