"""Few folds of many rows, two classes, all from nothing on one rough preconditioner.

Where rows outnumber features, a factor that is exact (``probes.operators``) costs more
than the fits that use it: it needs the rows in the Hessian's own coordinates. Here the
unknowns are the weights and the intercept themselves, W and b, the penalty is written
out, and the Hessian of all rows, in float32, only says in which metric to go down. So
it may be wrong: what is solved, and certified, is the float64 problem.

Steps are nonlinear conjugate gradients in float32, two products with the rows each;
then Newton steps on exact gradients, whose systems are solved in float32. Where the
rows' curvature has moved far from the metric's, the metric is taken anew.
"""

import torch
from torch import Tensor

from probes.losses import Loss
from probes.operators import gram_of
from probes.problems import Work

HANDOVER = 1e-5
"""Certificate at which float32 has done its part."""
ROUND = 10
"""Steps on one metric before a new one is taken."""
ROUNDS = 4
TURNS = 5
"""Newton steps on exact gradients, at most."""
FINEST = 1e-4
"""Least share of a gradient that float32 is asked to leave."""
CERTAIN = 1e-2
"""Share of a gradient that may be left where the step that is left is measured."""


class _Metric:
    """Inverse of the penalty plus A' diag(weight) A, in float32."""

    def __init__(self, table: Tensor, weight: Tensor) -> None:
        hessian = gram_of((table * weight.sqrt()[:, None]).T)
        hessian.diagonal()[:-1].add_(1)
        lower, failed = torch.linalg.cholesky_ex(hessian)
        self.sound = int(failed) == 0
        self.inverse = torch.cholesky_inverse(lower) if self.sound else hessian

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient @ self.inverse


def fit_tall(
    rows: Tensor, loss: Loss, target: float, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit every problem from nothing.

    Args:
        rows: (n, d) float64, centred, fewer features than rows.
        loss: Problems of two classes; rows taken out of one have no weight in it.
        target: Certificate to reach.
        work: Where to count the work.

    Returns:
        (problem, d + 1) weights and intercept, (problem, n) scores and the (problem,)
        certificate, which is the length of the step that is left over that of the
        parameters in the metric of the Hessian there; infinite where a problem was
        not solved.
    """
    table = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    fast, mild = table.float(), loss.to(torch.float32)
    point = fast.new_zeros(len(loss.weight), table.shape[1])
    metric = _descend(fast, mild, point, work)
    point = point.double()
    certificate = point.new_full((len(point),), torch.inf)
    scores = point @ table.T
    for _ in range(TURNS if metric.sound else 0):
        chance = loss.probabilities(scores[:, None])
        gradient = _gradient(table, loss, point, chance, work)
        bend = loss.curvature(chance)[:, 0]
        size = point[:, :-1].square().sum(1) + (bend * scores.square()).sum(1)
        size = torch.maximum(size, 1e-6 * bend.sum(1))
        move, slope, exact = _solve(fast, bend.float(), -gradient, metric, work)
        now = torch.nan_to_num((slope / size).sqrt(), nan=torch.inf)
        certificate = torch.where(exact, now, torch.inf)
        if bool((certificate <= target).all()):
            break
        point = point + move
        scores = point @ table.T
        certificate = torch.full_like(certificate, torch.inf)
    return point, scores, certificate


def _gradient(
    table: Tensor, loss: Loss, point: Tensor, chance: Tensor, work: Work
) -> Tensor:
    """(problem, d + 1) derivative of the penalised loss."""
    gradient = loss.pull(chance)[:, 0] @ table
    gradient.neg_()[:, :-1].add_(point[:, :-1])
    work.products += len(point)
    work.flops += 4.0 * len(point) * table.numel()
    return gradient


def _descend(table: Tensor, loss: Loss, point: Tensor, work: Work) -> _Metric:
    """Nonlinear conjugate gradients, in place; the last metric."""
    weight = 0.1 * loss.weight.amax((0, 1)).clamp(min=1e-9)
    scores = point @ table.T
    metric = _Metric(table, weight)
    for _ in range(ROUNDS):
        step = before = lead = torch.zeros_like(point)
        size = point.new_ones(len(point))
        for turn in range(ROUND):
            chance = loss.probabilities(scores[:, None])
            gradient = _gradient(table, loss, point, chance, work)
            pulled = metric(gradient)
            square = (gradient * pulled).sum(1)
            if turn == 0 or turn == ROUND // 2:
                fixed = _size(point, scores, weight)
                size = torch.maximum(fixed, 1e-6 * weight.sum())
            if not metric.sound or bool((square <= HANDOVER**2 * size).all()):
                return metric
            keep = torch.zeros_like(square)
            if turn > 0:
                # Polak and Ribiere's, cut off where it forgets.
                keep = ((gradient - before) * pulled).sum(1) / lead
                keep = keep.clamp(min=0).nan_to_num(0.0)
            before, lead = gradient, square
            step = keep[:, None] * step - pulled
            move = step @ table.T
            slope = -(gradient * step).sum(1)
            length = _length(loss, point, scores, step, move, chance, slope)
            point += length[:, None] * step
            scores += length[:, None] * move
        weight = loss.curvature(loss.probabilities(scores[:, None])).mean((0, 1))
        weight = weight.clamp(min=1e-6 * float(weight.max()))
        metric = _Metric(table, weight)
        scores = point @ table.T
    return metric


def _size(point: Tensor, scores: Tensor, weight: Tensor) -> Tensor:
    """(problem,) squared length of the parameters in the metric."""
    return point[:, :-1].square().sum(1) + scores.square() @ weight


def _length(
    loss: Loss,
    point: Tensor,
    scores: Tensor,
    step: Tensor,
    move: Tensor,
    chance: Tensor,
    slope: Tensor,
) -> Tensor:
    """(problem,) how far to go: Newton's length, less where the slope turns too far."""
    stiff = step[:, :-1].square().sum(1)
    bend = stiff + (loss.curvature(chance)[:, 0] * move.square()).sum(1)
    length = torch.where((slope > 0) & (bend > 0), slope / bend, 0.0)
    along = (point[:, :-1] * step[:, :-1]).sum(1)
    for _ in range(8):
        there = scores + length[:, None] * move
        pull = loss.pull(loss.probabilities(there[:, None]))[:, 0]
        last = (pull * move).sum(1) - along - length * stiff
        over = last < -0.5 * slope
        if not bool(over.any()):
            break
        length = torch.where(over, length * slope / (slope - last), length)
    return length


def _solve(
    table: Tensor, bend: Tensor, side: Tensor, metric: _Metric, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's step by conjugate gradients.

    Returns:
        The step and the (problem,) squared length that it has in the metric of the
        Hessian, and whether it was solved for well enough to trust that; float64.
    """
    scale = side.abs().amax(1, keepdim=True).clamp(min=1e-300)
    left = (side / scale).float()
    move, pulled = torch.zeros_like(left), metric(left)
    search, square = pulled.clone(), (left * pulled).sum(1)
    first, fresh, slope = square, square, torch.zeros_like(square)
    for _ in range(60):
        image = ((search @ table.T).mul_(bend)) @ table
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
        if bool((fresh <= FINEST**2 * first).all()):
            break
        ratio = torch.where(square > 0, fresh / square, 0.0)
        search, square = pulled.addcmul_(ratio[:, None], search), fresh
    solved = fresh <= CERTAIN**2 * first
    scale = scale[:, 0]
    return move.double() * scale[:, None], slope.double() * scale**2, solved
