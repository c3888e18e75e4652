"""Safeguarded Newton-CG for many logistic problems that share one factor.

Each problem minimises 0.5 ||W||^2 + sum_i s_i loss(y_i, x_i W + b), scikit-learn's
objective with C inside the weights s and the intercept b not penalised. The problems
of a batch share the rows X and a factor Q = A H^-1 A' (see ``probes.operators``); they
differ in labels and in row weights, so folds, permutations, control labels and seeds
are only different members of a batch. With parameters written as H^-1 A' c the scores
are E = Q c, the gradient is -A' r with r = a - c + w E (a the pull of the loss on the
scores, w the fixed weights), and a Newton step solves

    (I + (W - w) Q) u = r     by conjugate gradients in the inner product u' Q v,

one product with Q an iteration for all problems and classes at once. r' Q r is the
squared gradient in the metric of H^-1: the distance to the optimum to first order in
the metric of H, and hence the certificate every problem gets.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from probes.losses import Curvature, Loss, centre_classes, excess_curvature
from probes.operators import Operator

ACCEPTED = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest certificate of a solved problem, by the type of the answer."""
TARGET = {torch.float64: 1e-9, torch.float32: 5e-6}
SMALL = 300
"""Up to so many classes x rows one problem is solved by elimination."""
LARGEST = 3000
"""Above so many classes x rows elimination is no way out: the certificate tells."""
HANDOVER = 1e-4
"""Certificate at which float64 solves leave the float32 accelerated stage."""


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


@dataclass
class Work:
    """What was spent, and buffers that outlive one solve.

    Allocation costs more than arithmetic here: blocks of this size come from the
    system page by page.

    Attributes:
        products: Single-vector products with Q.
        flops: Floating-point operations in them.
        buffers: Flat scratch tensors by name and type.
    """

    products: int = 0
    flops: float = 0.0
    buffers: dict[tuple[str, torch.dtype], Tensor] = field(
        default_factory=dict, repr=False
    )

    def like(self, name: str, other: Tensor, dtype: torch.dtype | None = None):
        """A scratch tensor of ``other``'s shape; holds what was last written."""
        dtype = other.dtype if dtype is None else dtype
        flat = self.buffers.get((name, dtype))
        if flat is None or flat.numel() < other.numel():
            flat = torch.empty(other.numel(), dtype=dtype, device=other.device)
            self.buffers[name, dtype] = flat
        return flat[: other.numel()].view(other.shape)

    def count(self, operator: Operator, batch: Tensor) -> None:
        """Add one product of Q with ``batch``."""
        vectors = batch.shape[0] * batch.shape[1]
        self.products += vectors
        self.flops += vectors * operator.flops


def inner(left: Tensor, right: Tensor) -> Tensor:
    """(problem,) sum of products over classes and rows."""
    if left.shape[1] == 1:
        return torch.linalg.vecdot(left[:, 0], right[:, 0])
    return torch.linalg.vecdot(left.flatten(1), right.flatten(1))


def minimise(
    batch: Batch,
    *,
    target: float | None = None,
    iterations: torch.dtype | None = None,
    steps: int = 60,
    work: Work | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve every problem of ``batch``.

    Args:
        batch: Problems with a starting point for which scores = Q dual.
        target: Certificate to reach; the type's ``TARGET`` by default.
        iterations: Type of the inner products; float32 inside a float64 solve halves
            the cost and leaves the answer's accuracy, for the outer residual and the
            last products are float64.
        steps: Newton steps before giving up.
        work: Where to count the work.

    Returns:
        (problem, class, n) scores and dual values c at the optimum, and the
        (problem,) certificate: gradient norm in the metric of H^-1 over the norm of
        the parameters in H. Problems not solved have one above ``ACCEPTED``.
    """
    dtype = batch.scores.dtype
    target = TARGET[dtype] if target is None else target
    iterations = dtype if iterations is None else iterations
    work = Work() if work is None else work
    size = batch.scores[0].numel()
    if size <= SMALL and len(batch.scores) * size**3 <= SMALL**3:
        return _direct(batch, target)
    if iterations != dtype:
        rough = max(target, HANDOVER)
        scores, dual, certificate = _stage(batch, rough, iterations, steps, work)
        if target < HANDOVER:
            # Scores were moved by float32 products; make them exact again.
            scores = batch.operator(dual)
            work.count(batch.operator, dual)
            batch = Batch(batch.loss, batch.operator, dual, scores)
        else:
            return scores, dual, certificate
    scores, dual, certificate = _stage(batch, target, iterations, steps, work)
    for problem in (
        (~(certificate <= max(target, ACCEPTED[dtype]))).nonzero()[:, 0].tolist()
    ):
        one = torch.tensor([problem], device=scores.device)
        scores[one], dual[one], certificate[one] = _direct(batch.select(one), target)
    return scores, dual, certificate


def _stage(
    batch: Batch, target: float, iterations: torch.dtype, steps: int, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    scores, dual = torch.empty_like(batch.scores), torch.empty_like(batch.dual)
    count = len(scores)
    certificate = scores.new_full((count,), torch.inf)
    # Which problem each member is; -1 once its answer is stored.
    place = torch.arange(count, device=scores.device)
    best, stalled = certificate.clone(), torch.zeros_like(certificate)
    fast = batch.operator.to(iterations)
    finest = 1e-3 if iterations == torch.float32 else 1e-7
    residual, curvature = _residual(batch, work)
    for step in range(steps + 1):
        rough = residual
        if iterations != residual.dtype:
            rough = work.like("rough", residual, iterations).copy_(residual)
        pulled = fast(rough, work.like("pulled", rough))
        work.count(fast, rough)
        size = _size(batch)
        square = inner(rough, pulled).clamp(min=0)
        now = (square.to(size.dtype) / size).sqrt()
        now = torch.nan_to_num(now, nan=torch.inf)
        # Rounding sets a floor: stop where steps no longer help.
        stalled = torch.where(now < 0.5 * best, 0.0, stalled + 1)
        best = torch.minimum(best, now)
        done = (now <= target) | (stalled >= 12) | (now > 1e4 * best)
        done |= (stalled >= 3) & (now <= ACCEPTED[batch.scores.dtype])
        done |= step == steps
        new = done & (place >= 0)
        if bool(new.any()):
            out = place[new]
            scores[out], dual[out] = batch.scores[new], batch.dual[new]
            certificate[out] = now[new]
            place = torch.where(new, -1, place)
        live = place >= 0
        left = int(live.sum())
        if left == 0:
            break
        if left < 0.9 * len(place):
            keep = live.nonzero()[:, 0]
            place, batch, fast = place[keep], batch.select(keep), fast.select(keep)
            best, stalled = best[keep], stalled[keep]
            rough, pulled = rough[keep], pulled[keep]
            now, square = now[keep], square[keep]
            curvature = curvature.select(keep)
        forcing = torch.maximum(now.clamp(max=0.1), 0.3 * target / now)
        forcing = forcing.clamp(min=finest)
        residual, curvature = _advance(
            batch,
            work,
            *_conjugate(fast, curvature, rough, pulled, square, forcing, work),
        )
    return scores, dual, certificate


def _size(batch: Batch) -> Tensor:
    """(problem,) squared norm of the parameters in the metric of H."""
    # Scores of a thousandth count as nothing: optima at zero have no scale.
    floor = 1e-6 * batch.operator.weight.sum((1, 2))
    return torch.maximum(inner(batch.dual, batch.scores), floor)


def _direct(
    batch: Batch, target: float, steps: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton steps by elimination, for few small problems and for the stiffest.

    Costs (classes x n)^3 a problem and step, whatever the weights' range.
    """
    dtype = batch.scores.dtype
    batch = Batch(
        batch.loss.to(torch.float64),
        batch.operator.to(torch.float64),
        batch.dual.double(),
        batch.scores.double(),
    )
    count, _, n = batch.scores.shape
    eye = torch.eye(n, dtype=torch.float64, device=batch.scores.device)
    members = count if batch.operator.removal is not None else 1
    product = batch.operator(eye.expand(members, n, n).contiguous())
    # Where CG went astray its point is no start.
    batch.dual = torch.zeros_like(batch.dual)
    batch.scores = torch.zeros_like(batch.scores)
    best = batch.scores.new_full((count,), torch.inf)
    answer = batch.scores.clone(), batch.dual.clone()
    stalled = torch.zeros_like(best)
    work = Work()
    residual, curvature = _residual(batch, work)
    for _ in range(steps):
        now = (inner(residual, residual @ product).clamp(min=0) / _size(batch)).sqrt()
        better = now < best
        stalled = torch.where(now < 0.5 * best, 0.0, stalled + 1)
        best = torch.where(better, now, best)
        answer[0][better], answer[1][better] = batch.scores[better], batch.dual[better]
        if bool(((best <= target) | (stalled >= 25)).all()):
            break
        if batch.loss.binary:
            system = eye + curvature.diagonal.transpose(1, 2) * product
        else:
            system = _class_system(curvature, product, eye)
        flat = residual.flatten(1)[:, :, None]
        step = torch.linalg.solve(system, flat).view_as(residual)
        lift = step @ product
        slope = inner(residual, lift)
        residual, curvature = _advance(batch, work, step, lift, slope)
    return answer[0].to(dtype), answer[1].to(dtype), best


def _class_system(curvature: Curvature, product: Tensor, eye: Tensor) -> Tensor:
    """(problem, class x n, class x n) Newton system of softmax problems."""
    chance, weight = curvature.probabilities, curvature.weight
    assert chance is not None and weight is not None
    count, classes, n = chance.shape
    bend = -chance[:, :, None] * chance[:, None]
    bend.diagonal(dim1=1, dim2=2).add_(chance.transpose(1, 2))
    bend = bend * weight[:, None]
    bend.diagonal(dim1=1, dim2=2).add_(curvature.diagonal.transpose(1, 2))
    # (problem, class, row, other class, other row)
    system = bend.transpose(2, 3)[..., None] * product[:, None, :, None, :]
    same = torch.eye(classes, dtype=eye.dtype, device=eye.device)
    system += same[None, :, None, :, None] * eye[None, None, :, None, :]
    # The shift all classes share is held by nothing: give it unit stiffness.
    system -= system.mean(1, keepdim=True)
    system += eye[None, None, :, None, :] / classes
    return system.reshape(count, classes * n, classes * n)


def _residual(batch: Batch, work: Work) -> tuple[Tensor, Curvature]:
    """Residual and curvature at the batch's scores, in scratch tensors."""
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


def _conjugate(
    operator: Operator,
    curvature: Curvature,
    residual: Tensor,
    pulled: Tensor,
    square: Tensor,
    forcing: Tensor,
    work: Work,
    limit: int = 100,
) -> tuple[Tensor, Tensor, Tensor]:
    """CG for (I + (W - w) Q) u = residual.

    Stops when most problems reached their forcing term: the others lose nothing, as
    the next Newton step goes on from where they are.

    Returns:
        u, Q u, and the (problem,) slope of the objective along u, sign turned.
    """
    curvature = curvature.to(residual.dtype)
    start = residual
    residual = work.like("left", start).copy_(start)
    search = work.like("search", start).copy_(start)
    ahead = work.like("ahead", start).copy_(pulled)
    lift = work.like("lift", start).zero_()
    image = work.like("image", start)
    pulled = work.like("pulled", start)
    goal = square * forcing.to(square.dtype) ** 2
    first = square
    for iteration in range(limit):
        curvature.add_to(search, ahead, image)
        bend = inner(ahead, image)
        length = torch.where(bend > 0, square / bend, 0.0)[:, None, None]
        lift.addcmul_(length, ahead)
        residual.addcmul_(length, image, value=-1)
        operator(residual, pulled)
        work.count(operator, residual)
        fresh = inner(residual, pulled).clamp_(min=0)
        # Growth is rounding, not progress: the system is too stiff for this type.
        if iteration + 1 == limit or bool((fresh > 1e4 * first).any()):
            break
        if int((fresh > goal).sum()) <= 0.3 * len(goal):
            break
        ratio = torch.where(square > 0, fresh / square, 0.0)[:, None, None]
        search.mul_(ratio).add_(residual)
        torch.addcmul(pulled, ratio, ahead, out=ahead)
        square = fresh
    # What CG has solved for so far: u = start - residual - (W - w) Q u.
    curvature.add_to(residual, lift, image)
    return torch.sub(start, image, out=image), lift, inner(start, lift)


def _advance(
    batch: Batch, work: Work, direction: Tensor, lift: Tensor, first: Tensor
) -> tuple[Tensor, Curvature]:
    """Move the batch along the step, shortened where it overshoots; new residual.

    The derivative along the step decides: it may turn positive by at most half its
    first size, else its root is bracketed. Values are never compared, so rounding
    near the optimum does not matter.
    """
    dtype = batch.scores.dtype
    if lift.dtype != dtype:
        direction = work.like("step", direction, dtype).copy_(direction)
        lift = work.like("move", lift, dtype).copy_(lift)
    if not batch.loss.binary:
        direction, lift = centre_classes(direction), centre_classes(lift)
    batch.dual += direction
    batch.scores += lift
    residual, curvature = _residual(batch, work)
    first = first.to(dtype)
    last = inner(residual, lift)
    wrong = ~(last >= -0.5 * first)
    if not bool(wrong.any()):
        return residual, curvature
    index = wrong.nonzero()[:, 0]
    part = batch.select(index)
    step, move, first = direction[index], lift[index], first[index]
    taken = torch.ones_like(first)
    low, high = torch.zeros_like(first), taken
    low_slope, high_slope = first, last[index]
    for turn in range(40):
        # The slope falls along the step: close in on its root from both sides.
        cut = low_slope / (low_slope - high_slope) if turn % 2 == 0 else taken * 0 + 0.5
        cut = torch.nan_to_num(cut, nan=0.5).clamp(0.1, 0.9)
        wanted = low + cut * (high - low)
        slope = torch.where(taken == high, high_slope, low_slope)
        settled = slope.abs() <= 0.5 * first
        wanted = torch.where(settled & (turn > 0), taken, wanted)
        change = (wanted - taken)[:, None, None]
        part.dual += change * step
        part.scores += change * move
        taken = wanted
        slope = inner(_residual(part, work)[0], move)
        down = slope >= 0
        low, low_slope = (
            torch.where(down, taken, low),
            torch.where(down, slope, low_slope),
        )
        high, high_slope = (
            torch.where(down, high, taken),
            torch.where(down, high_slope, slope),
        )
        if bool((slope.abs() <= 0.5 * first).all()):
            break
    batch.dual[index], batch.scores[index] = part.dual, part.scores
    return _residual(batch, work)
