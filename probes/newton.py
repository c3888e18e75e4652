"""The last resort: one logistic fit by Newton steps on its rows, certified by a bound.

Faster ways lose certificates to rounding: a pull s (t - p) of a row that is told apart
has no digits left in p, scores come out of products that cancel, and a step that
overshoots lands where no row bends. Here pulls are made of the small probabilities
alone, scores and gradients are sums in twice the precision, and no step passes the
least value along its line.

Steps are made, and gradients measured, in coordinates N in which the Hessian H is
nearly 1: N'HN = 1 + G. How N was found does not matter, for G is computed: the squared
distance to the optimum g'H^-1 g is at most |N'g|^2 / (1 - |G|). What rounding may hide
is added to that. With A the rows, D a row's curvature and Q = A H^-1 A', pulls known to
within e hide at most the sum of e sqrt(Q) over rows, and scores known to within h the
root of the sum of h^2 D. The certificate is this whole bound over the size of the
parameters in the metric of H.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.losses import Loss
from probes.twofold import BLOCK, dot, two_sum

EPS = torch.finfo(torch.float64).eps
STEPS = 200
"""Newton steps, at most."""
NEAR, PATIENCE = 1e-5, 40
"""Distance to the optimum, or steps, from which on sums are in twice the precision."""
STALLED = 3
"""Steps in a row that may fail to halve a certificate. Newton's square what is left:
what they no longer halve is rounding."""
ROUNDED = 4
"""Units of rounding in a pull of a given score: an exponential, a sum, a ratio and a
weight."""
CALM = 0.5
"""Change of scores up to which a step cannot go too far: on its way no curvature
changes by more than the exponential of it."""
SOUND = 0.5
"""Largest |G| of coordinates that say how far the optimum is."""


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


@dataclass(frozen=True)
class _Problem:
    """What is fitted.

    Attributes:
        rows: (n, d).
        target: (class or 1, n) 0 or 1.
        weight: (n,) > 0.
        free: (class or 1, q) orthonormal: classes without what they share.
        basis: (d, r) orthonormal, spans the rows; None where that is all features.
        table: (n, r + 1) rows in that basis, and 1.
    """

    rows: Tensor
    target: Tensor
    weight: Tensor
    free: Tensor
    basis: Tensor | None
    table: Tensor


@dataclass(frozen=True)
class _Place:
    """A point: (class or 1, d) weights, (class or 1,) intercept, and what follows.

    Attributes:
        scores: (class or 1, n).
        pull: (class or 1, n) minus the derivative of the loss by the scores.
        roots: (n, class or 1, q): F with F'F the second derivative by free scores.
        size: Squared norm of the parameters in the metric of the Hessian.
    """

    weights: Tensor
    intercept: Tensor
    scores: Tensor
    pull: Tensor
    roots: Tensor
    size: float


def newton_fit(rows: Tensor, loss: Loss, target: float) -> NewtonFit:
    """Fit one problem from nothing.

    Args:
        rows: (n, d) float64 rows fitted.
        loss: Of these rows alone: one problem, weights > 0.
        target: Certificate to reach.
    """
    problem = _problem(rows, loss)
    classes = len(problem.target)
    weights, shift = rows.new_zeros(classes, rows.shape[1]), rows.new_zeros(classes)
    best, stalled, careful = NewtonFit(weights, shift, math.inf), 0, False
    for step in range(STEPS):
        careful |= step >= PATIENCE or step + 1 == STEPS
        place = _look(problem, weights, shift, careful)
        gradient = _gradient(problem, place, careful)
        frame = _frame(problem, place.roots)
        if careful:
            found, frame = _certificate(problem, place, gradient, frame)
            stalled = 0 if found < 0.5 * best.certificate else stalled + 1
            if found < best.certificate:
                best = NewtonFit(weights, shift, found)
            if found <= target or stalled >= STALLED:
                break
        along = frame.T @ _inside(problem, gradient)
        left = float(along.norm()) / math.sqrt(place.size)
        if not math.isfinite(left):
            break
        if not careful and left <= NEAR:
            careful = True
            continue
        weights, shift = _moved(problem, place, -(frame @ along))
    return best


def _problem(rows: Tensor, loss: Loss) -> _Problem:
    n, d = rows.shape
    target = loss.target[0]
    ones = rows.new_ones(len(target), 1)
    free = ones
    if len(target) > 1:
        free = torch.linalg.qr(ones, mode="complete").Q[:, 1:]
    basis, inside = None, rows
    if n < d:
        basis, upper = torch.linalg.qr(rows.T)
        inside = upper.T
    table = torch.cat([inside, rows.new_ones(n, 1)], 1)
    return _Problem(rows, target, loss.weight[0, 0], free, basis, table)


def _chances(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of each class, and of all others: both to their last digits."""
    if len(scores) == 1:
        return torch.sigmoid(scores), torch.sigmoid(-scores)
    chance = torch.softmax(scores, 0)
    each = range(len(chance))
    rest = [torch.cat([chance[:k], chance[k + 1 :]]).sum(0) for k in each]
    return chance, torch.stack(rest)


def _look(
    problem: _Problem, weights: Tensor, intercept: Tensor, careful: bool
) -> _Place:
    """All that Newton's step and the certificate need of a point but the gradient."""
    rows, weight = problem.rows, problem.weight
    if careful:
        parts = []
        for each, shift in zip(weights, intercept, strict=True):
            value, rest = dot(rows, each)
            value, lost = two_sum(value, shift)
            parts.append(value + (lost + rest))
        scores = torch.stack(parts)
    else:
        scores = weights @ rows.T + intercept[:, None]
    chance, others = _chances(scores)
    pull = weight * torch.where(problem.target > 0, others, -chance)
    if len(scores) == 1:
        roots = (weight * chance * others).sqrt().T[:, :, None]
    else:
        # diag(p) - pp' = F'F with F = diag(p)^(1/2) - p^(1/2) p'.
        root = chance.sqrt().T
        roots = -root[:, :, None] * chance.T[:, None]
        roots.diagonal(dim1=1, dim2=2).copy_(root * others.T)
        roots = weight.sqrt()[:, None, None] * (roots @ problem.free)
    bent = torch.einsum("nkq,qn->nk", roots, problem.free.T @ scores)
    size = float(weights.square().sum() + bent.square().sum())
    # Scores of a thousandth count as nothing: optima at zero have no scale.
    size = max(size, 1e-6 * float(roots.square().sum()))
    return _Place(weights, intercept, scores, pull, roots, size)


def _gradient(problem: _Problem, place: _Place, careful: bool) -> tuple[Tensor, Tensor]:
    """Derivative by the weights (class or 1, d) and the intercept (class or 1,)."""
    rows, pull = problem.rows, place.pull
    if not careful:
        return place.weights - pull @ rows, -pull.sum(1)
    ones, across = torch.ones_like(rows[:1, 0]), rows.T
    steep, shift = [], []
    for weights, each in zip(place.weights, pull, strict=True):
        value, rest = dot(across, each)
        steep.append((weights - value) - rest)
        value, rest = dot(each[None], ones.expand(len(each)))
        shift.append(-(value + rest)[0])
    return torch.stack(steep), torch.stack(shift)


def _inside(problem: _Problem, gradient: tuple[Tensor, Tensor]) -> Tensor:
    """(q (r + 1),) the gradient in the coordinates of ``table``."""
    steep, shift = (problem.free.T @ part for part in gradient)
    steep = steep if problem.basis is None else steep @ problem.basis
    return torch.cat([steep, shift[:, None]], 1).flatten()


def _penalty(problem: _Problem) -> Tensor:
    """(q (r + 1),) what the penalty adds to the Hessian's diagonal."""
    one = torch.ones_like(problem.table[0])
    one[-1] = 0
    return one.repeat(problem.free.shape[1])


def _frame(problem: _Problem, roots: Tensor) -> Tensor:
    """Coordinates N in which the Hessian is 1, by Cholesky where that succeeds."""
    table, q = problem.table, roots.shape[2]
    bend = torch.einsum("nkp,nkq->pqn", roots, roots)
    system = torch.cat(
        [
            torch.cat([table.T @ (table * each[:, None]) for each in line], 1)
            for line in bend
        ]
    )
    system.diagonal().add_(_penalty(problem))
    scale = system.diagonal().clamp(min=1e-300).rsqrt()
    system = system.mul_(scale).mul_(scale[:, None])
    lower, failed = torch.linalg.cholesky_ex(system)
    if int(failed):
        return _frame_of_rows(problem, roots)
    eye = torch.eye(q * table.shape[1], dtype=table.dtype, device=table.device)
    inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
    return inverse.T * scale[:, None]


def _frame_of_rows(problem: _Problem, roots: Tensor) -> Tensor:
    """The same from the rows themselves, which squares no condition number."""
    table, (_, classes, q) = problem.table, roots.shape
    size = q * table.shape[1]
    square = torch.einsum("nkq,nm->qm", roots.square(), table.square()).flatten()
    penalty = _penalty(problem)
    scale = (square + penalty).clamp(min=1e-300).rsqrt()
    upper = torch.diag(penalty * scale)
    many = max(1, size // classes)
    for some, part in zip(roots.split(many), table.split(many), strict=True):
        rows = torch.einsum("nkq,nm->nkqm", some, part).reshape(-1, size)
        upper = torch.linalg.qr(torch.cat([upper, rows * scale]), mode="r").R
    eye = torch.eye(size, dtype=table.dtype, device=table.device)
    inverse = torch.linalg.solve_triangular(upper, eye, upper=True)
    return inverse * scale[:, None]


def _slack(problem: _Problem, roots: Tensor, frame: Tensor) -> tuple[float, Tensor]:
    """Bound of |G|, and (n,) bounds of the leverages Q, summed over free classes."""
    table, (_, _, q) = problem.table, roots.shape
    size = len(frame)
    parts = frame.view(q, -1, size)
    held = parts[:, :-1].flatten(0, 1)
    off = held.T @ held
    reach = []
    many = max(1, BLOCK // (q * size))
    for some, rows in zip(roots.split(many), table.split(many), strict=True):
        seen = torch.einsum("nm,qmp->nqp", rows, parts)
        reach.append(seen.square().sum((1, 2)))
        bent = torch.einsum("nkq,nqp->nkp", some, seen).flatten(0, 1)
        off += bent.T @ bent
    # Rounding of these products, with columns of length 1; and of the basis.
    square = torch.einsum("nkq,nm->qm", roots.square(), table.square()).flatten()
    scale = (square + _penalty(problem)).sqrt()
    lost = size**1.5 * EPS * float((frame * scale[:, None]).norm())
    if problem.basis is not None:
        bend = roots.square().sum((1, 2))
        lost += len(problem.basis) * EPS * float((bend @ table.square()).sum().sqrt())
    off.diagonal().sub_(1)
    return float(off.norm()) + 3 * lost + lost**2, torch.cat(reach)


def _certificate(
    problem: _Problem, place: _Place, gradient: tuple[Tensor, Tensor], frame: Tensor
) -> tuple[float, Tensor]:
    """The bound, infinite where there is none, and the coordinates it was made in."""
    slack, reach = _slack(problem, place.roots, frame)
    if not slack <= SOUND:
        frame = _frame_of_rows(problem, place.roots)
        slack, reach = _slack(problem, place.roots, frame)
        if not slack <= SOUND:
            return math.inf, frame
    stretch = 1 / math.sqrt(1 - slack)
    inside = _inside(problem, gradient)
    along = (frame.T @ inside).norm()
    along += (len(inside) + 1) * EPS * (frame.abs().T @ inside.abs()).norm()
    # What no row reaches, and what all classes share, only the penalty bends.
    steep = problem.free.T @ gradient[0]
    beyond = steep.new_zeros(())
    if problem.basis is not None:
        beyond = (steep - steep @ problem.basis @ problem.basis.T).norm()
    if len(problem.target) > 1:
        shared = place.weights.mean(0).norm() * math.sqrt(len(problem.target))
        beyond = torch.hypot(beyond, shared)
    length = problem.rows.norm(dim=1)
    pull = place.pull.abs().sum(0)
    hidden = ROUNDED * EPS * (pull * reach.sqrt()).sum() * stretch
    # Twofold sums: their last rounding, differences of scores, and what they leave.
    off = 3 * math.sqrt(len(place.scores)) * EPS * place.scores.abs().amax(0)
    off += (problem.rows.shape[1] * EPS) ** 2 * length * place.weights.norm()
    hidden += (off * place.roots.flatten(1).norm(dim=1)).norm()
    hidden += (len(length) * EPS) ** 2 * (pull * length).sum()
    bound = float(torch.hypot(along * stretch, beyond) + hidden)
    found = bound / math.sqrt(place.size)
    return found if math.isfinite(found) else math.inf, frame


def _moved(problem: _Problem, place: _Place, move: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and intercept after the step, or the part of it that still goes down."""
    step = move.view(problem.free.shape[1], -1)
    turn = step[:, :-1]
    turn = problem.free @ (turn if problem.basis is None else turn @ problem.basis.T)
    shift = problem.free @ step[:, -1]
    lift = turn @ problem.rows.T + shift[:, None]
    change = lift.abs() if len(lift) == 1 else lift.amax(0) - lift.amin(0)
    most = float(change.max())
    length = 1.0
    if most > CALM:
        # Up to here the least value along the line cannot have been passed.
        length = math.log1p(most) / most
        first = _slope(problem, place, turn, lift, 0.0)
        high = 1.0
        while _slope(problem, place, turn, lift, high) >= 0 and high < 64:
            length, high = high, 2 * high
        while _slope(problem, place, turn, lift, length) > 0.5 * first:
            middle = 0.5 * (length + high)
            if not length < middle < high:
                break
            if _slope(problem, place, turn, lift, middle) >= 0:
                length = middle
            else:
                high = middle
    return place.weights + length * turn, place.intercept + length * shift


def _slope(
    problem: _Problem, place: _Place, turn: Tensor, lift: Tensor, length: float
) -> float:
    """How fast the objective falls along a step at ``length`` of it."""
    chance, others = _chances(place.scores + length * lift)
    pull = problem.weight * torch.where(problem.target > 0, others, -chance)
    held = ((place.weights + length * turn) * turn).sum()
    return float((pull * lift).sum() - held)
