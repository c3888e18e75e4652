"""One logistic fit by Newton steps on its rows, certified by a bound.

Slower than all other ways, and sure where they lose a fit to rounding or to a step that
lands where no row bends: points are those of ``probes.solvers.newton.point``, the
certificate that of ``probes.solvers.newton.whitening``, and no step passes the least
value along its line.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probes.solvers.newton.point import (
    Point,
    Problem,
    evaluate,
    make_problem,
    neg_gradients,
)
from probes.solvers.newton.whitening import certify, whiten
from probes.solvers.objective.loss import Loss

MAX_STEPS, MAX_STAGE_STEPS = 200, 40
"""Steps on the way, at most, and to one optimum on it."""
CERTIFY_BELOW = 1e-5
"""Distance to the optimum from which on each step is certified."""
MAX_STALLED = 3
"""Steps in a row that may fail to halve a certificate. Newton's square what is left:
what they no longer halve is rounding."""
STAGE_TOL, WEIGHT_GROWTH = 0.3, 10.0
"""Distance to one optimum on the way from which the next is gone for, and how much more
the loss counts there."""
SAFE_SCORE_STEP = 0.5
"""Change of scores up to which a step cannot go too far: on its way no curvature
changes by more than the exponential of it."""


@dataclass(frozen=True)
class NewtonFit:
    """Where a fit ended.

    Attributes:
        weights: (class or 1, d).
        intercept: (class or 1,).
        certificate: Bound of the distance to the optimum, rounding included, over the
            size of the parameters; infinite where none was found.
    """

    weights: Tensor
    intercept: Tensor
    certificate: float


def newton_fit(rows: Tensor, loss: Loss, tol: float) -> NewtonFit:
    """Fit one problem from nothing.

    Args:
        rows: (n, d) float64 rows fitted.
        loss: Of these rows alone: one problem, weights > 0.
        tol: Certificate to reach.

    Returns:
        The point with the best certificate. One above the target says that nothing
        nearer could be told from it in float64, or that ``MAX_STEPS`` were not enough.
    """
    problem = make_problem(rows, loss)
    weights, intercept = _continuation(problem)
    best, stalled = NewtonFit(weights, intercept, math.inf), 0
    while stalled < MAX_STALLED:
        point = evaluate(problem, weights, intercept)
        found, frame = certify(problem, point)
        stalled = 0 if found < 0.5 * best.certificate else stalled + 1
        if found < best.certificate:
            best = NewtonFit(weights, intercept, found)
        if found <= tol or not _is_finite(frame):
            break
        weights, intercept = _take_step(problem, point, frame)
    return best


def _continuation(problem: Problem) -> tuple[Tensor, Tensor]:
    """Weights and intercept near the optimum, by way of those of smaller losses.

    Straight for it, rows of unequal length would send steps to where nothing bends.
    """
    rows, whole = problem.rows, problem.weight
    weights = rows.new_zeros(len(problem.target), rows.shape[1])
    intercept = rows.new_zeros(len(weights))
    share = 1 / (1 + float((whole * rows.square().sum(1)).max()))
    longer, stage = WEIGHT_GROWTH, 0
    for _ in range(MAX_STEPS):
        part = replace(problem, weight=share * whole)
        point = evaluate(part, weights, intercept)
        frame = whiten(part, point.curvature_root)
        left = torch.hypot(
            (frame.T @ point.gradient).norm(), point.unreached_gradient.norm()
        )
        left = float(left) / math.sqrt(point.squared_norm)
        stage = 0 if left <= STAGE_TOL else stage + 1
        done = left <= CERTIFY_BELOW if share == 1 else stage > MAX_STAGE_STEPS
        if done or not math.isfinite(left):
            break
        weights, intercept = _take_step(part, point, frame)
        if left <= STAGE_TOL:
            share, longer = min(1.0, longer * share), min(longer**2, 1e100)
        else:
            longer = WEIGHT_GROWTH
    return weights, intercept


def _is_finite(numbers: Tensor) -> bool:
    return bool(torch.isfinite(numbers).all())


def _take_step(problem: Problem, point: Point, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and intercept after the step, or the part of it that still goes down."""
    move = -(frame @ (frame.T @ point.gradient)).view(problem.class_basis.shape[1], -1)
    turn = move[:, :-1]
    turn = turn if problem.row_basis is None else turn @ problem.row_basis.T
    turn = problem.class_basis @ (turn - point.unreached_gradient)
    shift = problem.class_basis @ move[:, -1]
    lift = turn @ problem.rows.T + shift[:, None]
    change = lift.abs() if len(lift) == 1 else lift.amax(0) - lift.amin(0)
    most, length = float(change.max()), 1.0
    if most > SAFE_SCORE_STEP:
        # Up to here the least value along the line cannot have been passed.
        length, high = math.log1p(most) / most, 1.0
        first = _slope(problem, point, turn, lift, 0.0)
        while _slope(problem, point, turn, lift, high) >= 0 and high < 64:
            length, high = high, 2 * high
        while _slope(problem, point, turn, lift, length) > 0.5 * first:
            middle = 0.5 * (length + high)
            if not length < middle < high:
                break
            if _slope(problem, point, turn, lift, middle) >= 0:
                length = middle
            else:
                high = middle
    return point.weights + length * turn, point.intercept + length * shift


def _slope(
    problem: Problem, point: Point, turn: Tensor, lift: Tensor, length: float
) -> float:
    """How fast the objective falls along a step at ``length`` of it."""
    pull, _ = neg_gradients(problem, point.scores + length * lift)
    held = ((point.weights + length * turn) * turn).sum()
    return float((pull * lift).sum() - held)
