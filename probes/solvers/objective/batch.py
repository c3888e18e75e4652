"""Logistic problems in the making: their state, residual and safeguarded step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from probes.solvers.objective.factor import Operator
from probes.solvers.objective.loss import (
    Curvature,
    Loss,
    center_classes,
    excess_curvature,
)

MAX_DRIFT = {torch.float64: 1e-9, torch.float32: 3e-5}
"""Largest relative difference between scores carried along and scores computed."""

LARGE_SCORE_STEP, MAX_LARGE_STEP_OVERSHOOT = 0.5, 0.1
"""Change of scores from which on a step is far, and share of its first size by which
the derivative may turn positive at its end then."""


@dataclass
class Batch:
    """Problems being solved; replaced as they finish.

    Attributes:
        dual: (problem, class, n) c.
        scores: (problem, class, n) E = Q c.
    """

    loss: Loss
    operator: Operator
    dual: Tensor
    scores: Tensor

    def select(self, problems: Tensor) -> "Batch":
        """The problems ``problems`` (indices)."""
        return Batch(
            self.loss.select(problems),
            self.operator.select(problems),
            self.dual[problems],
            self.scores[problems],
        )


@dataclass(frozen=True)
class Limits:
    """How far the short way to an optimum goes.

    Attributes:
        steps: Steps down, at most; with none, no more than to polish.
        newton_steps: Linear systems on exact residuals, at most.
        min_forcing: Least share of a residual that is asked to be left.
        rescore_above: Certificate from which on steps in the type of most products move
            scores without harm.
    """

    steps: int
    newton_steps: int
    min_forcing: float
    rescore_above: float


@dataclass
class Work:
    """What was spent, and buffers that outlive one solve.

    Allocation costs more than arithmetic here: blocks of this size come from the
    system page by page.

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

    def scratch_like(
        self, name: str, reference: Tensor, dtype: torch.dtype | None = None
    ):
        """A scratch tensor of ``reference``'s shape; holds what was last written."""
        dtype, shape = reference.dtype if dtype is None else dtype, reference.shape
        flat, seen = self.buffers.get((name, dtype), (None, None))
        if seen is not None and seen.shape == shape:
            return seen
        size = reference.numel()
        if flat is None or flat.numel() < size:
            flat = torch.empty(size, dtype=dtype, device=reference.device)
        seen = flat[:size].view(shape)
        self.buffers[name, dtype] = flat, seen
        return seen

    def count(self, operator: Operator, block: Tensor) -> None:
        """Add one product of Q with ``block``."""
        vectors = block.shape[0] * block.shape[1]
        self.products += vectors
        self.flops += vectors * operator.flops


def inner(left: Tensor, right: Tensor, work: Work) -> Tensor:
    """(problem,) sum of products over classes and rows."""
    product = torch.mul(left, right, out=work.scratch_like("product", left))
    return product.sum((1, 2))


def squared_norm(batch: Batch, work: Work) -> Tensor:
    """(problem,) squared norm of the parameters in the metric of H."""
    # Scores of a thousandth count as nothing: optima at zero have no scale.
    floor = 1e-6 * batch.operator.weight.mean(1).sum(1)
    return torch.maximum(inner(batch.dual, batch.scores, work), floor)


def local_squared_norm(batch: Batch, curvature: Curvature, work: Work) -> Tensor:
    """(problem,) squared norm of the parameters in the metric of their own Hessian."""
    bent = curvature.add_to(batch.dual, batch.scores)
    loss = batch.loss
    weight = loss.curvature(loss.probabilities(batch.scores)).sum((1, 2))
    # Scores of a thousandth count as nothing: optima at zero have no scale.
    return torch.maximum(inner(bent, batch.scores, work), 1e-6 * weight)


def has_drifted(scores: Tensor, recomputed: Tensor) -> Tensor:
    """(problem,) whether scores carried along are no longer those of the dual values.

    Where steps went far astray and came back, what they lost to rounding stays in the
    scores, and no certificate made of them can see it.
    """
    scale = recomputed.abs().amax((1, 2)).clamp(min=1e-3)
    return ~(
        (recomputed - scores).abs().amax((1, 2)) <= MAX_DRIFT[scores.dtype] * scale
    )


def centered(batch: Batch) -> Batch:
    """The batch without what all classes share, which no residual would show.

    A factor for each class mixes classes: alpha = c - w E and the scores have to be
    centred, not c.
    """
    weight = batch.operator.weight
    alpha = center_classes(batch.dual - weight * batch.scores)
    scores = center_classes(batch.scores.clone())
    return Batch(batch.loss, batch.operator, alpha + weight * scores, scores)


def residual_and_curvature(batch: Batch, work: Work) -> tuple[Tensor, Curvature]:
    """Residual and curvature at the batch's scores, in scratch tensors.

    With several classes what they share is taken out of the residual: a softmax does
    not feel it, so that it is rounding.
    """
    scores = batch.scores
    probabilities = batch.loss.probabilities(
        scores, work.scratch_like("chance", scores)
    )
    residual = batch.loss.neg_gradient(
        probabilities, work.scratch_like("residual", scores)
    )
    residual.sub_(batch.dual)
    residual.addcmul_(batch.operator.weight, batch.scores)
    if not batch.loss.binary:
        center_classes(residual)
    fixed = batch.operator.weight
    bend = work.scratch_like("bend", scores)
    return residual, excess_curvature(batch.loss, probabilities, fixed, bend)


def take_safeguarded_step(
    batch: Batch, work: Work, d_dual: Tensor, d_scores: Tensor, first_slope: Tensor
) -> tuple[Tensor, Curvature]:
    """Move the batch along the step, shortened where it overshoots; new residual.

    The derivative along the step decides: it may turn positive by at most half its
    first size, else its root is bracketed. A step that moves scores far may not turn
    it at all there, for beyond the root it may stay as it is all the way up. Values are
    never compared, so rounding near the optimum does not matter.
    """
    dtype = batch.scores.dtype
    if d_scores.dtype != dtype:
        d_dual = work.scratch_like("step", d_dual, dtype).copy_(d_dual)
        d_scores = work.scratch_like("move", d_scores, dtype).copy_(d_scores)
    if not batch.loss.binary:
        # What all classes share is taken out of alpha = c - w E and of the scores.
        weight = batch.operator.weight
        d_dual.addcmul_(weight, d_scores, value=-1)
        center_classes(d_dual)
        center_classes(d_scores)
        d_dual.addcmul_(weight, d_scores)
    batch.dual += d_dual
    batch.scores += d_scores
    residual, curvature = residual_and_curvature(batch, work)
    first_slope = first_slope.to(dtype)
    last = inner(residual, d_scores, work)
    wrong = ~(last >= -MAX_LARGE_STEP_OVERSHOOT * first_slope)
    if not bool(wrong.any()):
        return residual, curvature
    far = d_scores.abs().amax((1, 2)) > LARGE_SCORE_STEP
    wrong &= far | ~(last >= -0.5 * first_slope)
    if not bool(wrong.any()):
        return residual, curvature
    index = wrong.nonzero()[:, 0]
    part = batch.select(index)
    step, move, first_slope = d_dual[index], d_scores[index], first_slope[index]
    least = torch.where(far[index], 0.0, -0.5 * first_slope)
    taken = torch.ones_like(first_slope)
    low, high = torch.zeros_like(first_slope), taken
    low_slope, high_slope = first_slope, last[index]
    for turn in range(40):
        # The slope falls along the step: close in on its root from both sides.
        cut = low_slope / (low_slope - high_slope) if turn % 2 == 0 else taken * 0 + 0.5
        cut = torch.nan_to_num(cut, nan=0.5).clamp(0.1, 0.9)
        wanted = low + cut * (high - low)
        slope = torch.where(taken == high, high_slope, low_slope)
        settled = (slope >= least) & (slope <= 0.5 * first_slope)
        wanted = torch.where(settled & (turn > 0), taken, wanted)
        change = (wanted - taken)[:, None, None]
        part.dual += change * step
        part.scores += change * move
        taken = wanted
        slope = inner(residual_and_curvature(part, work)[0], move, work)
        down = slope >= 0
        low, low_slope = (
            torch.where(down, taken, low),
            torch.where(down, slope, low_slope),
        )
        high, high_slope = (
            torch.where(down, high, taken),
            torch.where(down, high_slope, slope),
        )
        if bool(((slope >= least) & (slope <= 0.5 * first_slope)).all()):
            break
    batch.dual[index], batch.scores[index] = part.dual, part.scores
    return residual_and_curvature(batch, work)
