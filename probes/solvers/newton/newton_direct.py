"""Newton's method with direct solves, for few small problems and for the stiffest ones."""

from collections.abc import Callable

import torch
from torch import Tensor

from probes.solvers.objective.batch import (
    Batch,
    Work,
    has_drifted,
    inner,
    local_squared_norm,
    residual_and_curvature,
    take_safeguarded_step,
)
from probes.solvers.objective.loss import Curvature

MAX_START_GRADIENT = 10.0
"""Largest alpha of a starting point, relative to the largest weight of a row."""

Solver = Callable[[Tensor, Curvature], tuple[Tensor, Tensor]]


def solve_direct(batch: Batch, tol: float, steps: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's method with direct solves.

    Costs (classes x n)^3 a problem and step, or (d + 1)^3 for two classes and many rows, for any
    range of weights. Starts from the batch's dual values if they are better than zero.
    """
    dtype = batch.scores.dtype
    batch = Batch(
        batch.loss.to(torch.float64),
        batch.operator.to(torch.float64),
        batch.dual.double(),
        batch.scores.double(),
    )
    has_basis = batch.loss.binary and batch.operator.factor.basis is not None
    solve = _basis_solver(batch) if has_basis else _row_solver(batch)
    work = Work()
    _set_start(batch, work)
    certificate = torch.full_like(batch.scores[:, 0, 0], torch.inf)
    attempt, drifted = 0, torch.ones_like(certificate, dtype=torch.bool)
    while attempt < 3 and bool(drifted.any()):
        scores, batch.dual, certificate = _newton(batch, solve, tol, steps, work)
        batch.scores = batch.operator(batch.dual)
        attempt, drifted = attempt + 1, has_drifted(scores, batch.scores)
    certificate = torch.where(drifted, torch.inf, certificate)
    return batch.scores.to(dtype), batch.dual.to(dtype), certificate


def _newton(
    batch: Batch, solve: Solver, target: float, steps: int, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Take Newton steps until the tolerance is met or they stall; return the best point.

    The certificate is the length of the remaining step over that of the parameters, both in the
    metric of the local Hessian. The factor's metric, which conjugate gradients use, is
    meaningless where separable rows have lost their curvature.
    """
    best = batch.scores.new_full((len(batch.scores),), torch.inf)
    best_point = batch.scores.clone(), batch.dual.clone()
    n_stalled = torch.zeros_like(best)
    residual, curvature = residual_and_curvature(batch, work)
    for _ in range(steps):
        step, d_scores = solve(residual, curvature)
        slope = inner(residual, d_scores, work)
        # A negative slope is rounding.
        certificate_now = (slope.abs() / local_squared_norm(batch, curvature, work)).sqrt()
        certificate_now = torch.nan_to_num(certificate_now, nan=torch.inf)
        better = certificate_now < best
        n_stalled = torch.where(certificate_now < 0.5 * best, 0.0, n_stalled + 1)
        best = torch.where(better, certificate_now, best)
        best_point[0][better], best_point[1][better] = (batch.scores[better], batch.dual[better])
        if bool(((best <= target) | (n_stalled >= 25)).all()):
            break
        residual, curvature = take_safeguarded_step(batch, work, step, d_scores, slope)
    return *best_point, best


def _set_start(batch: Batch, work: Work) -> None:
    """Keep the batch's dual values, or start from zero if that has a smaller objective.

    Diverged conjugate gradients may leave a point worse than zero.
    """
    scores = batch.operator(batch.dual)
    # ||W||^2 = alpha'E with alpha = c - w E, which sums to 0 over rows.
    alpha = batch.dual - batch.operator.weight * scores
    value = batch.loss.value(scores) + 0.5 * inner(alpha, scores, work)
    better = value < batch.loss.value(torch.zeros_like(scores))
    # At the optimum |alpha| is at most the weight of its row. Far beyond that, scores are
    # rounding errors of products of huge numbers.
    max_weight = batch.loss.weight.amax((1, 2))
    better &= alpha.abs().amax((1, 2)) <= MAX_START_GRADIENT * max_weight
    better = better[:, None, None]
    batch.dual = torch.where(better, batch.dual, 0.0)
    batch.scores = torch.where(better, scores, 0.0)


def _row_solver(batch: Batch) -> Solver:
    """Newton steps (u, Q u) from n x n systems, or classes x n with several classes."""
    n = batch.scores.shape[2]
    eye = torch.eye(n, dtype=torch.float64, device=batch.scores.device)
    q = batch.operator.dense()

    def solve(residual: Tensor, curvature: Curvature) -> tuple[Tensor, Tensor]:
        if batch.loss.binary:
            system = eye + curvature.diagonal.transpose(1, 2) * q[:, 0]
        else:
            system = _class_system(curvature, q, eye, batch.operator.weight)
        flat = residual.flatten(1)[:, :, None]
        # A singular system gives NaN instead of an error, which would stop all problems.
        step = torch.linalg.solve_ex(system, flat).result.view_as(residual)
        return step, (step[:, :, None] @ q)[:, :, 0]

    return solve


def _basis_solver(batch: Batch) -> Solver:
    """Newton steps for two classes from r x r systems, where Q = B B' with a narrow B.

    With the fixed weights w of all rows in the factor, the Hessian at weights W is that of the
    factor plus A'(W - w)A, so Q u = B (I + B'(W - w)B)^-1 B'r. This includes rows left out
    (W = 0).
    """
    assert batch.operator.factor.basis is not None
    basis = batch.operator.factor.basis[0]
    factor_weight, weight = batch.operator.factor.weight, batch.operator.weight
    eye = torch.eye(basis.shape[1], dtype=torch.float64, device=basis.device)

    def solve(residual: Tensor, curvature: Curvature) -> tuple[Tensor, Tensor]:
        difference = curvature.diagonal + weight - factor_weight
        d_scores = torch.empty_like(residual)
        for problem, row_weights in enumerate(difference[:, 0]):
            system = eye + basis.T @ (basis * row_weights[:, None])
            lower, failed = torch.linalg.cholesky_ex(system)
            rhs = basis.T @ residual[problem, 0]
            score_step = basis @ torch.cholesky_solve(rhs[:, None], lower)[:, 0]
            # If no row has curvature, the intercept is undetermined.
            d_scores[problem, 0] = score_step if int(failed) == 0 else torch.nan
        return residual - curvature.diagonal * d_scores, d_scores

    return solve


def _class_system(curvature: Curvature, q: Tensor, eye: Tensor, fixed: Tensor) -> Tensor:
    """(problem, class x n, class x n) Newton system of softmax problems.

    Args:
        curvature: Of the loss, minus ``fixed``.
        q: (problem or 1, class or 1, n, n).
        eye: (n, n).
        fixed: (problem or 1, class or 1, n) the factor's weights.
    """
    prob, weight = curvature.probabilities, curvature.weight
    assert prob is not None and weight is not None
    count, classes, n = prob.shape
    class_curvature = -prob[:, :, None] * prob[:, None]
    class_curvature.diagonal(dim1=1, dim2=2).add_(prob.transpose(1, 2))
    class_curvature = class_curvature * weight[:, None]
    class_curvature.diagonal(dim1=1, dim2=2).sub_(curvature.diagonal.transpose(1, 2))
    # (problem, class, row, other class, other row)
    system = class_curvature.transpose(2, 3)[..., None] * q.transpose(1, 2)[:, None]
    class_eye = torch.eye(classes, dtype=eye.dtype, device=eye.device)
    system += class_eye[None, :, None, :, None] * eye[None, None, :, None, :]
    # The system is singular for a shift of all intercepts, u = w: add unit stiffness.
    system = system.reshape(count, classes * n, classes * n)
    null_vector = fixed.expand(len(fixed), classes, n).flatten(1)
    return system + (null_vector / null_vector.sum(1, keepdim=True))[:, :, None]
