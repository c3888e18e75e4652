"""A batch of logistic problems: state, residual, squared norms and the safeguarded step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from probes.solvers.objective.factor import Operator
from probes.solvers.objective.loss import Curvature, Loss, center_classes, excess_curvature

MAX_DRIFT = {torch.float64: 1e-9, torch.float32: 3e-5}
"""Largest relative difference between updated scores and recomputed ones."""

LARGE_SCORE_STEP, MAX_LARGE_STEP_OVERSHOOT = 0.5, 0.1
"""Change of scores above which a step is large, and the share of its initial slope by which the
derivative at the end of a large step may have the other sign."""


@dataclass
class Batch:
    """Problems being solved; finished ones are dropped.

    Attributes:
        loss: The objective.
        operator: Q of each problem.
        dual: (problem, class, n) c.
        scores: (problem, class, n) E = Q c.
    """

    loss: Loss
    operator: Operator
    dual: Tensor
    scores: Tensor

    def select(self, problems: Tensor) -> "Batch":
        """The given problems (indices)."""
        return Batch(
            self.loss.select(problems),
            self.operator.select(problems),
            self.dual[problems],
            self.scores[problems],
        )


@dataclass(frozen=True)
class Limits:
    """Iteration limits of the mixed-precision solver.

    Attributes:
        steps: Most steps of nonlinear Jacobi and of nonlinear CG; 0 for Newton-CG only.
        newton_steps: Most Newton steps on exact residuals.
        min_forcing: Smallest relative residual asked of a linear system.
        rescore_above: Certificate above which scores are recomputed after steps with fast products.
    """

    steps: int
    newton_steps: int
    min_forcing: float
    rescore_above: float


@dataclass
class Work:
    """Counters, and scratch memory that outlives one solve.

    Allocation costs more than arithmetic here, because the system hands out blocks of this size
    page by page.

    Attributes:
        products: Single-vector products with Q.
        flops: Floating-point operations in them.
        buffers: Flat scratch tensors by name and type, and their last view.
    """

    products: int = 0
    flops: float = 0.0
    buffers: dict[tuple[str, torch.dtype], tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False
    )

    def scratch_like(self, name: str, reference: Tensor, dtype: torch.dtype | None = None):
        """Scratch tensor shaped like the reference; holds what was last written to this name."""
        dtype, shape = reference.dtype if dtype is None else dtype, reference.shape
        flat, view = self.buffers.get((name, dtype), (None, None))
        if view is not None and view.shape == shape:
            return view
        size = reference.numel()
        if flat is None or flat.numel() < size:
            flat = torch.empty(size, dtype=dtype, device=reference.device)
        view = flat[:size].view(shape)
        self.buffers[name, dtype] = flat, view
        return view

    def count(self, operator: Operator, block: Tensor) -> None:
        """Count one product of Q with ``block``."""
        vectors = block.shape[0] * block.shape[1]
        self.products += vectors
        self.flops += vectors * operator.flops


def inner(left: Tensor, right: Tensor, work: Work) -> Tensor:
    """(problem,) inner product over classes and rows."""
    product = torch.mul(left, right, out=work.scratch_like("product", left))
    return product.sum((1, 2))


def squared_norm(batch: Batch, work: Work) -> Tensor:
    """(problem,) squared norm of the parameters in the metric of H."""
    # Floor the norm: at an optimum of zero the relative certificate is undefined.
    floor = 1e-6 * batch.operator.weight.mean(1).sum(1)
    return torch.maximum(inner(batch.dual, batch.scores, work), floor)


def local_squared_norm(batch: Batch, curvature: Curvature, work: Work) -> Tensor:
    """(problem,) squared norm of the parameters in the metric of the local Hessian."""
    local_dual = curvature.add_to(batch.dual, batch.scores)
    loss = batch.loss
    curvature_sum = loss.curvature(loss.probabilities(batch.scores)).sum((1, 2))
    # Floor the norm: at an optimum of zero the relative certificate is undefined.
    return torch.maximum(inner(local_dual, batch.scores, work), 1e-6 * curvature_sum)


def has_drifted(scores: Tensor, recomputed: Tensor) -> Tensor:
    """(problem,) whether updated scores no longer match the dual values.

    After a large detour, rounding errors stay in the scores, and no certificate computed from them
    can detect this.
    """
    size = recomputed.abs().amax((1, 2)).clamp(min=1e-3)
    return ~((recomputed - scores).abs().amax((1, 2)) <= MAX_DRIFT[scores.dtype] * size)


def centered(batch: Batch) -> Batch:
    """The batch without the class means, which no residual shows.

    With a factor for each class, alpha = c - w E and the scores must be centered, not c.
    """
    weight = batch.operator.weight
    alpha = center_classes(batch.dual - weight * batch.scores)
    scores = center_classes(batch.scores.clone())
    return Batch(batch.loss, batch.operator, alpha + weight * scores, scores)


def residual_and_curvature(batch: Batch, work: Work) -> tuple[Tensor, Curvature]:
    """Residual and curvature at the batch's scores, in scratch tensors.

    With several classes the class mean of the residual is subtracted: a softmax does not depend on
    it, so it is rounding.
    """
    scores = batch.scores
    prob = batch.loss.probabilities(scores, work.scratch_like("prob", scores))
    residual = batch.loss.neg_gradient(prob, work.scratch_like("residual", scores))
    residual.sub_(batch.dual)
    residual.addcmul_(batch.operator.weight, batch.scores)
    if not batch.loss.binary:
        center_classes(residual)
    fixed = batch.operator.weight
    excess = work.scratch_like("excess", scores)
    return residual, excess_curvature(batch.loss, prob, fixed, excess)


def take_safeguarded_step(
    batch: Batch, work: Work, d_dual: Tensor, d_scores: Tensor, first_slope: Tensor
) -> tuple[Tensor, Curvature]:
    """Take the step, shortened where it overshoots; return the new residual and curvature.

    Only the slope along the step decides. At the end it may have the other sign by at most half its
    initial size, else its root is bracketed. For a step that changes the scores by much the limit
    is ``MAX_LARGE_STEP_OVERSHOOT``, because beyond the root the slope may stay flat. Objective
    values are never compared, so their rounding near the optimum does not matter.
    """
    dtype = batch.scores.dtype
    if d_scores.dtype != dtype:
        d_dual = work.scratch_like("step", d_dual, dtype).copy_(d_dual)
        d_scores = work.scratch_like("score_move", d_scores, dtype).copy_(d_scores)
    if not batch.loss.binary:
        # Subtract class means from alpha = c - w E and from the scores.
        weight = batch.operator.weight
        d_dual.addcmul_(weight, d_scores, value=-1)
        center_classes(d_dual)
        center_classes(d_scores)
        d_dual.addcmul_(weight, d_scores)
    batch.dual += d_dual
    batch.scores += d_scores
    residual, curvature = residual_and_curvature(batch, work)
    first_slope = first_slope.to(dtype)
    end_slope = inner(residual, d_scores, work)
    overshoots = ~(end_slope >= -MAX_LARGE_STEP_OVERSHOOT * first_slope)
    if not bool(overshoots.any()):
        return residual, curvature
    is_large = d_scores.abs().amax((1, 2)) > LARGE_SCORE_STEP
    overshoots &= is_large | ~(end_slope >= -0.5 * first_slope)
    if not bool(overshoots.any()):
        return residual, curvature
    idx = overshoots.nonzero()[:, 0]
    sub_batch = batch.select(idx)
    sub_dual, sub_scores, first_slope = d_dual[idx], d_scores[idx], first_slope[idx]
    min_slope = torch.where(is_large[idx], 0.0, -0.5 * first_slope)
    length = torch.ones_like(first_slope)
    low, high = torch.zeros_like(first_slope), length
    low_slope, high_slope = first_slope, end_slope[idx]
    for trial in range(40):
        # The slope decreases along the step: bracket its root by secant and bisection.
        fraction = low_slope / (low_slope - high_slope) if trial % 2 == 0 else length * 0 + 0.5
        fraction = torch.nan_to_num(fraction, nan=0.5).clamp(0.1, 0.9)
        new_length = low + fraction * (high - low)
        slope = torch.where(length == high, high_slope, low_slope)
        settled = (slope >= min_slope) & (slope <= 0.5 * first_slope)
        new_length = torch.where(settled & (trial > 0), length, new_length)
        change = (new_length - length)[:, None, None]
        sub_batch.dual += change * sub_dual
        sub_batch.scores += change * sub_scores
        length = new_length
        slope = inner(residual_and_curvature(sub_batch, work)[0], sub_scores, work)
        descends = slope >= 0
        low, low_slope = (
            torch.where(descends, length, low),
            torch.where(descends, slope, low_slope),
        )
        high, high_slope = (
            torch.where(descends, high, length),
            torch.where(descends, high_slope, slope),
        )
        if bool(((slope >= min_slope) & (slope <= 0.5 * first_slope)).all()):
            break
    batch.dual[idx], batch.scores[idx] = sub_batch.dual, sub_batch.scores
    return residual_and_curvature(batch, work)
