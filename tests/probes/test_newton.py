"""The last resort: certificates that bound the distance, whatever the last digits."""

from fractions import Fraction
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.linalg import LinAlgError  # pyright: ignore

from probes.solvers import crossfit as module
from probes.solvers import last_resort
from probes.solvers.crossfit import crossfit
from probes.solvers.newton import newton_certified
from probes.solvers.newton.compensated import dot, two_product, two_sum
from probes.solvers.newton.newton_certified import newton_fit
from probes.solvers.newton.point import evaluate, make_problem
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import LogisticOptions, one_hot
from probes.splits.folds import Folds, k_fold, leave_one_group_out


def problem(n, d, classes, scale, gap, C, seed, spread=0.0):
    """Centred rows, codes and the loss of one problem."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % classes)
    rows = rng.normal(size=(n, d)) * scale * 10 ** rng.uniform(-spread, spread, d)
    rows[np.arange(n), codes % d] += gap * scale
    rows = torch.from_numpy(rows - rows.mean(0))
    weight = torch.full((1, 1, n), C, dtype=torch.float64)
    return rows, codes, Loss(one_hot(torch.from_numpy(codes)[None], classes), weight)


def true_distance(rows, codes, C, fit):
    """Distance to the optimum over the size, to first order, in sixty digits."""
    table = [[mpmath.mpf(float(v)) for v in row] + [mpmath.mpf(1)] for row in rows]
    classes, width = len(fit.weights), len(table[0])
    point = torch.cat([fit.weights, fit.intercept[:, None]], 1).tolist()
    many = classes * width
    gradient, hessian = mpmath.zeros(many, 1), mpmath.zeros(many, many)
    size = flat = mpmath.mpf(0)
    for c in range(classes):
        for j in range(width - 1):
            weight = mpmath.mpf(point[c][j])
            gradient[c * width + j] = weight
            hessian[c * width + j, c * width + j] = 1
            size += weight**2
        for other in range(classes if classes > 1 else 0):
            # Intercepts are free up to a constant, which this holds.
            hessian[c * width + width - 1, other * width + width - 1] += C
    for row, code in zip(table, codes.tolist(), strict=True):
        scores = [sum(map(mpmath.fmul, row, each)) for each in point]
        every = [mpmath.mpf(0), *scores] if classes == 1 else scores
        shares = [mpmath.exp(score - max(every)) for score in every]
        shares = [share / sum(shares) for share in shares][-classes:]
        for c in range(classes):
            wanted = int(code == c) if classes > 1 else code
            flat += C * shares[c] * (1 - shares[c])
            for j in range(width):
                gradient[c * width + j] -= C * (wanted - shares[c]) * row[j]
            for other in range(classes):
                bend = C * ((c == other) - shares[other]) * shares[c]
                size += scores[c] * bend * scores[other]
                for j in range(width):
                    for k in range(width):
                        at = c * width + j, other * width + k
                        hessian[at] += bend * row[j] * row[k]
    step = mpmath.lu_solve(hessian, gradient)
    return float(mpmath.sqrt((step.T * gradient)[0] / max(size, mpmath.mpf("1e-6") * flat)))


@pytest.mark.parametrize(
    "case",
    [
        (12, 3, 2, 1.0, 0.0, 1.0, 0),
        (10, 3, 2, 100.0, 0.0, 1e4, 1),
        (9, 4, 2, 1e3, 5.0, 1e6, 2),
        (6, 8, 2, 100.0, 0.0, 1e4, 3),
        (10, 3, 3, 100.0, 0.0, 1e4, 4),
        (6, 8, 3, 1e4, 3.0, 1e8, 5),
        (12, 3, 2, 1.0, 0.0, 1e8, 6, 4.0),
        (12, 2, 3, 1e4, 0.0, 1e10, 7),
    ],
)
@pytest.mark.parametrize("target", [1e-3, 1e-8, 0.0])
def test_the_certificate_is_a_bound_and_a_close_one(case, target):
    """Also where a target of zero leaves nothing but rounding."""
    rows, codes, loss = problem(*case)
    fit = newton_fit(rows, loss, target)
    with mpmath.workdps(60):
        far = true_distance(rows, codes, case[5], fit)
    assert far <= fit.certificate <= 1.1 * far + 1e-12
    assert fit.certificate <= max(target, 1e-8)


HARD = {
    # A pull of 1e5 (1 - p) has lost the digits of p where rows are told apart.
    "told apart": (150, 120, 2, 100.0, 10.0, 1e5, 0),
    "four classes": (80, 70, 4, 100.0, 0.0, 1e4, 0),
    "columns of all sizes": (50, 60, 3, 200.0, 0.0, 1e5, 45, 4.0),
    "few columns": (120, 12, 2, 1e4, 0.0, 1e6, 1),
}


@pytest.mark.parametrize("case", HARD.values(), ids=HARD)
def test_no_order_turn_or_last_digit_decides_on_a_certificate(case):
    """Nor how far it is: the answer is the same to what was promised."""
    rows, codes, _ = problem(*case)
    rng, classes, C = np.random.default_rng(1), case[2], case[5]
    folds = k_fold(None, codes, 3)
    options = LogisticOptions(C=C)
    turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(rows.shape[1],) * 2))[0])

    def scores(x, order):
        permuted = Folds(folds.train[:, order], folds.test[:, order], folds.name)
        given = torch.from_numpy(codes[order])[None]
        found = crossfit(x[order], given, classes, permuted, options)
        assert found.uncertified == ()
        back = torch.empty_like(found.scores)
        back[:, :, order] = found.scores
        return back

    same = np.arange(len(rows))
    plain = scores(rows, same)
    size = float(plain.abs().max())
    noise = torch.from_numpy(rng.uniform(-1, 1, rows.shape))
    # Scores of rows left out move by more than the distance in the Hessian's metric.
    for other, off in (
        (scores(rows, rng.permutation(len(rows))), 1e-6),
        (scores(rows[:, rng.permutation(rows.shape[1])], same), 1e-6),
        (scores(rows @ turn, rng.permutation(len(rows))), 1e-5),
        (scores(rows * (1 + 2.0**-52 * noise), same), 1e-5),
        (scores(rows + rows.mean(), same), 1e-5),
    ):
        assert float((other - plain).abs().max()) <= off * size


@pytest.mark.parametrize("case", HARD.values(), ids=HARD)
def test_the_last_resort_alone_is_enough(case, monkeypatch):
    """Where no matrix has a factor, all fits are the last resort's."""
    rows, codes, _ = problem(*case)
    folds = k_fold(None, codes, 3)
    given = rows, torch.from_numpy(codes)[None], case[2], folds
    options = LogisticOptions(C=case[5])
    plain = crossfit(*given, options, coefficients=True)

    def fails(*_):
        raise LinAlgError("no factor")

    for way in ("_fit_primal", "_fit_shared", "fit_each_fold"):
        monkeypatch.setattr(module, way, fails)
    found = crossfit(*given, options, coefficients=True)
    assert found.n_uncertified == plain.n_uncertified == 0
    size = float(plain.scores.abs().max())
    assert float((found.scores - plain.scores).abs().max()) <= 1e-6 * size
    assert float((found.coef - plain.coef).abs().max()) <= 1e-5 * float(  # pyright: ignore
        plain.coef.abs().max()  # pyright: ignore
    )


@pytest.mark.parametrize("standardize", [None, "fold", "all"])
@pytest.mark.parametrize("classes", [2, 3])
def test_it_fits_what_the_job_asks_for(standardize, classes, monkeypatch):
    """Scaling, class and sample weights, probes and held-out scores are the job's."""
    rows, codes, _ = problem(48, 9, classes, 3.0, 1.0, 2.0, 3, 1.0)
    weight = torch.from_numpy(np.random.default_rng(0).uniform(0.2, 2, len(rows)))
    weight[5] = 0
    folds = k_fold(None, codes, 4)
    given = rows + 7, torch.from_numpy(codes)[None], classes, folds
    options = LogisticOptions(C=2.0, balanced=True, standardize=standardize)
    fit = partial(crossfit, *given, options, sample_weight=weight, coefficients=True)
    plain = fit()
    for way in ("_fit_primal", "_fit_shared", "fit_each_fold"):
        monkeypatch.setattr(module, way, lambda *_: None)
    found = fit()
    assert found.n_uncertified == plain.n_uncertified == 0
    for ours, theirs in (
        (found.scores, plain.scores),
        (found.coef, plain.coef),
        (found.intercept, plain.intercept),
    ):
        assert ours is not None and theirs is not None
        if classes > 2 and ours is found.intercept:
            # Softmax intercepts are free up to a constant.
            ours, theirs = ours - ours.mean(2, True), theirs - theirs.mean(2, True)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_rows_left_out_that_are_long_mislead_no_start():
    """The optimum of all rows leads nowhere then; a fold in twenty was lost."""
    rng = np.random.default_rng(3)
    n, d = 40, 60
    rows = rng.normal(size=(n, d)) * 20 * np.arange(1, d + 1) ** -0.6
    rows[:6] *= 40
    many = np.stack([rng.permutation(np.arange(n) < 8) for _ in range(12)]).astype(int)
    whole = leave_one_group_out(None, n)
    folds = Folds(whole.train[:6], whole.test[:6], "six of them")
    found = crossfit(torch.from_numpy(rows), torch.from_numpy(many), 2, folds, LogisticOptions())
    assert found.n_uncertified == 0
    peer = LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=500)
    size = float(found.scores[:, :, :6].abs().max())
    for label in (0, 7):
        for fold in range(6):
            peer.fit(rows[folds.train[fold]], many[label, folds.train[fold]])
            wanted = peer.decision_function(rows[fold : fold + 1])[0]
            assert abs(float(found.scores[label, 0, fold]) - wanted) <= 1e-6 * size


def test_no_step_goes_up(monkeypatch):
    """Passing the root of the slope, steps once went up until nothing bent."""
    rows, _, loss = problem(60, 80, 2, 30.0, 3.0, 1e3, 8, 1.5)
    values = []
    moved = newton_certified._take_step

    def noting(part, point, frame):
        weights, intercept = moved(part, point, frame)
        before = objective(part, point)
        after = objective(part, evaluate(part, weights, intercept))
        values.append((before, after))
        return weights, intercept

    def objective(part, point):
        cross = torch.nn.functional.softplus((1 - 2 * part.target) * point.scores)
        held = 0.5 * point.weights.square().sum()
        return float((part.weight * cross).sum() + held)

    monkeypatch.setattr(newton_certified, "_take_step", noting)
    assert newton_fit(rows, loss, 1e-9).certificate <= 1e-9
    assert len(values) > 5
    assert all(after <= before * (1 + 1e-12) for before, after in values)


def test_without_room_the_answer_before_stays(monkeypatch):
    rows, codes, _ = problem(60, 10, 2, 3.0, 1.0, 2.0, 3)
    folds = k_fold(None, codes, 3)
    given = rows, torch.from_numpy(codes)[None], 2, folds
    plain = crossfit(*given, LogisticOptions())
    monkeypatch.setattr(last_resort, "N_HESSIAN_ARRAYS", 1e9)
    for kind in (torch.float64, torch.float32):
        monkeypatch.setitem(module.ACCEPTED_TOL, kind, 0.0)
    found = crossfit(*given, LogisticOptions())
    assert found.n_uncertified == 3
    assert bool(torch.isfinite(found.certificate).all())
    torch.testing.assert_close(found.scores, plain.scores, rtol=1e-6, atol=1e-8)


def test_sums_are_those_of_twice_the_precision():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 37)) * 10 ** rng.uniform(-12, 12, (5, 37))
    vector = rng.normal(size=37)
    # All but the last digits cancel.
    table[:, -1] = -(table[:, :-1] @ vector[:-1]) / vector[-1]
    value, rest = dot(torch.from_numpy(table), torch.from_numpy(vector))
    for row, high, low in zip(table, value.tolist(), rest.tolist(), strict=True):
        pairs = zip(row.tolist(), vector.tolist(), strict=True)
        terms = [Fraction(a) * Fraction(b) for a, b in pairs]
        off = abs(Fraction(high) + Fraction(low) - sum(terms))
        assert off <= 1e-29 * sum(map(abs, terms))
    left, right = (torch.from_numpy(rng.normal(size=50)) for _ in range(2))
    for sums, made in (
        (two_sum(left, right), lambda a, b: a + b),
        (two_product(left, right), lambda a, b: a * b),
    ):
        for a, b, high, low in zip(left, right, *sums, strict=True):
            exact = made(Fraction(float(a)), Fraction(float(b)))
            assert Fraction(float(high)) + Fraction(float(low)) == exact


def test_gradients_are_exact_where_terms_cancel():
    rows, codes, loss = problem(20, 6, 3, 1e4, 0.0, 1e6, 2)
    part = make_problem(rows, loss)
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 6))) * 1e-4
    weights -= weights.mean(0)
    point = evaluate(part, weights, torch.zeros(3).double())
    with mpmath.workdps(50):
        wanted = mpmath.zeros(3, 6)
        for row, code in zip(rows.tolist(), codes.tolist(), strict=True):
            scores = [mpmath.fdot(row, each) for each in weights.tolist()]
            shares = [mpmath.exp(score) for score in scores]
            for c in range(3):
                pull = 10**6 * ((code == c) - shares[c] / sum(shares))
                for j in range(6):
                    wanted[c, j] -= pull * mpmath.mpf(row[j])
        for c in range(3):
            for j in range(6):
                wanted[c, j] += mpmath.mpf(float(weights[c, j]))
        free = part.class_basis.tolist()
        for q in range(2):
            for j in range(6):
                exact = sum(mpmath.mpf(free[c][q]) * wanted[c, j] for c in range(3))
                ours = float(point.gradient.view(2, -1)[q, j])
                assert ours == pytest.approx(float(exact), rel=1e-11)
