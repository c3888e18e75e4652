"""The compiled short way ends where the torch expressions beside it end."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from probes.solvers.compiled import dispatch
from probes.solvers.crossfit import crossfit
from probes.solvers.newton import newton_cg, newton_cg_mixed
from probes.solvers.newton.newton_cg_mixed import solve_mixed
from probes.solvers.objective.batch import Batch, Work
from probes.solvers.objective.factor import MAX_SWEPT_ROWS, Operator, factor_gram, remove_rows
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import LogisticOptions, one_hot
from probes.splits.folds import k_fold, leave_one_group_out

pytest.importorskip("numba", reason="without numba there is no compiled way to test")
ACCEPTED = newton_cg.ACCEPTED_TOL[torch.float64]

pytestmark = pytest.mark.usefixtures("however_few")


def problems(n, d, count, width, scale, C, seed, shared=False):
    """Problems of their own labels and weights; of each ``width`` rows are left out."""
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.normal(size=(n, d)) * scale)
    rows -= rows.mean(0)
    codes = torch.from_numpy(np.stack([rng.permutation(np.arange(n) % 2) for _ in range(count)]))
    target = one_hot(codes[:1] if shared else codes, 2)
    weight = torch.from_numpy(C * rng.uniform(0.5, 2, (count, 1, n)))
    fixed = torch.from_numpy(C * rng.uniform(0.02, 0.2, (1, n)))
    factor = factor_gram(rows @ rows.T, fixed)
    if width == 0:
        operator = Operator(factor, factor.weight[None])
    else:
        out = np.stack([rng.choice(n, width, replace=False) for _ in range(count)])
        out = torch.from_numpy(out)
        present = torch.ones_like(out, dtype=torch.bool)
        present[::2, -1] = width == 1  # every other problem pads its last place
        taken = torch.where(present, 0.0, weight[:, 0].gather(1, out))
        weight.scatter_(2, out[:, None], taken[:, None])
        operator, _ = remove_rows(factor, out, present)
    nothing = weight.new_zeros(count, 1, n)
    return Batch(Loss(target, weight), operator, nothing, nothing.clone())


def both(batch, iterations=torch.float32, kind=torch.float64, steps=60):
    """The compiled answer and that of the torch expressions."""
    batch = Batch(
        batch.loss.to(kind), batch.operator.to(kind), batch.dual.to(kind), batch.scores.to(kind)
    )
    target, accepted = newton_cg.TOL[kind], newton_cg.ACCEPTED_TOL[kind]
    found = []
    for use in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dispatch, "numba_installed", lambda use=use: use)
            assert dispatch.supports_binary(batch) is use
            found.append(solve_mixed(batch, target, accepted, iterations, steps, Work()))
    return found


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(2, 50),
    d=st.integers(1, 60),
    count=st.sampled_from([1, 3, 17, 150]),
    width=st.integers(0, MAX_SWEPT_ROWS),
    scale=st.sampled_from([0.03, 0.3, 1.0]),
    C=st.sampled_from([0.1, 1.0]),
    shared=st.booleans(),
    iterations=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_both_end_at_the_same_optimum(n, d, count, width, scale, C, shared, iterations, seed):
    width = min(width, n // 4)
    batch = problems(n, d, count, width, scale, C, seed, shared)
    compiled, torched = both(batch, iterations)
    # Either may leave a problem to safeguarded steps, and then says so.
    solved = torch.isfinite(compiled[2])
    assert bool((compiled[2][solved] <= ACCEPTED).all())
    shared_ones = solved & torch.isfinite(torched[2])
    gap = (compiled[0] - torched[0])[shared_ones].abs()
    largest = float(torched[0].abs().max())
    assert bool((gap <= 5e-8 * max(largest, 1e-3)).all())
    fresh = batch.operator(compiled[1])[solved]
    assert bool(((fresh - compiled[0][solved]).abs() <= 1e-8 * largest + 1e-10).all())
    # The batch itself is left as it was.
    assert not bool(batch.scores.any()) and not bool(batch.dual.any())


def test_float32_answers_agree_to_their_own_tolerance():
    batch = problems(80, 120, 30, 2, 1.0, 1.0, 5)
    compiled, torched = both(batch, torch.float32, torch.float32)
    assert compiled[0].dtype == torch.float32
    assert float(compiled[2].max()) <= newton_cg.ACCEPTED_TOL[torch.float32]
    scale = float(torched[0].abs().max())
    assert float((compiled[0] - torched[0]).abs().max()) <= 1e-4 * scale


def test_what_it_certifies_is_the_optimum_of_plain_newton():
    """Against Newton steps on the whole Hessian, which share no code with either."""
    batch = problems(40, 60, 12, 1, 0.7, 1.0, 1)
    scores, _, certificate = both(batch)[0]
    assert float(certificate.max()) <= ACCEPTED
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(40, 60)) * 0.7
    table = np.c_[rows - rows.mean(0), np.ones(40)]
    penalty = np.r_[np.ones(60), 0.0]
    for problem in range(12):
        target = batch.loss.target[problem, 0].numpy()
        weight = batch.loss.weight[problem, 0].numpy()
        point = np.zeros(61)
        for _ in range(60):
            chance = 1 / (1 + np.exp(-(table @ point)))
            gradient = table.T @ (weight * (chance - target)) + penalty * point
            bend = weight * chance * (1 - chance)
            hessian = (table.T * bend) @ table + np.diag(penalty)
            point -= np.linalg.solve(hessian, gradient)
        expected = table @ point
        gap = np.abs(scores[problem, 0].numpy() - expected).max()
        assert gap <= 1e-7 * np.abs(expected).max()


def test_neither_company_nor_order_changes_an_answer():
    """Blocks hold other problems, in other places, and one stops before the other."""
    batch = problems(60, 90, 150, 1, 0.3, 1.0, 2)
    whole = both(batch)[0]
    order = torch.from_numpy(np.random.default_rng(0).permutation(150))
    for part in (order, order[:7], order[3:4]):
        scores, dual, certificate = both(batch.select(part))[0]
        assert float(certificate.max()) <= ACCEPTED
        scale = float(whole[0].abs().max())
        assert float((scores - whole[0][part]).abs().max()) <= 1e-8 * scale
        scale = float(whole[1].abs().max())
        assert float((dual - whole[1][part]).abs().max()) <= 1e-7 * scale


def test_what_it_leaves_has_no_certificate():
    steep = problems(40, 50, 6, 1, 300.0, 1e6, 0)
    assert not bool((both(steep, steps=1)[0][2] <= ACCEPTED).any())
    broken = problems(40, 50, 6, 1, 1.0, 1.0, 0)
    broken.loss.weight[2, 0, 0] = torch.nan
    certificate = both(broken)[0][2]
    assert not float(certificate[2]) <= ACCEPTED
    kept = torch.arange(6) != 2
    assert bool((certificate[kept] <= ACCEPTED).all())


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_probabilities_are_right_to_the_last_digits(kind):
    from numba import njit

    from probes.solvers.compiled import math as sigmoid

    @njit
    def every(scores, out):
        for i in range(len(scores)):
            out[i] = sigmoid.logistic(scores[i])

    top = 80 if kind == np.float32 else 700
    scores = np.linspace(-top, top, 100_001).astype(kind)
    out = np.empty_like(scores)
    every(scores, out)
    expected = 1 / (1 + np.exp(-scores.astype(np.longdouble)))
    share = np.abs(out / expected - 1).max()
    assert float(share) <= 3 * np.finfo(kind).eps
    odd = np.array([np.inf, -np.inf, 1e9, -1e9, np.nan], kind)
    every(odd, out[:5])
    np.testing.assert_allclose(out[:5], [1, 0, 1, 0, np.nan], atol=1e-37)


def test_only_two_classes_and_few_rows_taken_out_are_its_own():
    assert dispatch.supports_binary(problems(40, 50, 4, MAX_SWEPT_ROWS, 1.0, 1.0, 0))
    assert not dispatch.supports_binary(problems(40, 50, 4, MAX_SWEPT_ROWS + 1, 1.0, 1.0, 0))
    batch = problems(40, 50, 4, 1, 1.0, 1.0, 0)
    several = Loss(batch.loss.target.expand(-1, 3, -1), batch.loss.weight)
    assert not dispatch.supports_binary(Batch(several, batch.operator, batch.dual, batch.scores))
    half = Batch(batch.loss, batch.operator, batch.dual, batch.scores.half())
    assert not dispatch.supports_binary(half)


def test_few_problems_are_not_worth_compiling_for(monkeypatch):
    monkeypatch.setattr(dispatch, "MIN_PROBLEMS", 5)
    assert not dispatch.supports_binary(problems(40, 50, 4, 1, 1.0, 1.0, 0))
    assert dispatch.supports_binary(problems(40, 50, 5, 1, 1.0, 1.0, 0))


def test_numba_is_imported_when_it_is_used_and_not_before():
    code = (
        "import sys, probes.solvers.crossfit\n"
        "import probes.solvers.newton.newton_cg_mixed, probes.solvers.compiled.dispatch\n"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_where_nothing_can_be_written_it_is_compiled_anew(monkeypatch):
    from probes.solvers.compiled import math as sigmoid

    asked = []

    def njit(cache=False, **options):
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(sigmoid, "njit", njit)
    assert sigmoid.compiled(max, cache=True) is max
    assert asked == [True, False]


def test_folds_are_the_same_without_it(monkeypatch):
    rng = np.random.default_rng(4)
    x = torch.from_numpy(rng.normal(size=(120, 200)))
    codes = torch.from_numpy(np.stack([rng.permutation(np.arange(120) % 2) for _ in range(40)]))
    folds = k_fold(None, codes[0].numpy(), 5)
    found = crossfit(x, codes, 2, folds, LogisticOptions())
    monkeypatch.setattr(dispatch, "numba_installed", lambda: False)
    plain = crossfit(x, codes, 2, folds, LogisticOptions())
    assert found.n_uncertified == plain.n_uncertified == 0
    gap = (found.scores - plain.scores).abs().max()
    assert float(gap) <= 2e-8 * float(plain.scores.abs().max())


def test_the_limits_are_those_of_the_torch_expressions(monkeypatch):
    """One step down and one system: what torch leaves unsolved is unsolved here."""
    batch = problems(60, 90, 20, 1, 1.0, 1.0, 3)
    monkeypatch.setattr(
        newton_cg_mixed, "LIMITS", replace(newton_cg_mixed.LIMITS, steps=1, newton_steps=1)
    )
    compiled, torched = both(batch)
    assert bool(torch.isinf(torched[2]).all())
    assert bool(torch.isinf(compiled[2]).all())


@pytest.mark.parametrize(
    ("precision", "gap", "products"), [(torch.float64, 1e-8, 6), (torch.float32, 1e-4, 3)]
)
def test_one_row_left_out_takes_few_products(precision, gap, products):
    """Turn by turn: conjugate directions took half as many again."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(90, 150)) * np.arange(1, 151) ** -0.5
    y = rng.permutation(np.arange(90) % 2)
    folds = leave_one_group_out(None, 90)
    found = crossfit(
        torch.from_numpy(x),
        torch.from_numpy(y[None]),
        2,
        folds,
        LogisticOptions(precision=precision),
    )
    assert found.n_uncertified == 0
    assert found.work.products <= products * 90
    scores = found.scores[0, 0].double().numpy()
    for row in (0, 41, 89):
        peer = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=500)
        peer.fit(x[folds.train[row]], y[folds.train[row]])
        expected = peer.decision_function(x[row : row + 1])[0]
        assert abs(scores[row] - expected) <= gap * np.abs(scores).max()


def test_what_float32_leaves_at_its_goal_is_polished():
    """Starts at nothing come down in float32 whole, and end at a float64 optimum."""
    batch = problems(60, 90, 70, 0, 0.3, 1.0, 8)
    (scores, dual, certificate), torched = both(batch)
    assert float(certificate.max()) <= ACCEPTED
    scale = float(torched[0].abs().max())
    assert float((scores - torched[0]).abs().max()) <= 5e-8 * scale
    assert float((batch.operator(dual) - scores).abs().max()) <= 1e-9 * scale
