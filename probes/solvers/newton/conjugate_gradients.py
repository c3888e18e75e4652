"""Conjugate gradients for one Newton step of a batch of problems."""

import torch
from torch import Tensor

from probes.solvers.objective.batch import Work, inner
from probes.solvers.objective.factor import Operator
from probes.solvers.objective.loss import Curvature


def solve_newton_system(
    operator: Operator,
    curvature: Curvature,
    residual: Tensor,
    q_residual: Tensor,
    square: Tensor,
    forcing: Tensor,
    work: Work,
    max_steps: int = 100,
    max_unsolved: float = 0.3,
    predict_stop: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """CG for (I + (W - w) Q) u = residual.

    Stops when all but ``max_unsolved`` of the problems reached their forcing term: the
    others lose nothing, as the next Newton step goes on from where they are.

    Args:
        operator: Q.
        curvature: W - w.
        residual: (problem, class, n) right-hand side; left as it is.
        q_residual: Q residual.
        square: (problem,) residual' Q residual.
        forcing: (problem,) share of the residual, by that norm, that may be left.
        work: Where to count the work.
        max_steps: Most steps.
        max_unsolved: Of the problems, who may be left above their forcing term.
        predict_stop: Whether to expect of a step what the last one brought, which saves
            the product that would only say that it is time to stop.

    Returns:
        u, Q u, and the (problem,) slope of the objective along u, sign turned.
    """
    curvature = curvature.to(residual.dtype)
    start = residual
    residual = work.scratch_like("left", start).copy_(start)
    search = work.scratch_like("search", start).copy_(start)
    ahead = work.scratch_like("ahead", start).copy_(q_residual)
    lift = work.scratch_like("lift", start).zero_()
    image = work.scratch_like("image", start)
    q_residual = work.scratch_like("pulled", start)
    goal = square * forcing.to(square.dtype) ** 2
    first = square
    rate = torch.ones_like(square)
    for iteration in range(max_steps):
        curvature.add_to(search, ahead, image)
        bend = inner(ahead, image, work)
        length = torch.where(bend > 0, square / bend, 0.0)[:, None, None]
        lift.addcmul_(length, ahead)
        residual.addcmul_(length, image, value=-1)
        if predict_stop and int((square * rate > goal).sum()) <= max_unsolved * len(
            goal
        ):
            break
        operator(residual, q_residual)
        work.count(operator, residual)
        fresh = inner(residual, q_residual, work).clamp_(min=0)
        # Growth is rounding, not progress: the system is too stiff for this type.
        if iteration + 1 == max_steps or bool((fresh > 1e4 * first).any()):
            break
        if int((fresh > goal).sum()) <= max_unsolved * len(goal):
            break
        rate = torch.where(square > 0, fresh / square, 0.0)
        ratio = rate[:, None, None]
        torch.addcmul(residual, search, ratio, out=search)
        torch.addcmul(q_residual, ratio, ahead, out=ahead)
        square = fresh
    # What CG has solved for so far: u = start - residual - (W - w) Q u.
    curvature.add_to(residual, lift, image)
    return torch.sub(start, image, out=image), lift, inner(start, lift, work)
