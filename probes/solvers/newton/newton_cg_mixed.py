"""Mixed-precision solver in row space: nonlinear CG in float32, then Newton-CG.

A Newton step by linear conjugate gradients spends two products more than it uses: one to
measure the distance to the optimum and one to confirm that its system is solved. Nonlinear
conjugate gradients need one product a step and keep their directions from step to step. They
run in float32. Scores are then recomputed in the type of the answer, and the small remainder
is a linear system with an exact residual, which needs only an approximate solution.
Certificates always come from exact residuals. Problems that do not converge are left to the
safeguarded steps of ``probes.solvers.newton.newton_cg``.

An elementwise pass costs about a tenth of a product, so there are few passes. The state is the
scores E and the offset b = s t - alpha (s the rows' weights in the loss, t the targets,
alpha = c - w E), because the residual is then b - s p.

Source: Daniel (1967), SIAM J. Numer. Anal. 4:10, for the conjugacy of directions.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probes.solvers.compiled import dispatch
from probes.solvers.newton.conjugate_gradients import solve_newton_system
from probes.solvers.objective.batch import Batch, Limits, Work, inner
from probes.solvers.objective.factor import Operator
from probes.solvers.objective.loss import Curvature, Loss, center_classes

FLOAT32_TOL = 1e-5
"""Certificate at which a float64 solve leaves float32."""
LIMITS = Limits(steps=30, newton_steps=6, min_forcing=1e-5, rescore_above=1e-4)
"""Iterations after which safeguarded steps take over."""
MAX_ACTIVE_FRACTION = 0.05
"""Share of problems that may be above a goal when all move on to the next phase."""
COMPACT_BELOW = 0.6
"""Share of active problems below which they are copied to a smaller batch."""


@dataclass
class _State:
    """Current point of a batch of problems.

    Attributes:
        loss: The objective.
        operator: Q, in the type of the loss.
        scores: (problem, class, n) E.
        offset: (problem, class, n) b.
    """

    loss: Loss
    operator: Operator
    scores: Tensor
    offset: Tensor

    def select(self, problems: Tensor | slice) -> "_State":
        """The problems ``problems`` (indices)."""
        loss, operator = self.loss.select(problems), self.operator.select(problems)
        return _State(loss, operator, self.scores[problems], self.offset[problems])

    def dual(self) -> Tensor:
        """(problem, class, n) c = alpha + w E."""
        weighted_target = self.loss.target * self.loss.weight - self.offset
        return weighted_target.addcmul_(self.operator.weight, self.scores)

    def residual(self, work: Work) -> tuple[Tensor, Tensor, Tensor]:
        """Residual, probabilities, and probabilities times the rows' weights."""
        prob = self.loss.probabilities(self.scores, work.scratch_like("prob", self.scores))
        weighted_prob = work.scratch_like("weighted_prob", prob)
        torch.mul(prob, self.loss.weight, out=weighted_prob)
        residual = torch.sub(self.offset, weighted_prob, out=work.scratch_like("residual", prob))
        return residual, prob, weighted_prob


def solve_mixed(
    batch: Batch,
    tol: float,
    accepted_tol: float,
    iteration_dtype: torch.dtype,
    steps: int,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve the problems that converge without safeguards.

    Args:
        batch: Problems whose factor is a matrix, with scores = Q dual.
        tol: Certificate to reach.
        accepted_tol: Certificate to keep in the metric of the local Hessian. For two classes it is
            bounded by the smallest ratio of curvature to fixed weight.
        iteration_dtype: Type of most products.
        steps: Most steps of either phase.
        work: Counters and scratch memory.

    Returns:
        As ``newton_cg.minimize``. The certificate is infinite for unsolved problems, and for
        several classes it is still in the factor's metric.
    """
    dtype, loss, operator = batch.scores.dtype, batch.loss, batch.operator
    descent_tol = max(tol, FLOAT32_TOL) if iteration_dtype != dtype else tol
    cg_steps, newton_steps = min(steps, LIMITS.steps), min(steps, LIMITS.newton_steps)
    if dispatch.supports_binary(batch):
        limits = replace(LIMITS, steps=cg_steps, newton_steps=newton_steps)
        return dispatch.solve_binary(batch, tol, accepted_tol, iteration_dtype, limits, work)
    weighted_target = loss.target * loss.weight
    fast_state = _State(
        loss.to(iteration_dtype),
        operator.to(iteration_dtype),
        batch.scores.to(iteration_dtype, copy=True),
        (weighted_target - batch.dual).addcmul_(operator.weight, batch.scores).to(iteration_dtype),
    )
    norm2 = _nonlinear_cg(fast_state, descent_tol, cg_steps, work).to(dtype)
    dual = fast_state.dual().to(dtype)
    scores = operator(dual)
    work.count(operator, dual)
    alpha = dual.addcmul_(operator.weight, scores, value=-1)
    if not loss.binary:
        center_classes(alpha)
        center_classes(scores)
    exact_state = _State(loss, operator, scores, torch.sub(weighted_target, alpha, out=alpha))
    return _newton_cg(
        exact_state, fast_state.operator, norm2, tol, accepted_tol, newton_steps, work
    )


def _nonlinear_cg(full_state: _State, tol: float, steps: int, work: Work) -> Tensor:
    """Nonlinear conjugate gradients, in place, until nearly all problems reach ``tol``.

    The slowest problems come first, so a converged tail is cut off without copying.

    Returns:
        (problem,) squared norm of the parameters in the metric of H.
    """
    state, binary = full_state, full_state.loss.binary
    raw_norm2 = inner(state.dual(), state.scores, work)
    # Floor the norm: at an optimum of zero the relative certificate is undefined.
    norm2 = torch.maximum(raw_norm2, 1e-6 * state.operator.weight.mean(1).sum(1))
    goal2 = norm2 * tol**2
    best2, end_slope = torch.full_like(goal2, torch.inf), torch.zeros_like(goal2)
    quadratic_form = slope = step_length = end_slope
    idx, copied = torch.arange(len(goal2), device=goal2.device), False
    active = torch.ones_like(goal2, dtype=torch.bool)
    residual, prob, weighted_prob = state.residual(work)
    for iteration in range(steps):
        operator, scores = state.operator, state.scores
        q_residual = operator(residual, work.scratch_like("q_residual", scores))
        work.count(operator, residual)
        residual2 = inner(residual, q_residual, work)
        if iteration % 2 == 0:
            # Stop each problem at its own rounding floor of float32.
            active = (residual2.abs() > goal2) & (residual2 < 0.8 * best2)
            best2, waiting = residual2, active.nonzero()[:, 0]
            if iteration + 1 >= steps or len(waiting) <= MAX_ACTIVE_FRACTION * len(norm2):
                break
            n_head, keep = int(waiting[-1]) + 1, None
            if n_head <= 0.85 * len(active) and n_head <= 1.5 * len(waiting):
                keep = slice(0, n_head)
            elif len(waiting) <= COMPACT_BELOW * len(active):
                keep = waiting
                for name in ("d_scores", "d_alpha", "hess_d"):
                    scratch = work.scratch_like(name, scores)[keep]
                    work.scratch_like(name, scratch).copy_(scratch)
            if keep is not None:
                if copied:
                    full_state.scores[idx], full_state.offset[idx] = (scores, state.offset)
                copied |= keep is waiting
                state, idx = state.select(keep), idx[keep]
                operator, scores = state.operator, state.scores
                residual, q_residual, residual2 = (
                    residual[keep],
                    q_residual[keep],
                    residual2[keep],
                )
                prob, weighted_prob, goal2 = (prob[keep], weighted_prob[keep], goal2[keep])
                best2, end_slope, active = best2[keep], end_slope[keep], active[keep]
                quadratic_form, slope, step_length = (
                    quadratic_form[keep],
                    slope[keep],
                    step_length[keep],
                )
        # A direction changes the scores by ``d_scores`` and alpha by ``d_alpha``.
        d_scores, d_alpha = (
            work.scratch_like("d_scores", scores),
            work.scratch_like("d_alpha", scores),
        )
        hess_d, new_alpha = (work.scratch_like("hess_d", scores), work.scratch_like("step", scores))
        torch.addcmul(residual, operator.weight, q_residual, value=-1, out=new_alpha)
        if not binary:
            center_classes(new_alpha)
            center_classes(q_residual)
        if iteration == 0:
            d_scores.copy_(q_residual)
            d_alpha.copy_(new_alpha)
            slope = residual2
        else:
            # After a step of length 0 restart from the residual.
            beta = -inner(q_residual, hess_d, work).clamp_(max=0) / quadratic_form
            beta = torch.where(step_length > 0, beta, 0.0)
            slope = residual2 + beta * end_slope
            factor = beta[:, None, None]
            torch.addcmul(q_residual, d_scores, factor, out=d_scores)
            torch.addcmul(new_alpha, d_alpha, factor, out=d_alpha)
        _hess_product(binary, prob, weighted_prob, d_alpha, d_scores, hess_d)
        quadratic_form = inner(d_scores, hess_d, work)
        # Finished problems do not move: their steps would be rounding.
        step_length = torch.where(
            active & (quadratic_form > 0) & (slope > 0), slope / quadratic_form, 0.0
        )
        extra = step_length
        for _ in range(4):
            factor = extra[:, None, None]
            scores.addcmul_(d_scores, factor)
            state.offset.addcmul_(d_alpha, factor, value=-1)
            residual, prob, weighted_prob = state.residual(work)
            end_slope = inner(residual, d_scores, work)
            overshoots = (end_slope < -0.5 * slope) & (step_length > 0)
            if not bool(overshoots.any()):
                break
            # Overshoot: go back to the root of the secant.
            fraction = slope / (slope - end_slope) - 1
            extra = torch.where(overshoots, step_length * fraction, 0.0)
            step_length = step_length + extra
    if copied:
        full_state.scores[idx], full_state.offset[idx] = (state.scores, state.offset)
    return norm2


def _hess_product(
    binary: bool,
    prob: Tensor,
    weighted_prob: Tensor,
    d_alpha: Tensor,
    d_scores: Tensor,
    out: Tensor,
) -> None:
    """``d_alpha`` + (second derivative) ``d_scores``; overwrites ``weighted_prob`` if binary."""
    if binary:
        weighted_prob.addcmul_(weighted_prob, prob, value=-1)
        torch.addcmul(d_alpha, weighted_prob, d_scores, out=out)
        return
    mean = torch.mul(prob, d_scores, out=out).sum(1, keepdim=True)
    torch.addcmul(d_alpha, weighted_prob, d_scores, out=out)
    out.addcmul_(weighted_prob, mean, value=-1)


def _newton_cg(
    state: _State,
    fast: Operator,
    norm2: Tensor,
    tol: float,
    accepted_tol: float,
    newton_steps: int,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton steps on exact residuals, each solved as far as the tolerance needs."""
    operator, binary = state.operator, state.loss.binary
    scores, dual = torch.empty_like(state.scores), torch.empty_like(state.scores)
    certificate = scores.new_full((len(scores),), torch.inf)
    idx = torch.arange(len(scores), device=scores.device)
    fast_dtype, previous = fast.weight.dtype, torch.full_like(norm2, torch.inf)
    fast_loss = state.loss.to(fast_dtype)
    inverse = torch.where(fast.weight > 0, 1 / fast.weight, 0.0)
    inverse = inverse.expand(len(idx), *inverse.shape[1:])
    leverage = fast.leverage().expand(inverse.shape) if binary else inverse
    for iteration in range(newton_steps):
        residual, prob, _ = state.residual(work)
        fast_residual, prob = residual, prob.to(fast_dtype)
        if fast_dtype != residual.dtype:
            fast_residual = work.scratch_like("fast_residual", residual, fast_dtype).copy_(residual)
        if binary:
            excess = fast_loss.curvature(prob, work.scratch_like("excess", prob))
            curvature = Curvature(excess.sub_(fast.weight))
        else:
            curvature = Curvature(fast.weight, prob, fast_loss.weight)
        q_residual = fast(fast_residual, work.scratch_like("q_residual", fast_residual))
        work.count(fast, fast_residual)
        residual2 = inner(fast_residual, q_residual, work)
        now, local = _certificates(
            norm2, inverse, leverage, curvature, fast_residual, residual2, work
        )
        rescored = now
        if binary:
            norm_ratio = _norm_ratio(norm2, curvature.diagonal, fast.weight, state, work)
            local = local * norm_ratio
            # Rounding errors of scores weigh that much more in the local metric.
            rescored = local * norm_ratio.square()
        # Stop at the floor set by rounding.
        done = ((now <= tol) | (now > 0.5 * previous)) & (local <= accepted_tol)
        previous = now
        keep = (~done).nonzero()[:, 0]
        is_last = len(keep) == 0 or iteration + 1 == newton_steps
        if is_last or len(keep) < COMPACT_BELOW * len(idx):
            scores[idx], dual[idx] = state.scores, state.dual()
            certificate[idx] = torch.where(done, torch.maximum(now, local), torch.inf)
            if is_last:
                break
            idx, now, norm2, rescored = (idx[keep], now[keep], norm2[keep], rescored[keep])
            previous = now
            state, fast, fast_loss = (state.select(keep), fast.select(keep), fast_loss.select(keep))
            curvature = curvature.select(keep)
            inverse, leverage = inverse[keep], leverage[keep]
            fast_residual, q_residual, residual2 = (
                fast_residual[keep],
                q_residual[keep],
                residual2[keep],
            )
        forcing = (0.3 * tol / now).clamp(LIMITS.min_forcing, 0.1)
        step, score_step, _ = solve_newton_system(
            fast,
            curvature,
            fast_residual,
            q_residual,
            residual2,
            forcing,
            work,
            max_unsolved=MAX_ACTIVE_FRACTION,
        )
        step.addcmul_(fast.weight, score_step, value=-1)
        if not binary:
            center_classes(step)
            center_classes(score_step)
        state.offset.sub_(step)
        state.scores.add_(score_step)
        if not bool((rescored <= LIMITS.rescore_above).all()):
            # Recompute scores that float32 products have updated.
            dual_now = state.dual()
            operator = state.operator
            recomputed = operator(dual_now)
            work.count(operator, dual_now)
            state.offset.addcmul_(operator.weight, recomputed - state.scores)
            state.scores.copy_(recomputed)
    return scores, dual, certificate


def _norm_ratio(norm2: Tensor, excess: Tensor, fixed: Tensor, state: _State, work: Work) -> Tensor:
    """(problem,) norm of the parameters in the factor's metric over their local norm, >= 1.

    The factor's weights are raised where they are too small to invert, which raises that norm.
    """
    excess = excess.to(norm2)
    local_norm2 = inner(state.dual(), state.scores, work).to(norm2)
    local_norm2 = local_norm2 + (excess * state.scores.square()).sum((1, 2))
    local_norm2 = torch.maximum(local_norm2, 1e-6 * (excess + fixed.to(norm2)).sum((1, 2)))
    return (norm2 / torch.minimum(local_norm2, norm2)).sqrt()


def _certificates(
    norm2: Tensor,
    inverse: Tensor,
    leverage: Tensor,
    curvature: Curvature,
    residual: Tensor,
    residual2: Tensor,
    work: Work,
) -> tuple[Tensor, Tensor]:
    """(problem,) certificates in the factor's metric and bounds in that of the local Hessian.

    Both include the rounding error of a product: if most of a residual cancels, the remainder is
    no certificate. For two classes, the smallest eigenvalue of the local Hessian in units of the
    factor's is at least the smallest ratio of a row's curvature W to its weight w. It is also at
    least 1/2 - sum over rows of max(w / 2 - W, 0) Q_ii, because a matrix is bounded by its trace;
    so rows of little leverage may lose their curvature.
    """
    scratch = work.scratch_like("hess_d", residual)
    noise = 16 * torch.finfo(residual.dtype).eps
    weighted_residual2 = inner(residual, torch.mul(residual, inverse, out=scratch), work)
    residual2 = residual2.abs() + noise * weighted_residual2
    certificate = (residual2.to(norm2) / norm2).sqrt()
    if curvature.probabilities is not None:
        return certificate, certificate
    ratio = torch.mul(curvature.diagonal, inverse, out=scratch)
    min_eigenvalue = 1 + ratio.amin((1, 2))
    # 1/2 - W / w = -1/2 - (W - w) / w, times the leverage w Q_ii.
    deficit = ratio.add_(0.5).neg_().clamp_(min=0)
    min_eigenvalue = torch.maximum(min_eigenvalue, 0.5 - inner(deficit, leverage, work))
    return certificate, certificate / min_eigenvalue.to(certificate).clamp(1e-7, 1).sqrt()
