"""One logistic fit by Newton steps on its rows, certified by a bound.

Slower than all other ways, and sure where they lose a fit to rounding or to a step that
lands where no row bends: points are those of ``probes.solvers.newton.point``, the
certificate that of ``probes.solvers.newton.whitened``, and no step passes the least
value along its line.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probes.solvers.loss import Loss
from probes.solvers.newton.point import Point, Problem, look, problem_of, pulls
from probes.solvers.newton.whitened import certify, whiten

STEPS, STAGE = 200, 40
"""Steps on the way, at most, and to one optimum on it."""
NEAR = 1e-5
"""Distance to the optimum from which on each step is certified."""
STALLED = 3
"""Steps in a row that may fail to halve a certificate. Newton's square what is left:
what they no longer halve is rounding."""
CLOSE, FASTER = 0.3, 10.0
"""Distance to one optimum on the way from which the next is gone for, and how much more
the loss counts there."""
CALM = 0.5
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


def newton_fit(rows: Tensor, loss: Loss, target: float) -> NewtonFit:
    """Fit one problem from nothing.

    Args:
        rows: (n, d) float64 rows fitted.
        loss: Of these rows alone: one problem, weights > 0.
        target: Certificate to reach.

    Returns:
        The point with the best certificate. One above the target says that nothing
        nearer could be told from it in float64, or that ``STEPS`` were not enough.
    """
    problem = problem_of(rows, loss)
    weights, intercept = _approach(problem)
    best, stalled = NewtonFit(weights, intercept, math.inf), 0
    while stalled < STALLED:
        point = look(problem, weights, intercept)
        found, frame = certify(problem, point)
        stalled = 0 if found < 0.5 * best.certificate else stalled + 1
        if found < best.certificate:
            best = NewtonFit(weights, intercept, found)
        if found <= target or not _finite(frame):
            break
        weights, intercept = _moved(problem, point, frame)
    return best


def _approach(problem: Problem) -> tuple[Tensor, Tensor]:
    """Weights and intercept near the optimum, by way of those of smaller losses.

    Straight for it, rows of unequal length would send steps to where nothing bends.
    """
    rows, whole = problem.rows, problem.weight
    weights = rows.new_zeros(len(problem.target), rows.shape[1])
    intercept = rows.new_zeros(len(weights))
    share = 1 / (1 + float((whole * rows.square().sum(1)).max()))
    longer, stage = FASTER, 0
    for _ in range(STEPS):
        part = replace(problem, weight=share * whole)
        point = look(part, weights, intercept)
        frame = whiten(part, point.roots)
        left = torch.hypot((frame.T @ point.inside).norm(), point.beyond.norm())
        left = float(left) / math.sqrt(point.size)
        stage = 0 if left <= CLOSE else stage + 1
        done = left <= NEAR if share == 1 else stage > STAGE
        if done or not math.isfinite(left):
            break
        weights, intercept = _moved(part, point, frame)
        if left <= CLOSE:
            share, longer = min(1.0, longer * share), min(longer**2, 1e100)
        else:
            longer = FASTER
    return weights, intercept


def _finite(numbers: Tensor) -> bool:
    return bool(torch.isfinite(numbers).all())


def _moved(problem: Problem, point: Point, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and intercept after the step, or the part of it that still goes down."""
    move = -(frame @ (frame.T @ point.inside)).view(problem.free.shape[1], -1)
    turn = move[:, :-1]
    turn = turn if problem.basis is None else turn @ problem.basis.T
    turn = problem.free @ (turn - point.beyond)
    shift = problem.free @ move[:, -1]
    lift = turn @ problem.rows.T + shift[:, None]
    change = lift.abs() if len(lift) == 1 else lift.amax(0) - lift.amin(0)
    most, length = float(change.max()), 1.0
    if most > CALM:
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
    pull, _ = pulls(problem, point.scores + length * lift)
    held = ((point.weights + length * turn) * turn).sum()
    return float((pull * lift).sum() - held)
