"""Logistic problems in the making: their state, residual and safeguarded step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from probes.solvers.factor import Operator
from probes.solvers.loss import Curvature, Loss, centre_classes, excess_curvature

DRIFT = {torch.float64: 1e-9, torch.float32: 3e-5}
"""Largest relative difference between scores carried along and scores computed."""

CALM, SLIGHT = 0.5, 0.1
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

    def select(self, keep: Tensor) -> "Batch":
        """The problems ``keep`` (indices)."""
        return Batch(
            self.loss.select(keep),
            self.operator.select(keep),
            self.dual[keep],
            self.scores[keep],
        )


@dataclass(frozen=True)
class Limits:
    """How far the short way to an optimum goes.

    Attributes:
        steps: Steps down, at most; with none, no more than to polish.
        turns: Linear systems on exact residuals, at most.
        finest: Least share of a residual that is asked to be left.
        near: Certificate from which on steps in the type of most products move scores
            without harm.
    """

    steps: int
    turns: int
    finest: float
    near: float


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

    def like(self, name: str, other: Tensor, dtype: torch.dtype | None = None):
        """A scratch tensor of ``other``'s shape; holds what was last written."""
        dtype, shape = other.dtype if dtype is None else dtype, other.shape
        flat, seen = self.buffers.get((name, dtype), (None, None))
        if seen is not None and seen.shape == shape:
            return seen
        size = other.numel()
        if flat is None or flat.numel() < size:
            flat = torch.empty(size, dtype=dtype, device=other.device)
        seen = flat[:size].view(shape)
        self.buffers[name, dtype] = flat, seen
        return seen

    def count(self, operator: Operator, batch: Tensor) -> None:
        """Add one product of Q with ``batch``."""
        vectors = batch.shape[0] * batch.shape[1]
        self.products += vectors
        self.flops += vectors * operator.flops


def inner(left: Tensor, right: Tensor, work: Work) -> Tensor:
    """(problem,) sum of products over classes and rows."""
    product = torch.mul(left, right, out=work.like("product", left))
    return product.sum((1, 2))


def size_of(batch: Batch, work: Work) -> Tensor:
    """(problem,) squared norm of the parameters in the metric of H."""
    # Scores of a thousandth count as nothing: optima at zero have no scale.
    floor = 1e-6 * batch.operator.weight.mean(1).sum(1)
    return torch.maximum(inner(batch.dual, batch.scores, work), floor)


def own_size(batch: Batch, curvature: Curvature, work: Work) -> Tensor:
    """(problem,) squared norm of the parameters in the metric of their own Hessian."""
    bent = curvature.add_to(batch.dual, batch.scores)
    loss = batch.loss
    weight = loss.curvature(loss.probabilities(batch.scores)).sum((1, 2))
    # Scores of a thousandth count as nothing: optima at zero have no scale.
    return torch.maximum(inner(bent, batch.scores, work), 1e-6 * weight)


def strayed(scores: Tensor, fresh: Tensor) -> Tensor:
    """(problem,) whether scores carried along are no longer those of the dual values.

    Where steps went far astray and came back, what they lost to rounding stays in the
    scores, and no certificate made of them can see it.
    """
    scale = fresh.abs().amax((1, 2)).clamp(min=1e-3)
    return ~((fresh - scores).abs().amax((1, 2)) <= DRIFT[scores.dtype] * scale)


def centred(batch: Batch) -> Batch:
    """The batch without what all classes share, which no residual would show.

    A factor for each class mixes classes: alpha = c - w E and the scores have to be
    centred, not c.
    """
    weight = batch.operator.weight
    alpha = centre_classes(batch.dual - weight * batch.scores)
    scores = centre_classes(batch.scores.clone())
    return Batch(batch.loss, batch.operator, alpha + weight * scores, scores)


def residual_of(batch: Batch, work: Work) -> tuple[Tensor, Curvature]:
    """Residual and curvature at the batch's scores, in scratch tensors.

    With several classes what they share is taken out of the residual: a softmax does
    not feel it, so that it is rounding.
    """
    scores = batch.scores
    probabilities = batch.loss.probabilities(scores, work.like("chance", scores))
    residual = batch.loss.pull(probabilities, work.like("residual", scores))
    residual.sub_(batch.dual)
    residual.addcmul_(batch.operator.weight, batch.scores)
    if not batch.loss.binary:
        centre_classes(residual)
    fixed = batch.operator.weight
    bend = work.like("bend", scores)
    return residual, excess_curvature(batch.loss, probabilities, fixed, bend)


def advance(
    batch: Batch, work: Work, direction: Tensor, lift: Tensor, first: Tensor
) -> tuple[Tensor, Curvature]:
    """Move the batch along the step, shortened where it overshoots; new residual.

    The derivative along the step decides: it may turn positive by at most half its
    first size, else its root is bracketed. A step that moves scores far may not turn
    it at all there, for beyond the root it may stay as it is all the way up. Values are
    never compared, so rounding near the optimum does not matter.
    """
    dtype = batch.scores.dtype
    if lift.dtype != dtype:
        direction = work.like("step", direction, dtype).copy_(direction)
        lift = work.like("move", lift, dtype).copy_(lift)
    if not batch.loss.binary:
        # What all classes share is taken out of alpha = c - w E and of the scores.
        weight = batch.operator.weight
        direction.addcmul_(weight, lift, value=-1)
        centre_classes(direction)
        centre_classes(lift)
        direction.addcmul_(weight, lift)
    batch.dual += direction
    batch.scores += lift
    residual, curvature = residual_of(batch, work)
    first = first.to(dtype)
    last = inner(residual, lift, work)
    wrong = ~(last >= -SLIGHT * first)
    if not bool(wrong.any()):
        return residual, curvature
    far = lift.abs().amax((1, 2)) > CALM
    wrong &= far | ~(last >= -0.5 * first)
    if not bool(wrong.any()):
        return residual, curvature
    index = wrong.nonzero()[:, 0]
    part = batch.select(index)
    step, move, first = direction[index], lift[index], first[index]
    least = torch.where(far[index], 0.0, -0.5 * first)
    taken = torch.ones_like(first)
    low, high = torch.zeros_like(first), taken
    low_slope, high_slope = first, last[index]
    for turn in range(40):
        # The slope falls along the step: close in on its root from both sides.
        cut = low_slope / (low_slope - high_slope) if turn % 2 == 0 else taken * 0 + 0.5
        cut = torch.nan_to_num(cut, nan=0.5).clamp(0.1, 0.9)
        wanted = low + cut * (high - low)
        slope = torch.where(taken == high, high_slope, low_slope)
        settled = (slope >= least) & (slope <= 0.5 * first)
        wanted = torch.where(settled & (turn > 0), taken, wanted)
        change = (wanted - taken)[:, None, None]
        part.dual += change * step
        part.scores += change * move
        taken = wanted
        slope = inner(residual_of(part, work)[0], move, work)
        down = slope >= 0
        low, low_slope = (
            torch.where(down, taken, low),
            torch.where(down, slope, low_slope),
        )
        high, high_slope = (
            torch.where(down, high, taken),
            torch.where(down, high_slope, slope),
        )
        if bool(((slope >= least) & (slope <= 0.5 * first)).all()):
            break
    batch.dual[index], batch.scores[index] = part.dual, part.scores
    return residual_of(batch, work)
