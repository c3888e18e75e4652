"""Coordinates in which a logistic fit's Hessian is 1, and what they say of a point.

With N such coordinates, N'HN = 1 + G. How they were found does not matter, for G is
computed: the squared distance to the optimum g'H^-1 g is at most |N'g|^2 / (1 - |G|).
What rounding may hide of it is added. With A the rows, D a row's curvature and
Q = A H^-1 A', pulls known to within e hide at most the sum of e sqrt(Q) over rows, and
scores known to within h the root of the sum of h^2 D.
"""

import math

import torch
from torch import Tensor

from probes.solvers.newton.compensated import BLOCK
from probes.solvers.newton.point import Point, Problem

EPS = torch.finfo(torch.float64).eps
GRADIENT_ULPS = 4
"""Units of rounding in a pull of a given score: an exponential, a ratio, a weight."""
MAX_CHOLESKY_ERROR = 0.1
"""Share of a Hessian's least eigenvalue that Cholesky's rounding may be."""
MAX_DEFECT = 0.5
"""Largest |G| of coordinates that say how far the optimum is."""


def whiten(problem: Problem, roots: Tensor) -> Tensor:
    """(q (r + 1), q (r + 1)) N, by Cholesky where its digits are enough.

    Args:
        problem: What is fitted.
        roots: (n, class or 1, q), as a ``Point`` has them.
    """
    table = problem.features
    bend = torch.einsum("nkp,nkq->pqn", roots, roots)
    lines = [
        torch.cat([table.T @ (table * each[:, None]) for each in line], 1)
        for line in bend
    ]
    system = torch.cat(lines)
    system.diagonal().add_(_penalty(problem))
    scale = system.diagonal().clamp(min=1e-300).rsqrt()
    system.mul_(scale).mul_(scale[:, None])
    lower, failed = torch.linalg.cholesky_ex(system)
    if int(failed) == 0:
        eye = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
        # Rounding of a system whose diagonal is 1, against its least eigenvalue.
        if len(lower) * EPS * float(inverse.square().sum()) <= MAX_CHOLESKY_ERROR:
            return inverse.T * scale[:, None]
    return _whiten_rows(problem, roots)


def _whiten_rows(problem: Problem, roots: Tensor) -> Tensor:
    """The same from the rows themselves, which squares no condition number."""
    table, (_, classes, q) = problem.features, roots.shape
    size = q * table.shape[1]
    scale = _diagonal_root(problem, roots).clamp(min=1e-150).reciprocal()
    upper = torch.diag(_penalty(problem) * scale)
    many = max(1, size // classes)
    for some, part in zip(roots.split(many), table.split(many), strict=True):
        rows = torch.einsum("nkq,nm->nkqm", some, part).reshape(-1, size)
        upper = torch.linalg.qr(torch.cat([upper, rows * scale]), mode="r").R
    eye = torch.eye(size, dtype=table.dtype, device=table.device)
    inverse = torch.linalg.solve_triangular(upper, eye, upper=True)
    return inverse * scale[:, None]


def certify(problem: Problem, point: Point) -> tuple[float, Tensor]:
    """Bound of the distance to the optimum, and the coordinates it was made in.

    Args:
        problem: What is fitted.
        point: A careful look at it.

    Returns:
        The distance over the size of the parameters, both in the metric of the Hessian
        there, with all that rounding may hide; infinite where nothing can be said.
    """
    frame = whiten(problem, point.curvature_root)
    slack, reach = _defect(problem, point.curvature_root, frame)
    if not slack <= MAX_DEFECT:
        return math.inf, frame
    stretch, inside = 1 / math.sqrt(1 - slack), point.gradient
    along = (frame.T @ inside).norm()
    along += (len(inside) + 1) * EPS * (frame.abs().T @ inside.abs()).norm()
    # What no row reaches, and what all classes share, only the penalty bends.
    beyond, classes = point.unreached_gradient.norm(), len(point.scores)
    if classes > 1:
        beyond = torch.hypot(beyond, math.sqrt(classes) * point.weights.mean(0).norm())
    pull = point.neg_gradient.abs()
    small = pull if classes == 1 else pull.masked_fill(problem.target > 0, 0.0)
    hidden = (GRADIENT_ULPS + classes) * EPS * (small.T * reach).sum() * stretch
    # Of scores, their last rounding and that of their differences.
    off = 3 * math.sqrt(classes) * EPS * point.scores.abs().amax(0)
    # Of sums in twice the precision, what is left.
    length, (n, d) = problem.rows.norm(dim=1), problem.rows.shape
    off += (d * EPS) ** 2 * length * point.weights.norm()
    hidden += (off * point.curvature_root.flatten(1).norm(dim=1)).norm()
    hidden += (n * EPS) ** 2 * (pull.sum(0) * length).sum()
    bound = float(torch.hypot(along * stretch, beyond) + hidden)
    found = bound / math.sqrt(point.squared_norm)
    return found if math.isfinite(found) else math.inf, frame


def _defect(problem: Problem, roots: Tensor, frame: Tensor) -> tuple[float, Tensor]:
    """Bound of |G|, and (n, class or 1) the root of Q between a row's class and others.

    A pull is rounded towards one class and away from the row's own by as much.
    """
    table, (_, _, q), free = problem.features, roots.shape, problem.class_basis
    size = len(frame)
    parts = frame.view(q, -1, size)
    held = parts[:, :-1].flatten(0, 1)
    off, reach = held.T @ held, []
    own = free if q == 1 and len(free) == 1 else None
    many = max(1, BLOCK // (len(free) * size))
    each = (roots.split(many), table.split(many), problem.target.T.split(many))
    for some, rows, target in zip(*each, strict=True):
        seen = torch.einsum("nm,qmp->nqp", rows, parts)
        bent = torch.einsum("nkq,nqp->nkp", some, seen).flatten(0, 1)
        off += bent.T @ bent
        apart = torch.einsum("kq,nqp->nkp", free, seen)
        if own is None:
            apart = apart - torch.einsum("nk,nkp->np", target, apart)[:, None]
        reach.append(apart.norm(dim=2))
    off.diagonal().sub_(1)
    # Rounding of these products, and of the basis.
    scaled = frame * _diagonal_root(problem, roots)[:, None]
    lost = size**1.5 * EPS * float(scaled.norm())
    if problem.row_basis is not None:
        bend = roots.square().sum((1, 2))
        lost += (
            len(problem.row_basis) * EPS * float((bend @ table.square()).sum().sqrt())
        )
    return float(off.norm()) + 3 * lost + lost**2, torch.cat(reach)


def _penalty(problem: Problem) -> Tensor:
    """(q (r + 1),) what the penalty adds to the Hessian's diagonal."""
    one = torch.ones_like(problem.features[0])
    one[-1] = 0
    return one.repeat(problem.class_basis.shape[1])


def _diagonal_root(problem: Problem, roots: Tensor) -> Tensor:
    """(q (r + 1),) root of the Hessian's diagonal."""
    bend = torch.einsum("nkq,nm->qm", roots.square(), problem.features.square())
    return (bend.flatten() + _penalty(problem)).sqrt()
