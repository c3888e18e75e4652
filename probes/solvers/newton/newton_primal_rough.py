"""Few folds of many rows, two classes, all from nothing on one rough preconditioner.

Where rows outnumber features, a factor that is exact
(``probes.solvers.objective.factor``) costs more than the fits that use it: it needs the
rows in the Hessian's own coordinates. Here the unknowns are the weights and the
intercept themselves, W and b, the penalty is written out, and a rough Hessian in
float32 only says in which metric to go down. So it may be wrong: what is solved, and
certified, is the float64 problem.

The metric is the Hessian of the problems' mean curvature, or, as long as that gets on,
its diagonal, which costs one pass over the rows. What a problem's own rows bend beyond
the mean is added as one direction of its own: their mean. Concepts that few rows show
differ in little else.

Steps are nonlinear conjugate gradients in float32, two products with the rows each;
then Newton steps on exact gradients, whose systems are solved in float32. Curvature
falls far on the way where classes come apart, so the diagonal is taken anew every few
steps, and the whole where they bring little.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.solvers.objective.batch import Work
from probes.solvers.objective.factor import gram_matrix
from probes.solvers.objective.loss import Loss

FLOAT32_TOL = 1e-5
"""Certificate at which float32 has done its part."""
FLOAT32_FLOOR, STALL_RATIO = 1e-4, 0.5
"""Below this certificate a round that leaves at least this share is the last: what is
left is float32's rounding, which no metric takes away."""
STEPS_PER_ROUND, MAX_ROUNDS = 6, 12
"""Steps before the metric is looked at again, and how often that is done, at most."""
MAX_ROUND_RATIO = 0.2
"""What a round has to leave at most, to stay with the diagonal or a factor at hand."""
MAX_NEWTON_STEPS = 5
"""Newton steps on exact gradients, at most."""
MIN_FORCING = 1e-4
"""Least share of a gradient that float32 is asked to leave."""
RESIDUAL_TOL = 1e-2
"""Share of a gradient that may be left where the step that is left is measured."""


@dataclass(frozen=True)
class _Preconditioner:
    """Inverse of a rough Hessian, in float32.

    Attributes:
        weight: (row,) mean curvature.
        base: The inverse without what is a problem's own.
        own: (problem, d + 1) direction along which each problem's is less.
    """

    weight: Tensor
    base: Callable[[Tensor], Tensor]
    own: Tensor

    def __call__(self, gradient: Tensor) -> Tensor:
        """The step (problem, d + 1) that the metric makes of a gradient."""
        along = (gradient * self.own).sum(1, keepdim=True)
        return self.base(gradient).addcmul_(self.own, along, value=-1)


def _preconditioner(table: Tensor, bend: Tensor, exact: bool) -> _Preconditioner | None:
    """The metric of curvatures (problem, row); None where no row bends enough."""
    weight = bend.mean(0)
    weight = weight.clamp(min=1e-6 * float(weight.max()))
    if exact:
        hessian = gram_matrix((table * weight.sqrt()[:, None]).T)
        hessian.diagonal()[:-1].add_(1)
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if int(failed):
            return None
        inverse = torch.cholesky_inverse(lower)
    else:
        size = weight @ table.square()
        if not float(size[-1]) > 0:
            return None
        size[:-1] += 1
        inverse = 1 / size

    def base(gradient: Tensor) -> Tensor:
        return gradient @ inverse if exact else gradient * inverse

    beyond = (bend - weight).clamp(min=0)
    total = beyond.sum(1, keepdim=True)
    towards = beyond @ table / total.clamp(min=1e-30).sqrt()
    own = base(towards)
    # The inverse of a Hessian to which one row is added (Sherman and Morrison).
    own = own / (1 + (towards * own).sum(1, keepdim=True)).sqrt()
    return _Preconditioner(weight, base, own)


def fit_primal(
    rows: Tensor, loss: Loss, tol: float, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit every problem from nothing.

    Args:
        rows: (n, d) float64, centred, fewer features than rows.
        loss: Problems of two classes; rows taken out of one have no weight in it.
        tol: Certificate to reach.
        work: Where to count the work.

    Returns:
        (problem, d + 1) weights and intercept, (problem, n) scores and the (problem,)
        certificate, which is the length of the step that is left over that of the
        parameters in the metric of the Hessian there; infinite where a problem was
        not solved.
    """
    table = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    fast, mild = table.float(), loss.to(torch.float32)
    # Few problems times many rows take half the time with the rows in this order.
    turned = fast.T.contiguous()
    point = fast.new_zeros(len(loss.weight), table.shape[1])
    metric = _nonlinear_cg(fast, turned, mild, point, work)
    point = point.double()
    certificate = point.new_full((len(point),), torch.inf)
    scores = point @ table.T
    for _ in range(MAX_NEWTON_STEPS):
        if metric is None:
            break
        chance = loss.probabilities(scores[:, None])
        gradient = _gradient(table, loss, point, chance, work)
        bend = loss.curvature(chance)[:, 0]
        size = point[:, :-1].square().sum(1) + (bend * scores.square()).sum(1)
        size = torch.maximum(size, 1e-6 * bend.sum(1))
        enough = (0.1 * tol) ** 2 * size
        move, slope, exact = _newton_step(
            fast, turned, bend.float(), -gradient, metric, enough, work
        )
        now = torch.nan_to_num((slope / size).sqrt(), nan=torch.inf)
        certificate = torch.where(exact, now, torch.inf)
        if bool((certificate <= tol).all()):
            break
        point = point + move
        scores = point @ table.T
        certificate = torch.full_like(certificate, torch.inf)
    return point, scores, certificate


def _gradient(
    table: Tensor, loss: Loss, point: Tensor, chance: Tensor, work: Work
) -> Tensor:
    """(problem, d + 1) derivative of the penalised loss."""
    gradient = loss.neg_gradient(chance)[:, 0] @ table
    gradient.neg_()[:, :-1].add_(point[:, :-1])
    work.products += len(point)
    work.flops += 4.0 * len(point) * table.numel()
    return gradient


def _nonlinear_cg(
    table: Tensor, turned: Tensor, loss: Loss, point: Tensor, work: Work
) -> _Preconditioner | None:
    """Nonlinear conjugate gradients, in place; the last metric, None without one."""
    metric, exact, stale = None, False, True
    for _ in range(MAX_ROUNDS):
        scores = point @ turned
        chance = loss.probabilities(scores[:, None])
        if stale:
            bend = loss.curvature(chance)[:, 0]
            metric = _preconditioner(table, bend, exact)
        if metric is None:
            return None
        step = before = lead = torch.zeros_like(point)
        lengths = []
        for turn in range(STEPS_PER_ROUND):
            gradient = _gradient(table, loss, point, chance, work)
            pulled = metric(gradient)
            square = (gradient * pulled).sum(1)
            size = _squared_norm(point, scores, metric.weight)
            lengths.append(float((square / size).max().sqrt()))
            if lengths[-1] <= FLOAT32_TOL:
                return metric
            keep = torch.zeros_like(square)
            if turn > 0:
                # Polak and Ribiere's, cut off where it forgets.
                keep = ((gradient - before) * pulled).sum(1) / lead
                keep = keep.clamp(min=0).nan_to_num(0.0)
            before, lead = gradient, square
            step = keep[:, None] * step - pulled
            move = step @ turned
            slope = -(gradient * step).sum(1)
            length, scores, chance = _line_search(
                loss, point, scores, step, move, chance, slope
            )
            point += length[:, None] * step
        if exact and STALL_RATIO * lengths[0] <= lengths[-1] <= FLOAT32_FLOOR:
            return metric
        # The first length of all is that of no probe, which says nothing.
        slow = not lengths[-1] <= MAX_ROUND_RATIO * lengths[1]
        stale = slow or not exact
        exact |= slow
    return metric


def _squared_norm(point: Tensor, scores: Tensor, weight: Tensor) -> Tensor:
    """(problem,) squared length of the parameters in the metric."""
    size = point[:, :-1].square().sum(1) + scores.square() @ weight
    return torch.maximum(size, 1e-6 * weight.sum())


def _line_search(
    loss: Loss,
    point: Tensor,
    scores: Tensor,
    step: Tensor,
    move: Tensor,
    chance: Tensor,
    slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """How far to go: Newton's length, less where the slope turns too far.

    Returns:
        (problem,) length, and (problem, row) scores and probabilities there.
    """
    stiff = step[:, :-1].square().sum(1)
    bend = stiff + (loss.curvature(chance)[:, 0] * move.square()).sum(1)
    length = torch.where((slope > 0) & (bend > 0), slope / bend, 0.0)
    along = (point[:, :-1] * step[:, :-1]).sum(1)
    trials = 8
    while True:
        there = scores + length[:, None] * move
        chance = loss.probabilities(there[:, None])
        last = (loss.neg_gradient(chance)[:, 0] * move).sum(1) - along - length * stiff
        over = last < -0.5 * slope
        if not trials or not bool(over.any()):
            return length, there, chance
        length = torch.where(over, length * slope / (slope - last), length)
        trials -= 1


def _newton_step(
    table: Tensor,
    turned: Tensor,
    bend: Tensor,
    side: Tensor,
    metric: _Preconditioner,
    enough: Tensor,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's step by conjugate gradients.

    Args:
        table: (row, d + 1) float32.
        turned: (d + 1, row), the same.
        bend: (problem, row) curvature.
        side: (problem, d + 1) float64, minus the gradient.
        metric: To go by.
        enough: (problem,) squared length below which nothing more is asked for.
        work: Where to count the work.

    Returns:
        The step and the (problem,) squared length that it has in the metric of the
        Hessian, and whether it was solved for well enough to trust that; float64.
    """
    scale = side.abs().amax(1, keepdim=True).clamp(min=1e-300)
    left = (side / scale).float()
    move, pulled = torch.zeros_like(left), metric(left)
    search, square = pulled.clone(), (left * pulled).sum(1)
    first, fresh, slope = square, square, torch.zeros_like(square)
    asked = (enough / scale[:, 0].square()).float()
    asked = asked.clamp(MIN_FORCING**2 * first, RESIDUAL_TOL**2 * first)
    for _ in range(60):
        image = ((search @ turned).mul_(bend)) @ table
        image[:, :-1] += search[:, :-1]
        work.products += len(search)
        work.flops += 4.0 * len(search) * table.numel()
        stiff = (search * image).sum(1)
        length = torch.where(stiff > 0, square / stiff, 0.0)
        slope = slope + length * square
        move.addcmul_(length[:, None], search)
        left.addcmul_(length[:, None], image, value=-1)
        pulled = metric(left)
        fresh = (left * pulled).sum(1)
        if bool((fresh <= asked).all()):
            break
        ratio = torch.where(square > 0, fresh / square, 0.0)
        search, square = pulled.addcmul_(ratio[:, None], search), fresh
    solved = fresh <= RESIDUAL_TOL**2 * first
    scale = scale[:, 0]
    return move.double() * scale[:, None], slope.double() * scale**2, solved
