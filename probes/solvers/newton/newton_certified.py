"""One logistic fit by Newton's method on its rows, with a rigorous certificate.

Slower than all other solvers, and reliable where those lose a fit to rounding or to a step that
lands where no row has curvature. Points are evaluated by ``probes.solvers.newton.point`` and
certified by ``probes.solvers.newton.whitening``; no step passes the minimum along its line.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probes.solvers.newton.point import Point, Problem, evaluate, make_problem, neg_gradients
from probes.solvers.newton.whitening import certify, whiten
from probes.solvers.objective.loss import Loss

MAX_STEPS, MAX_STAGE_STEPS = 200, 40
"""Most steps of the continuation, and of one stage of it."""
CERTIFY_BELOW = 1e-5
"""Distance to the optimum below which each step is certified."""
MAX_STALLED = 3
"""Steps in a row that may fail to halve the certificate. Newton's method converges
quadratically, so a certificate that is no longer halved is rounding."""
STAGE_TOL, WEIGHT_GROWTH = 0.3, 10.0
"""Distance to a stage's optimum at which the next stage begins, and the growth of the loss's
weight from stage to stage."""
SAFE_SCORE_STEP = 0.5
"""Change of scores up to which a full step is safe: no curvature changes by more than a factor
of exp(change) along it."""


@dataclass(frozen=True)
class NewtonFit:
    """The end point of a fit.

    Attributes:
        weights: (class or 1, d).
        intercept: (class or 1,).
        certificate: Bound of the distance to the optimum, rounding included, over the norm of the
            parameters; infinite if there is no bound.
    """

    weights: Tensor
    intercept: Tensor
    certificate: float


def newton_fit(rows: Tensor, loss: Loss, tol: float) -> NewtonFit:
    """Fit one problem from zero.

    Args:
        rows: (n, d) float64 rows fitted.
        loss: Of these rows alone: one problem, weights > 0.
        tol: Certificate to reach.

    Returns:
        The point with the best certificate. One above ``tol`` means that float64 cannot resolve
        a closer point, or that ``MAX_STEPS`` were not enough.
    """
    problem = make_problem(rows, loss)
    weights, intercept = _continuation(problem)
    best, n_stalled = NewtonFit(weights, intercept, math.inf), 0
    while n_stalled < MAX_STALLED:
        point = evaluate(problem, weights, intercept)
        certificate, whitening = certify(problem, point)
        n_stalled = 0 if certificate < 0.5 * best.certificate else n_stalled + 1
        if certificate < best.certificate:
            best = NewtonFit(weights, intercept, certificate)
        if certificate <= tol or not _is_finite(whitening):
            break
        weights, intercept = _take_step(problem, point, whitening)
    return best


def _continuation(problem: Problem) -> tuple[Tensor, Tensor]:
    """Weights and intercept near the optimum, by continuation in the weight of the loss.

    Started at the full weight, rows of unequal length would send steps to where no row has
    curvature.
    """
    rows, full_weight = problem.rows, problem.weight
    weights = rows.new_zeros(len(problem.target), rows.shape[1])
    intercept = rows.new_zeros(len(weights))
    fraction = 1 / (1 + float((full_weight * rows.square().sum(1)).max()))
    growth, n_stage_steps = WEIGHT_GROWTH, 0
    for _ in range(MAX_STEPS):
        weighted_problem = replace(problem, weight=fraction * full_weight)
        point = evaluate(weighted_problem, weights, intercept)
        whitening = whiten(weighted_problem, point.curvature_root)
        distance = torch.hypot(
            (whitening.T @ point.gradient).norm(), point.unreached_gradient.norm()
        )
        distance = float(distance) / math.sqrt(point.squared_norm)
        n_stage_steps = 0 if distance <= STAGE_TOL else n_stage_steps + 1
        is_done = distance <= CERTIFY_BELOW if fraction == 1 else n_stage_steps > MAX_STAGE_STEPS
        if is_done or not math.isfinite(distance):
            break
        weights, intercept = _take_step(weighted_problem, point, whitening)
        if distance <= STAGE_TOL:
            fraction, growth = min(1.0, growth * fraction), min(growth**2, 1e100)
        else:
            growth = WEIGHT_GROWTH
    return weights, intercept


def _is_finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())


def _take_step(problem: Problem, point: Point, whitening: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and intercept after the step, shortened to stay before the minimum along it."""
    d_params = -(whitening @ (whitening.T @ point.gradient)).view(problem.class_basis.shape[1], -1)
    d_weights = d_params[:, :-1]
    d_weights = d_weights if problem.row_basis is None else d_weights @ problem.row_basis.T
    d_weights = problem.class_basis @ (d_weights - point.unreached_gradient)
    d_intercept = problem.class_basis @ d_params[:, -1]
    d_scores = d_weights @ problem.rows.T + d_intercept[:, None]
    change = d_scores.abs() if len(d_scores) == 1 else d_scores.amax(0) - d_scores.amin(0)
    max_change, step = float(change.max()), 1.0
    if max_change > SAFE_SCORE_STEP:
        # The minimum along the line is at least this far away.
        step, upper = math.log1p(max_change) / max_change, 1.0
        first_slope = _slope(problem, point, d_weights, d_scores, 0.0)
        while _slope(problem, point, d_weights, d_scores, upper) >= 0 and upper < 64:
            step, upper = upper, 2 * upper
        while _slope(problem, point, d_weights, d_scores, step) > 0.5 * first_slope:
            middle = 0.5 * (step + upper)
            if not step < middle < upper:
                break
            if _slope(problem, point, d_weights, d_scores, middle) >= 0:
                step = middle
            else:
                upper = middle
    return point.weights + step * d_weights, point.intercept + step * d_intercept


def _slope(
    problem: Problem, point: Point, d_weights: Tensor, d_scores: Tensor, step: float
) -> float:
    """Negative slope of the objective at ``step`` along a direction."""
    neg_gradient, _ = neg_gradients(problem, point.scores + step * d_scores)
    penalty_slope = ((point.weights + step * d_weights) * d_weights).sum()
    return float((neg_gradient * d_scores).sum() - penalty_slope)
