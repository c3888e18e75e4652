"""Newton-CG in parameter space, for two classes and more rows than features.

Where Q = B B' with a narrow B, the unknown of a problem is z = B'c, one number a parameter.
Scores are E = B z, z'z is the squared norm of the parameters in the metric of H, and the
gradient in that metric is

    g = z - B'(a + w E)          (a the negative gradient of the loss, w the factor's weights)

A Newton step solves (I + B'(W - w)B) d = -g by plain conjugate gradients. No component lies
outside the span of the features, so float32 products lose no digits to it, and |g| / |z| is
the certificate. Rows left out of a problem have no weight in its loss; the factor may hold
them.
"""

import torch
from torch import Tensor

from probes.solvers.objective.batch import Batch, Work
from probes.solvers.objective.loss import Loss

MAX_CG_STEPS = 100
"""Most products of a Newton step."""
RETRY_TOL_FACTOR = 1e-4
"""Tolerance of a second attempt, relative to that of the first."""
RESIDUAL_TOL = 1e-2
"""Relative residual to which a system is solved if only the step's length is needed."""


def minimize_primal(
    batch: Batch, tol: float, iteration_dtype: torch.dtype, steps: int, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve problems of two classes whose factor has a basis.

    Args:
        batch: In float64, with any starting point.
        tol: Certificate to reach.
        iteration_dtype: Type of the products inside iterations.
        steps: Most Newton steps.
        work: Counters to update.

    Returns:
        As ``newton_cg.minimize``: (problem, 1, n) scores and dual values, (problem,)
        certificate.
    """
    scores, dual, certificate = _newton(batch, tol, iteration_dtype, steps, work)
    unsolved = ~(certificate <= 10 * tol)
    if bool(unsolved.any()):
        # The loop stops by the factor's metric, which was too optimistic here.
        idx = unsolved.nonzero()[:, 0]
        sub_batch = batch.select(idx)
        sub_batch = Batch(sub_batch.loss, sub_batch.operator, dual[idx], scores[idx])
        retried = _newton(sub_batch, RETRY_TOL_FACTOR * tol, torch.float64, steps, work)
        scores[idx], dual[idx], certificate[idx] = retried
    return scores, dual, certificate


def _newton(
    batch: Batch, tol: float, iteration_dtype: torch.dtype, steps: int, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton steps until |g| / |z| reaches the tolerance or stalls."""
    factor = batch.operator.factor
    assert factor.basis is not None
    basis, fixed = factor.basis[0], factor.weight[0]
    fast_basis, loss = basis.to(iteration_dtype), batch.loss
    min_forcing = 1e-3 if iteration_dtype == torch.float32 else 1e-7
    alpha = batch.dual - batch.operator.weight * batch.scores
    z = (alpha + fixed * batch.scores)[:, 0] @ basis
    best_z = torch.zeros_like(z)
    best = z.new_full((len(z),), torch.inf)
    n_stalled = torch.zeros_like(best)
    original_idx = torch.arange(len(z), device=z.device)
    floor = 1e-6 * fixed.sum()
    scores = z @ basis.T
    gradient, excess = _gradient_and_excess(loss, basis, fixed, z, scores)
    for step in range(steps + 1):
        now = _norm(gradient) / _norm(z).clamp(min=floor.sqrt())
        now = torch.nan_to_num(now, nan=torch.inf)
        n_stalled = torch.where(now < 0.5 * best[original_idx], 0.0, n_stalled + 1)
        better = now < best[original_idx]
        best[original_idx[better]], best_z[original_idx[better]] = (now[better], z[better])
        done = (now <= tol) | (n_stalled >= 12) | (step == steps)
        if bool(done.all()):
            break
        if bool(done.any()):
            keep = (~done).nonzero()[:, 0]
            original_idx, n_stalled, now = (original_idx[keep], n_stalled[keep], now[keep])
            z, scores, loss = z[keep], scores[keep], loss.select(keep)
            gradient, excess = gradient[keep], excess[keep]
        forcing = torch.maximum(now.clamp(max=0.1), 0.3 * tol / now)
        forcing_now = forcing.clamp(min=min_forcing)
        rhs = -gradient.to(iteration_dtype)
        delta, _ = _solve_newton_system(
            fast_basis, excess.to(iteration_dtype), rhs, forcing_now, work
        )
        _count(work, basis, len(z))
        z, scores, gradient, excess = _take_step(
            loss, basis, fixed, z, scores, gradient, delta.to(z)
        )
    return _certified_answer(batch, best_z, fast_basis, work)


def _gradient_and_excess(
    loss: Loss, basis: Tensor, fixed: Tensor, z: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """(problem, r) gradient, and (problem, n) curvature minus the factor's weights."""
    prob = loss.probabilities(scores[:, None])
    neg_gradient = loss.neg_gradient(prob)[:, 0]
    gradient = z - (neg_gradient + fixed * scores) @ basis
    return gradient, loss.curvature(prob)[:, 0] - fixed


def _count(work: Work, basis: Tensor, n_problems: int) -> None:
    """Count one product with B and one with B' for each problem."""
    work.products += n_problems
    work.flops += 4.0 * n_problems * basis.numel()


def _solve_newton_system(
    basis: Tensor, excess: Tensor, residual: Tensor, forcing: Tensor, work: Work
) -> tuple[Tensor, Tensor]:
    """Solve (I + B' diag(excess) B) x = residual by CG; also (problem,) whether it converged."""
    solution, direction = torch.zeros_like(residual), residual.clone()
    residual2 = residual.square().sum(1)
    initial2, goal2 = residual2, residual2 * forcing.to(residual2).square()
    new_residual2 = residual2
    for _ in range(MAX_CG_STEPS):
        hess_direction = ((direction @ basis.T).mul_(excess) @ basis).add_(direction)
        _count(work, basis, len(direction))
        quadratic_form = (direction * hess_direction).sum(1)
        step = torch.where(quadratic_form > 0, residual2 / quadratic_form, 0.0)[:, None]
        solution.addcmul_(step, direction)
        residual = torch.addcmul(residual, step, hess_direction, value=-1)
        new_residual2 = residual.square().sum(1)
        # A growing residual means that the system is too stiff for this type.
        if bool((new_residual2 > 1e4 * initial2).any()) or int((new_residual2 > goal2).sum()) == 0:
            break
        ratio = torch.where(residual2 > 0, new_residual2 / residual2, 0.0)[:, None]
        direction.mul_(ratio).add_(residual)
        residual2 = new_residual2
    return solution, new_residual2 <= goal2


def _take_step(
    loss: Loss,
    basis: Tensor,
    fixed: Tensor,
    z: Tensor,
    scores: Tensor,
    gradient: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the step, shortened by bisection where the slope at its end overshoots by half."""
    first_slope = -(gradient * step).sum(1)
    new_z = z + step
    new_scores = new_z @ basis.T
    gradient, excess = _gradient_and_excess(loss, basis, fixed, new_z, new_scores)
    overshoots = ~(-(gradient * step).sum(1) >= -0.5 * first_slope)
    if not bool(overshoots.any()):
        return new_z, new_scores, gradient, excess
    idx = overshoots.nonzero()[:, 0]
    sub_loss, start_z, start_scores = loss.select(idx), z[idx], scores[idx]
    sub_step, d_scores, first_slope = (step[idx], (new_scores - scores)[idx], first_slope[idx])
    low, high = torch.zeros_like(first_slope), torch.ones_like(first_slope)
    length = high
    for _ in range(40):
        length = 0.5 * (low + high)
        scores_now = start_scores + length[:, None] * d_scores
        neg_gradient = (
            sub_loss.neg_gradient(sub_loss.probabilities(scores_now[:, None]))[:, 0]
            + fixed * scores_now
        )
        penalty_slope = ((start_z + length[:, None] * sub_step) * sub_step).sum(1)
        slope = (neg_gradient * d_scores).sum(1) - penalty_slope
        if bool((slope.abs() <= 0.5 * first_slope).all()):
            break
        descends = slope > 0
        low, high = (torch.where(descends, length, low), torch.where(descends, high, length))
    new_z[idx] = start_z + length[:, None] * sub_step
    new_scores[idx] = new_z[idx] @ basis.T
    gradient[idx], excess[idx] = _gradient_and_excess(
        sub_loss, basis, fixed, new_z[idx], new_scores[idx]
    )
    return new_z, new_scores, gradient, excess


def _certified_answer(
    batch: Batch, z: Tensor, fast_basis: Tensor, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and dual values that match, one gradient step from ``z``, and their certificate.

    B'c = z has many solutions. c = a + w E is the one for which alpha = c - w E is the negative
    gradient of the loss, bounded and zero on rows left out; it represents z - g. The certificate
    is the larger of |g| / |z| and of the remaining Newton step over the parameters, both in the
    metric of the local Hessian, because the factor's metric is meaningless where separable rows
    have lost their curvature. An unconverged step would be too short and certifies nothing.
    """
    factor = batch.operator.factor
    assert factor.basis is not None
    basis, fixed, loss = factor.basis[0], factor.weight[0], batch.loss
    old_scores = z @ basis.T
    dual = loss.neg_gradient(loss.probabilities(old_scores[:, None]))[:, 0] + fixed * old_scores
    z = dual @ basis
    scores = z @ basis.T
    gradient, excess = _gradient_and_excess(loss, basis, fixed, z, scores)
    floor = 1e-6 * fixed.sum()
    certificate = _norm(gradient) / _norm(z).clamp(min=floor.sqrt())
    forcing = torch.full_like(certificate, RESIDUAL_TOL)
    remaining_step, solved = _solve_newton_system(
        fast_basis, excess.to(fast_basis), -gradient.to(fast_basis), forcing, work
    )
    _count(work, basis, 2 * len(z))
    norm2 = z.square().sum(1) + (excess * scores.square()).sum(1)
    floor = 1e-6 * (excess + fixed).sum(1)
    decrement = -(gradient * remaining_step.to(gradient)).sum(1) / torch.maximum(norm2, floor)
    local = torch.nan_to_num(decrement, nan=torch.inf).abs().sqrt()
    local = torch.where(solved, local, torch.inf)
    certificate = torch.maximum(certificate, local)
    # The same alpha, expressed with the batch's own fixed weights.
    dual = (dual - fixed * scores)[:, None] + batch.operator.weight * scores[:, None]
    return scores[:, None], dual, certificate


def _norm(vectors: Tensor) -> Tensor:
    return vectors.square().sum(1).sqrt()
