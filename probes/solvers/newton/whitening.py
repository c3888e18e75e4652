"""Whitening of a logistic fit's Hessian, and the certificate it gives.

For an approximate whitening N, N'HN = 1 + G with G computed explicitly, so its origin does not
matter: the squared distance to the optimum g'H^-1 g is at most |N'g|^2 / (1 - |G|). Rounding
errors are added to the bound. With A the rows, D a row's curvature and Q = A H^-1 A', errors e of
the gradients hide at most the sum of e sqrt(Q) over rows, and errors h of the scores at most the
root of the sum of h^2 D.
"""

import math

import torch
from torch import Tensor

from probes.solvers.newton.compensated import BLOCK
from probes.solvers.newton.point import Point, Problem

EPS = torch.finfo(torch.float64).eps
GRADIENT_ULPS = 4
"""Units of rounding in a gradient at a given score: an exponential, a ratio, a weight."""
MAX_CHOLESKY_ERROR = 0.1
"""Largest rounding error of Cholesky, relative to the smallest eigenvalue of the Hessian."""
MAX_DEFECT = 0.5
"""Largest |G| for which the bound holds."""


def whiten(problem: Problem, roots: Tensor) -> Tensor:
    """(q (r + 1), q (r + 1)) N, by Cholesky where that is accurate enough.

    Args:
        problem: The fit.
        roots: (n, class or 1, q), ``Point.curvature_root``.
    """
    features = problem.features
    curvature = torch.einsum("nkp,nkq->pqn", roots, roots)
    rows_of_blocks = [
        torch.cat(
            [features.T @ (features * row_curvature[:, None]) for row_curvature in block_row], 1
        )
        for block_row in curvature
    ]
    system = torch.cat(rows_of_blocks)
    system.diagonal().add_(_penalty(problem))
    scale = system.diagonal().clamp(min=1e-300).rsqrt()
    system.mul_(scale).mul_(scale[:, None])
    lower, failed = torch.linalg.cholesky_ex(system)
    if int(failed) == 0:
        eye = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
        # Rounding of a system with unit diagonal, against its smallest eigenvalue.
        if len(lower) * EPS * float(inverse.square().sum()) <= MAX_CHOLESKY_ERROR:
            return inverse.T * scale[:, None]
    return _whiten_rows(problem, roots)


def _whiten_rows(problem: Problem, roots: Tensor) -> Tensor:
    """The same by QR of the rows, which does not square the condition number."""
    features, (_, classes, q) = problem.features, roots.shape
    size = q * features.shape[1]
    scale = _diagonal_root(problem, roots).clamp(min=1e-150).reciprocal()
    upper = torch.diag(_penalty(problem) * scale)
    n_rows = max(1, size // classes)
    for roots_part, features_part in zip(roots.split(n_rows), features.split(n_rows), strict=True):
        rows = torch.einsum("nkq,nm->nkqm", roots_part, features_part).reshape(-1, size)
        upper = torch.linalg.qr(torch.cat([upper, rows * scale]), mode="r").R
    eye = torch.eye(size, dtype=features.dtype, device=features.device)
    inverse = torch.linalg.solve_triangular(upper, eye, upper=True)
    return inverse * scale[:, None]


def certify(problem: Problem, point: Point) -> tuple[float, Tensor]:
    """Bound of the distance to the optimum, and the whitening used.

    Args:
        problem: The fit.
        point: The point to certify.

    Returns:
        The distance over the norm of the parameters, both in the metric of the local Hessian, with
        all rounding errors; infinite if no bound holds.
    """
    whitening = whiten(problem, point.curvature_root)
    defect, q_root = _defect(problem, point.curvature_root, whitening)
    if not defect <= MAX_DEFECT:
        return math.inf, whitening
    stretch, gradient = 1 / math.sqrt(1 - defect), point.gradient
    reached = (whitening.T @ gradient).norm()
    reached += (len(gradient) + 1) * EPS * (whitening.abs().T @ gradient.abs()).norm()
    # Only the penalty has curvature orthogonal to the rows and along the classes' mean.
    unreached, classes = point.unreached_gradient.norm(), len(point.scores)
    if classes > 1:
        unreached = torch.hypot(unreached, math.sqrt(classes) * point.weights.mean(0).norm())
    neg_gradient = point.neg_gradient.abs()
    magnitudes = neg_gradient if classes == 1 else neg_gradient.masked_fill(problem.target > 0, 0.0)
    rounding = (GRADIENT_ULPS + classes) * EPS * (magnitudes.T * q_root).sum() * stretch
    # Scores: their last rounding, and that of their differences.
    score_error = 3 * math.sqrt(classes) * EPS * point.scores.abs().amax(0)
    # Remaining errors of the compensated sums.
    row_norm, (n, d) = problem.rows.norm(dim=1), problem.rows.shape
    score_error += (d * EPS) ** 2 * row_norm * point.weights.norm()
    rounding += (score_error * point.curvature_root.flatten(1).norm(dim=1)).norm()
    rounding += (n * EPS) ** 2 * (neg_gradient.sum(0) * row_norm).sum()
    bound = float(torch.hypot(reached * stretch, unreached) + rounding)
    certificate = bound / math.sqrt(point.squared_norm)
    return certificate if math.isfinite(certificate) else math.inf, whitening


def _defect(problem: Problem, roots: Tensor, whitening: Tensor) -> tuple[float, Tensor]:
    """Bound of |G|, and (n, class or 1) root of Q between a row's class and the others.

    The rounding error of a gradient in one class is balanced by that of the row's own class.
    """
    features, (_, _, q), class_basis = (problem.features, roots.shape, problem.class_basis)
    size = len(whitening)
    blocks = whitening.view(q, -1, size)
    penalized = blocks[:, :-1].flatten(0, 1)
    gram_error, q_root = penalized.T @ penalized, []
    own_class = class_basis if q == 1 and len(class_basis) == 1 else None
    n_rows = max(1, BLOCK // (len(class_basis) * size))
    parts = (roots.split(n_rows), features.split(n_rows), problem.target.T.split(n_rows))
    for roots_part, features_part, target in zip(*parts, strict=True):
        mapped = torch.einsum("nm,qmp->nqp", features_part, blocks)
        rooted = torch.einsum("nkq,nqp->nkp", roots_part, mapped).flatten(0, 1)
        gram_error += rooted.T @ rooted
        contrast = torch.einsum("kq,nqp->nkp", class_basis, mapped)
        if own_class is None:
            contrast = contrast - torch.einsum("nk,nkp->np", target, contrast)[:, None]
        q_root.append(contrast.norm(dim=2))
    gram_error.diagonal().sub_(1)
    # Rounding errors of these products and of the basis.
    scaled = whitening * _diagonal_root(problem, roots)[:, None]
    rounding = size**1.5 * EPS * float(scaled.norm())
    if problem.row_basis is not None:
        curvature = roots.square().sum((1, 2))
        rounding += (
            len(problem.row_basis) * EPS * float((curvature @ features.square()).sum().sqrt())
        )
    return float(gram_error.norm()) + 3 * rounding + rounding**2, torch.cat(q_root)


def _penalty(problem: Problem) -> Tensor:
    """(q (r + 1),) diagonal that the penalty adds to the Hessian."""
    penalty = torch.ones_like(problem.features[0])
    penalty[-1] = 0
    return penalty.repeat(problem.class_basis.shape[1])


def _diagonal_root(problem: Problem, roots: Tensor) -> Tensor:
    """(q (r + 1),) square root of the Hessian's diagonal."""
    curvature = torch.einsum("nkq,nm->qm", roots.square(), problem.features.square())
    return (curvature.flatten() + _penalty(problem)).sqrt()
