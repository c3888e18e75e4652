"""Conjugate gradients for the Newton systems of a batch of problems."""

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
    residual2: Tensor,
    forcing: Tensor,
    work: Work,
    max_steps: int = 100,
    max_unsolved: float = 0.3,
    predict_stop: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve (I + (W - w) Q) u = residual by conjugate gradients in the inner product u'Qv.

    Iterations stop when at most a share ``max_unsolved`` of the problems is above its forcing
    term. Nothing is lost, because the next Newton step continues from there.

    Args:
        operator: Q.
        curvature: W - w.
        residual: (problem, class, n) right-hand side; not changed.
        q_residual: Q residual.
        residual2: (problem,) residual' Q residual.
        forcing: (problem,) relative residual, in that norm, at which a problem is solved.
        work: Counters and scratch memory.
        max_steps: Most iterations.
        max_unsolved: Share of the problems that may stay above their forcing term.
        predict_stop: Whether to assume that a step converges as fast as the last one, which
            saves the product that would confirm convergence.

    Returns:
        u, Q u, and the (problem,) negative slope of the objective along u.
    """
    curvature = curvature.to(residual.dtype)
    rhs = residual
    residual = work.scratch_like("cg_residual", rhs).copy_(rhs)
    direction = work.scratch_like("direction", rhs).copy_(rhs)
    d_scores = work.scratch_like("d_scores", rhs).copy_(q_residual)
    score_step = work.scratch_like("score_step", rhs).zero_()
    hess_d = work.scratch_like("hess_d", rhs)
    q_residual = work.scratch_like("q_residual", rhs)
    goal2 = residual2 * forcing.to(residual2.dtype) ** 2
    initial2 = residual2
    rate = torch.ones_like(residual2)
    for iteration in range(max_steps):
        curvature.add_to(direction, d_scores, hess_d)
        quadratic_form = inner(d_scores, hess_d, work)
        step = torch.where(quadratic_form > 0, residual2 / quadratic_form, 0.0)[:, None, None]
        score_step.addcmul_(step, d_scores)
        residual.addcmul_(step, hess_d, value=-1)
        if predict_stop and int((residual2 * rate > goal2).sum()) <= max_unsolved * len(goal2):
            break
        operator(residual, q_residual)
        work.count(operator, residual)
        new_residual2 = inner(residual, q_residual, work).clamp_(min=0)
        # A growing residual means that the system is too stiff for this type.
        if iteration + 1 == max_steps or bool((new_residual2 > 1e4 * initial2).any()):
            break
        if int((new_residual2 > goal2).sum()) <= max_unsolved * len(goal2):
            break
        rate = torch.where(residual2 > 0, new_residual2 / residual2, 0.0)
        ratio = rate[:, None, None]
        torch.addcmul(residual, direction, ratio, out=direction)
        torch.addcmul(q_residual, ratio, d_scores, out=d_scores)
        residual2 = new_residual2
    # The solution so far: u = rhs - residual - (W - w) Q u.
    curvature.add_to(residual, score_step, hess_d)
    return torch.sub(rhs, hess_d, out=hess_d), score_step, inner(rhs, score_step, work)
