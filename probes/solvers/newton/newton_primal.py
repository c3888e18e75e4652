"""Newton-CG in the features' space: two classes and more rows than features.

Where Q = B B' with a narrow B, all that a problem needs is z = B'c, one number a
parameter. Scores are E = B z, z'z is the squared norm of the parameters in the metric
of H, the gradient in that metric is

    g = z - B'(a + w E)          (a the pull of the loss, w the factor's weights)

and a Newton step solves (I + B'(W - w)B) d = -g by plain conjugate gradients. Nothing
lives outside what the features span, so that float32 products have nothing to lose
their digits against, and |g| / |z| is the certificate. Rows taken out of a problem
have no weight in its loss; the factor may hold them all the same.
"""

import torch
from torch import Tensor

from probes.solvers.objective.batch import Batch, Work
from probes.solvers.objective.loss import Loss

MAX_CG_STEPS = 100
"""Products of one step."""
RETRY_TOL_FACTOR = 1e-4
"""Target of a second try, over that of the first."""
RESIDUAL_TOL = 1e-2
"""As in ``engine``."""


def minimize_primal(
    batch: Batch, tol: float, iteration_dtype: torch.dtype, steps: int, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve problems of two classes whose factor has a basis.

    Args:
        batch: In float64, with any starting point.
        tol: Certificate to reach.
        iteration_dtype: Type of the inner products.
        steps: Newton steps before giving up.
        work: Where to count the work.

    Returns:
        As ``engine.minimise``: (problem, 1, n) scores and dual values, (problem,)
        certificate.
    """
    scores, dual, certificate = _newton(batch, tol, iteration_dtype, steps, work)
    left = ~(certificate <= 10 * tol)
    if bool(left.any()):
        # The loop goes by the factor's metric, which was too mild a judge here.
        which = left.nonzero()[:, 0]
        part = batch.select(which)
        part = Batch(part.loss, part.operator, dual[which], scores[which])
        again = _newton(part, RETRY_TOL_FACTOR * tol, torch.float64, steps, work)
        scores[which], dual[which], certificate[which] = again
    return scores, dual, certificate


def _newton(
    batch: Batch, target: float, iterations: torch.dtype, steps: int, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton steps until |g| / |z| is at the target or no longer falls."""
    factor = batch.operator.factor
    assert factor.basis is not None
    basis, fixed = factor.basis[0], factor.weight[0]
    fast, loss = basis.to(iterations), batch.loss
    finest = 1e-3 if iterations == torch.float32 else 1e-7
    pull = batch.dual - batch.operator.weight * batch.scores
    point = (pull + fixed * batch.scores)[:, 0] @ basis
    answer = torch.zeros_like(point)
    best = point.new_full((len(point),), torch.inf)
    stalled = torch.zeros_like(best)
    place = torch.arange(len(point), device=point.device)
    floor = 1e-6 * fixed.sum()
    scores = point @ basis.T
    gradient, bend = _gradient_and_excess(loss, basis, fixed, point, scores)
    for step in range(steps + 1):
        now = _norm(gradient) / _norm(point).clamp(min=floor.sqrt())
        now = torch.nan_to_num(now, nan=torch.inf)
        stalled = torch.where(now < 0.5 * best[place], 0.0, stalled + 1)
        better = now < best[place]
        best[place[better]], answer[place[better]] = now[better], point[better]
        done = (now <= target) | (stalled >= 12) | (step == steps)
        if bool(done.all()):
            break
        if bool(done.any()):
            keep = (~done).nonzero()[:, 0]
            place, stalled, now = place[keep], stalled[keep], now[keep]
            point, scores, loss = point[keep], scores[keep], loss.select(keep)
            gradient, bend = gradient[keep], bend[keep]
        forcing = torch.maximum(now.clamp(max=0.1), 0.3 * target / now)
        goal = forcing.clamp(min=finest)
        side = -gradient.to(iterations)
        move, _ = _solve_newton_system(fast, bend.to(iterations), side, goal, work)
        _count(work, basis, len(point))
        point, scores, gradient, bend = _take_step(
            loss, basis, fixed, point, scores, gradient, move.to(point)
        )
    return _certified_answer(batch, answer, fast, work)


def _gradient_and_excess(
    loss: Loss, basis: Tensor, fixed: Tensor, point: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """(problem, r) gradient, and (problem, n) curvature beyond the factor's."""
    chance = loss.probabilities(scores[:, None])
    pull = loss.neg_gradient(chance)[:, 0]
    gradient = point - (pull + fixed * scores) @ basis
    return gradient, loss.curvature(chance)[:, 0] - fixed


def _count(work: Work, basis: Tensor, problems: int) -> None:
    """Add a product with B and one with B' for each of so many problems."""
    work.products += problems
    work.flops += 4.0 * problems * basis.numel()


def _solve_newton_system(
    basis: Tensor, bend: Tensor, residual: Tensor, forcing: Tensor, work: Work
) -> tuple[Tensor, Tensor]:
    """CG for (I + B' diag(bend) B) move = residual, and (problem,) who got there."""
    move, search = torch.zeros_like(residual), residual.clone()
    square = residual.square().sum(1)
    first, goal = square, square * forcing.to(square).square()
    fresh = square
    for _ in range(MAX_CG_STEPS):
        image = ((search @ basis.T).mul_(bend) @ basis).add_(search)
        _count(work, basis, len(search))
        slope = (search * image).sum(1)
        length = torch.where(slope > 0, square / slope, 0.0)[:, None]
        move.addcmul_(length, search)
        residual = torch.addcmul(residual, length, image, value=-1)
        fresh = residual.square().sum(1)
        # Growth is rounding, not progress: the system is too stiff for this type.
        if bool((fresh > 1e4 * first).any()) or int((fresh > goal).sum()) == 0:
            break
        ratio = torch.where(square > 0, fresh / square, 0.0)[:, None]
        search.mul_(ratio).add_(residual)
        square = fresh
    return move, fresh <= goal


def _take_step(
    loss: Loss,
    basis: Tensor,
    fixed: Tensor,
    point: Tensor,
    scores: Tensor,
    gradient: Tensor,
    move: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the step, shortened where the slope along it turns by over half."""
    first = -(gradient * move).sum(1)
    landed = point + move
    there = landed @ basis.T
    gradient, bend = _gradient_and_excess(loss, basis, fixed, landed, there)
    over = ~(-(gradient * move).sum(1) >= -0.5 * first)
    if not bool(over.any()):
        return landed, there, gradient, bend
    index = over.nonzero()[:, 0]
    part, start, at = loss.select(index), point[index], scores[index]
    step, lift, first = move[index], (there - scores)[index], first[index]
    low, high = torch.zeros_like(first), torch.ones_like(first)
    middle = high
    for _ in range(40):
        middle = 0.5 * (low + high)
        here = at + middle[:, None] * lift
        pull = part.neg_gradient(part.probabilities(here[:, None]))[:, 0] + fixed * here
        back = ((start + middle[:, None] * step) * step).sum(1)
        slope = (pull * lift).sum(1) - back
        if bool((slope.abs() <= 0.5 * first).all()):
            break
        down = slope > 0
        low, high = torch.where(down, middle, low), torch.where(down, high, middle)
    landed[index] = start + middle[:, None] * step
    there[index] = landed[index] @ basis.T
    gradient[index], bend[index] = _gradient_and_excess(
        part, basis, fixed, landed[index], there[index]
    )
    return landed, there, gradient, bend


def _certified_answer(
    batch: Batch, point: Tensor, fast: Tensor, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and dual values that are each other's, one gradient step from ``point``.

    B'c = z has many solutions; c = a + w E is the one whose pull alpha = c - w E is
    that of the loss, bounded and zero on rows taken out, and it stands for z - g.
    The certificate is the larger of |g| / |z| and of the step that is left over the
    parameters, both in the metric of the Hessian there: where separable rows have lost
    their curvature, the factor's metric says nothing. A step that could not be solved
    for would be too short, and certifies nothing.
    """
    factor = batch.operator.factor
    assert factor.basis is not None
    basis, fixed, loss = factor.basis[0], factor.weight[0], batch.loss
    before = point @ basis.T
    dual = loss.neg_gradient(loss.probabilities(before[:, None]))[:, 0] + fixed * before
    point = dual @ basis
    scores = point @ basis.T
    gradient, bend = _gradient_and_excess(loss, basis, fixed, point, scores)
    floor = 1e-6 * fixed.sum()
    certificate = _norm(gradient) / _norm(point).clamp(min=floor.sqrt())
    enough = torch.full_like(certificate, RESIDUAL_TOL)
    left, solved = _solve_newton_system(
        fast, bend.to(fast), -gradient.to(fast), enough, work
    )
    _count(work, basis, 2 * len(point))
    size = point.square().sum(1) + (bend * scores.square()).sum(1)
    floor = 1e-6 * (bend + fixed).sum(1)
    decrement = -(gradient * left.to(gradient)).sum(1) / torch.maximum(size, floor)
    own = torch.nan_to_num(decrement, nan=torch.inf).abs().sqrt()
    own = torch.where(solved, own, torch.inf)
    certificate = torch.maximum(certificate, own)
    # The same pull in the terms of the batch's own fixed weights.
    dual = (dual - fixed * scores)[:, None] + batch.operator.weight * scores[:, None]
    return scores[:, None], dual, certificate


def _norm(rows: Tensor) -> Tensor:
    return rows.square().sum(1).sqrt()
