"""Newton-CG with an approximate preconditioner, for few folds of many rows and two classes.

Where rows outnumber features, an exact factor (``probes.solvers.objective.factor``) costs more
than the fits that use it, because it expresses all rows in the Hessian's coordinates. Here the
unknowns are the weights W and the intercept b themselves, and an approximate float32 Hessian is
only the preconditioner. It may be inaccurate: the float64 problem is solved and certified.

The preconditioner is the Hessian of the problems' mean curvature or, while that converges well,
its diagonal, which costs one pass over the rows. The excess of a problem's curvature over the
mean is added as one rank-one term in the direction of its mean row; concepts that few rows show
differ in little else.

The solver runs nonlinear conjugate gradients in float32, two products with the rows a step, then
Newton steps on exact gradients, whose systems are solved in float32. Where classes separate, the
curvature falls far on the way, so the diagonal is recomputed every few steps, and the full matrix
if they converge slowly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.solvers.objective.batch import Work
from probes.solvers.objective.factor import gram_matrix
from probes.solvers.objective.loss import Loss

FLOAT32_TOL = 1e-5
"""Certificate at which nonlinear CG in float32 ends."""
FLOAT32_FLOOR, STALL_RATIO = 1e-4, 0.5
"""Below this certificate, a round that leaves at least this share is the last: the remainder
is float32 rounding, which no preconditioner removes."""
STEPS_PER_ROUND, MAX_ROUNDS = 6, 12
"""Steps between updates of the preconditioner, and most updates."""
MAX_ROUND_RATIO = 0.2
"""Largest reduction factor of a round that keeps the diagonal, or the factor at hand."""
MAX_NEWTON_STEPS = 5
"""Most Newton steps on exact gradients."""
MIN_FORCING = 1e-4
"""Smallest relative residual asked of float32."""
RESIDUAL_TOL = 1e-2
"""Relative residual to which a system is solved if only the step's length is needed."""


@dataclass(frozen=True)
class _Preconditioner:
    """Inverse of an approximate Hessian, in float32.

    Attributes:
        weight: (row,) mean curvature.
        base: Applies the inverse of the shared part.
        own: (problem, d + 1) rank-one correction of each problem.
    """

    weight: Tensor
    base: Callable[[Tensor], Tensor]
    own: Tensor

    def __call__(self, gradient: Tensor) -> Tensor:
        """Apply to a (problem, d + 1) gradient."""
        along = (gradient * self.own).sum(1, keepdim=True)
        return self.base(gradient).addcmul_(self.own, along, value=-1)


def _preconditioner(features: Tensor, curvature: Tensor, exact: bool) -> _Preconditioner | None:
    """For (problem, row) curvatures; None if no row has enough curvature."""
    weight = curvature.mean(0)
    weight = weight.clamp(min=1e-6 * float(weight.max()))
    if exact:
        hessian = gram_matrix((features * weight.sqrt()[:, None]).T)
        hessian.diagonal()[:-1].add_(1)
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if int(failed):
            return None
        inverse = torch.cholesky_inverse(lower)
    else:
        diagonal = weight @ features.square()
        if not float(diagonal[-1]) > 0:
            return None
        diagonal[:-1] += 1
        inverse = 1 / diagonal

    def base(gradient: Tensor) -> Tensor:
        return gradient @ inverse if exact else gradient * inverse

    excess = (curvature - weight).clamp(min=0)
    total = excess.sum(1, keepdim=True)
    mean_row = excess @ features / total.clamp(min=1e-30).sqrt()
    low_rank = base(mean_row)
    # Inverse of the Hessian plus one row (Sherman-Morrison).
    low_rank = low_rank / (1 + (mean_row * low_rank).sum(1, keepdim=True)).sqrt()
    return _Preconditioner(weight, base, low_rank)


def fit_primal(rows: Tensor, loss: Loss, tol: float, work: Work) -> tuple[Tensor, Tensor, Tensor]:
    """Fit every problem from zero.

    Args:
        rows: (n, d) float64, centered, fewer features than rows.
        loss: Problems of two classes; rows left out of one have no weight in it.
        tol: Certificate to reach.
        work: Counters to update.

    Returns:
        (problem, d + 1) weights and intercept, (problem, n) scores and the (problem,)
        certificate: the length of the remaining Newton step over that of the parameters, both in
        the metric of the local Hessian; infinite for unsolved problems.
    """
    features = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    fast_features, fast_loss = features.float(), loss.to(torch.float32)
    # Products of few problems with many rows take half the time with this layout.
    features_t = fast_features.T.contiguous()
    params = fast_features.new_zeros(len(loss.weight), features.shape[1])
    preconditioner = _nonlinear_cg(fast_features, features_t, fast_loss, params, work)
    params = params.double()
    certificate = params.new_full((len(params),), torch.inf)
    scores = params @ features.T
    for _ in range(MAX_NEWTON_STEPS):
        if preconditioner is None:
            break
        prob = loss.probabilities(scores[:, None])
        gradient = _gradient(features, loss, params, prob, work)
        curvature = loss.curvature(prob)[:, 0]
        norm2 = params[:, :-1].square().sum(1) + (curvature * scores.square()).sum(1)
        norm2 = torch.maximum(norm2, 1e-6 * curvature.sum(1))
        goal2 = (0.1 * tol) ** 2 * norm2
        step, slope, converged = _newton_step(
            fast_features, features_t, curvature.float(), -gradient, preconditioner, goal2, work
        )
        certificate_now = torch.nan_to_num((slope / norm2).sqrt(), nan=torch.inf)
        certificate = torch.where(converged, certificate_now, torch.inf)
        if bool((certificate <= tol).all()):
            break
        params = params + step
        scores = params @ features.T
        certificate = torch.full_like(certificate, torch.inf)
    return params, scores, certificate


def _gradient(features: Tensor, loss: Loss, params: Tensor, prob: Tensor, work: Work) -> Tensor:
    """(problem, d + 1) gradient of the penalized loss."""
    gradient = loss.neg_gradient(prob)[:, 0] @ features
    gradient.neg_()[:, :-1].add_(params[:, :-1])
    work.products += len(params)
    work.flops += 4.0 * len(params) * features.numel()
    return gradient


def _nonlinear_cg(
    features: Tensor, features_t: Tensor, loss: Loss, params: Tensor, work: Work
) -> _Preconditioner | None:
    """Preconditioned nonlinear CG, in place; return the last preconditioner, None without one."""
    preconditioner, exact, stale = None, False, True
    for _ in range(MAX_ROUNDS):
        scores = params @ features_t
        prob = loss.probabilities(scores[:, None])
        if stale:
            curvature = loss.curvature(prob)[:, 0]
            preconditioner = _preconditioner(features, curvature, exact)
        if preconditioner is None:
            return None
        direction = previous = previous2 = torch.zeros_like(params)
        certificates = []
        for iteration in range(STEPS_PER_ROUND):
            gradient = _gradient(features, loss, params, prob, work)
            preconditioned = preconditioner(gradient)
            gradient2 = (gradient * preconditioned).sum(1)
            norm2 = _squared_norm(params, scores, preconditioner.weight)
            certificates.append(float((gradient2 / norm2).max().sqrt()))
            if certificates[-1] <= FLOAT32_TOL:
                return preconditioner
            beta = torch.zeros_like(gradient2)
            if iteration > 0:
                # Polak-Ribiere+.
                beta = ((gradient - previous) * preconditioned).sum(1) / previous2
                beta = beta.clamp(min=0).nan_to_num(0.0)
            previous, previous2 = gradient, gradient2
            direction = beta[:, None] * direction - preconditioned
            d_scores = direction @ features_t
            slope = -(gradient * direction).sum(1)
            step_length, scores, prob = _line_search(
                loss, params, scores, direction, d_scores, prob, slope
            )
            params += step_length[:, None] * direction
        if exact and STALL_RATIO * certificates[0] <= certificates[-1] <= FLOAT32_FLOOR:
            return preconditioner
        # The first certificate is that of zero parameters and says nothing.
        converges_slowly = not certificates[-1] <= MAX_ROUND_RATIO * certificates[1]
        stale = converges_slowly or not exact
        exact |= converges_slowly
    return preconditioner


def _squared_norm(params: Tensor, scores: Tensor, weight: Tensor) -> Tensor:
    """(problem,) squared norm of the parameters in the preconditioner's metric."""
    norm2 = params[:, :-1].square().sum(1) + scores.square() @ weight
    return torch.maximum(norm2, 1e-6 * weight.sum())


def _line_search(
    loss: Loss,
    params: Tensor,
    scores: Tensor,
    direction: Tensor,
    d_scores: Tensor,
    prob: Tensor,
    slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's step length, shortened where the slope overshoots by half.

    Returns:
        (problem,) length, and (problem, row) scores and probabilities there.
    """
    penalty_curvature = direction[:, :-1].square().sum(1)
    quadratic_form = penalty_curvature + (loss.curvature(prob)[:, 0] * d_scores.square()).sum(1)
    step = torch.where((slope > 0) & (quadratic_form > 0), slope / quadratic_form, 0.0)
    penalty_slope = (params[:, :-1] * direction[:, :-1]).sum(1)
    n_trials = 8
    while True:
        new_scores = scores + step[:, None] * d_scores
        prob = loss.probabilities(new_scores[:, None])
        end_slope = (
            (loss.neg_gradient(prob)[:, 0] * d_scores).sum(1)
            - penalty_slope
            - step * penalty_curvature
        )
        overshoots = end_slope < -0.5 * slope
        if not n_trials or not bool(overshoots.any()):
            return step, new_scores, prob
        step = torch.where(overshoots, step * slope / (slope - end_slope), step)
        n_trials -= 1


def _newton_step(
    features: Tensor,
    features_t: Tensor,
    curvature: Tensor,
    rhs: Tensor,
    preconditioner: _Preconditioner,
    goal2: Tensor,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton step by preconditioned conjugate gradients.

    Args:
        features: (row, d + 1) float32.
        features_t: (d + 1, row), the same transposed.
        curvature: (problem, row).
        rhs: (problem, d + 1) float64, minus the gradient.
        preconditioner: Approximate inverse Hessian.
        goal2: (problem,) squared length of the remaining error at which to stop.
        work: Counters to update.

    Returns:
        The step, its (problem,) squared length in the metric of the Hessian, and whether the
        system was solved accurately enough to trust that; float64.
    """
    scale = rhs.abs().amax(1, keepdim=True).clamp(min=1e-300)
    residual = (rhs / scale).float()
    solution, preconditioned = torch.zeros_like(residual), preconditioner(residual)
    direction, residual2 = preconditioned.clone(), (residual * preconditioned).sum(1)
    initial2, new_residual2, slope = residual2, residual2, torch.zeros_like(residual2)
    scaled_goal2 = (goal2 / scale[:, 0].square()).float()
    scaled_goal2 = scaled_goal2.clamp(MIN_FORCING**2 * initial2, RESIDUAL_TOL**2 * initial2)
    for _ in range(60):
        hess_direction = ((direction @ features_t).mul_(curvature)) @ features
        hess_direction[:, :-1] += direction[:, :-1]
        work.products += len(direction)
        work.flops += 4.0 * len(direction) * features.numel()
        quadratic_form = (direction * hess_direction).sum(1)
        step = torch.where(quadratic_form > 0, residual2 / quadratic_form, 0.0)
        slope = slope + step * residual2
        solution.addcmul_(step[:, None], direction)
        residual.addcmul_(step[:, None], hess_direction, value=-1)
        preconditioned = preconditioner(residual)
        new_residual2 = (residual * preconditioned).sum(1)
        if bool((new_residual2 <= scaled_goal2).all()):
            break
        ratio = torch.where(residual2 > 0, new_residual2 / residual2, 0.0)
        direction, residual2 = (preconditioned.addcmul_(ratio[:, None], direction), new_residual2)
    converged = new_residual2 <= RESIDUAL_TOL**2 * initial2
    scale = scale[:, 0]
    return solution.double() * scale[:, None], slope.double() * scale**2, converged
