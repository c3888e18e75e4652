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

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.losses import Curvature, Loss, centre_classes, excess_curvature
from probes.operators import Operator

ACCEPTED = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest certificate of a solved problem, by the type of the answer."""
TARGET = {torch.float64: 2e-10, torch.float32: 5e-6}
SMALL = 300
"""A lone problem of so few classes x rows is solved by elimination."""
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
    """What was spent: products counts single-vector products with Q."""

    products: int = 0
    flops: float = 0.0

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
    if len(batch.scores) == 1 and batch.scores[0].numel() <= SMALL:
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
    for problem in (~(certificate <= ACCEPTED[dtype])).nonzero()[:, 0].tolist():
        one = torch.tensor([problem], device=scores.device)
        scores[one], dual[one], certificate[one] = _direct(batch.select(one), target)
    return scores, dual, certificate


def _stage(
    batch: Batch, target: float, iterations: torch.dtype, steps: int, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    scores, dual = torch.empty_like(batch.scores), torch.empty_like(batch.dual)
    count = len(scores)
    certificate = scores.new_full((count,), torch.inf)
    open_ = torch.arange(count, device=scores.device)
    best, stalled = certificate.clone(), torch.zeros(count, device=scores.device)
    fast = batch.operator.to(iterations)
    finest = 1e-3 if iterations == torch.float32 else 1e-7
    residual, curvature = _residual(batch)
    for step in range(steps + 1):
        rough = residual.to(iterations)
        pulled = fast(rough)
        work.count(fast, rough)
        # Scores of a thousandth count as nothing: optima at zero have no scale.
        size = inner(batch.dual, batch.scores)
        size = torch.maximum(size, 1e-6 * batch.operator.weight.sum((1, 2)))
        square = inner(rough, pulled).clamp(min=0)
        now = (square.to(size.dtype) / size).sqrt()
        now = torch.nan_to_num(now, nan=torch.inf)
        # Rounding sets a floor: stop where steps no longer help.
        better = now < 0.5 * best[open_]
        stalled[open_] = torch.where(better, 0.0, stalled[open_] + 1)
        best[open_] = torch.minimum(best[open_], now)
        floor = (stalled[open_] >= 3) & (now <= ACCEPTED[batch.scores.dtype])
        lost = (stalled[open_] >= 12) | (now > 1e4 * best[open_])
        done = (now <= target) | floor | lost
        done |= step == steps
        if bool(done.any()):
            out = open_[done]
            scores[out], dual[out] = batch.scores[done], batch.dual[done]
            certificate[out] = now[done]
            keep = (~done).nonzero()[:, 0]
            if len(keep) == 0:
                break
            open_, batch = open_[keep], batch.select(keep)
            fast, rough, pulled = fast.select(keep), rough[keep], pulled[keep]
            residual, now, square = residual[keep], now[keep], square[keep]
            curvature = curvature.select(keep)
        forcing = torch.maximum(now.clamp(max=0.1), 0.3 * target / now)
        forcing = forcing.clamp(min=finest)
        direction, lift = _conjugate(
            fast, curvature, rough, pulled, square, forcing, work
        )
        residual, curvature = _advance(batch, residual, direction, lift)
    return scores, dual, certificate


def _direct(
    batch: Batch, target: float, steps: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton steps by elimination for the one problem that CG could not finish.

    Costs (classes x n)^3 a step; wanted only where weights span many powers of ten.
    """
    dtype = batch.scores.dtype
    batch = Batch(
        batch.loss.to(torch.float64),
        batch.operator.to(torch.float64),
        batch.dual.double(),
        batch.scores.double(),
    )
    _, classes, n = batch.scores.shape
    eye = torch.eye(n, dtype=torch.float64, device=batch.scores.device)
    product = batch.operator(eye[None])[0]
    # Where CG went astray its point is no start.
    batch.dual = torch.zeros_like(batch.dual)
    batch.scores = torch.zeros_like(batch.scores)
    best = batch.scores.new_tensor([torch.inf])
    answer = batch.scores.clone(), batch.dual.clone()
    residual, curvature = _residual(batch)
    for _ in range(steps):
        size = inner(batch.dual, batch.scores)
        size = torch.maximum(size, 1e-6 * batch.operator.weight.sum((1, 2)))
        now = (inner(residual, residual @ product).clamp(min=0) / size).sqrt()
        if bool(now < best):
            best, answer = now, (batch.scores.clone(), batch.dual.clone())
        if bool(best <= target):
            break
        # Column j of class l of the operator is its action on a unit dual value.
        units = torch.zeros(classes * n, classes, n, dtype=torch.float64)
        units = units.to(eye.device)
        for code in range(classes):
            units[code * n : (code + 1) * n, code] = eye
        system = curvature.add_to(units, units @ product).flatten(1).T
        if classes > 1:
            # The shift all classes share is held by nothing: give it unit stiffness.
            shared = torch.eye(n, dtype=torch.float64, device=eye.device) / classes
            system = system + shared.repeat(classes, classes)
        step = torch.linalg.solve(system, residual.flatten()).view_as(residual)
        residual, curvature = _advance(batch, residual, step, step @ product)
    return answer[0].to(dtype), answer[1].to(dtype), best


def _residual(batch: Batch) -> tuple[Tensor, Curvature]:
    """Residual and curvature at the batch's scores."""
    probabilities = batch.loss.probabilities(batch.scores)
    residual = batch.loss.pull(probabilities).sub_(batch.dual)
    residual.addcmul_(batch.operator.weight, batch.scores)
    if not batch.loss.binary:
        centre_classes(residual)
    return residual, excess_curvature(batch.loss, probabilities, batch.operator.weight)


def _conjugate(
    operator: Operator,
    curvature: Curvature,
    residual: Tensor,
    pulled: Tensor,
    square: Tensor,
    forcing: Tensor,
    work: Work,
    limit: int = 100,
) -> tuple[Tensor, Tensor]:
    """CG for (I + (W - w) Q) u = residual; returns u and Q u.

    Stops when most problems reached their forcing term: the others lose nothing, as
    the next Newton step goes on from where they are.
    """
    curvature = curvature.to(residual.dtype)
    start, residual = residual, residual.clone()
    goal = square * forcing.to(square.dtype) ** 2
    lift = torch.zeros_like(residual)
    search, ahead, first = residual.clone(), pulled, square
    for iteration in range(limit):
        image = curvature.add_to(search, ahead)
        bend = inner(ahead, image)
        length = torch.where(bend > 0, square / bend, 0.0)[:, None, None]
        lift.addcmul_(length, ahead)
        residual = residual.addcmul_(length, image, value=-1)
        pulled = operator(residual)
        work.count(operator, residual)
        fresh = inner(residual, pulled).clamp_(min=0)
        waiting = fresh > goal
        # Growth is rounding, not progress: the system is too stiff for this type.
        if bool((fresh > 1e4 * first).any()):
            break
        if iteration + 1 == limit or int(waiting.sum()) <= 0.3 * len(waiting):
            break
        ratio = torch.where(square > 0, fresh / square, 0.0)[:, None, None]
        search.mul_(ratio).add_(residual)
        ahead = torch.addcmul(pulled, ratio, ahead)
        square = fresh
    # What CG has solved for so far: u = start - residual - (W - w) Q u.
    negative = curvature.add_to(residual, lift)
    return start - negative, lift


def _advance(
    batch: Batch, before: Tensor, direction: Tensor, lift: Tensor
) -> tuple[Tensor, Curvature]:
    """Move the batch along the step, shortened where it overshoots; new residual.

    The derivative along the step decides: it may turn positive by at most half its
    first size, else the step is cut by the secant rule. Values are never compared, so
    rounding near the optimum does not matter.
    """
    dtype = batch.scores.dtype
    direction, lift = direction.to(dtype), lift.to(dtype)
    if not batch.loss.binary:
        direction, lift = centre_classes(direction), centre_classes(lift)
    batch.dual += direction
    batch.scores += lift
    residual, curvature = _residual(batch)
    first = inner(before, lift)
    last = inner(residual, lift)
    wrong = ~(last >= -0.5 * first)
    if not bool(wrong.any()):
        return residual, curvature
    index = wrong.nonzero()[:, 0]
    part = batch.select(index)
    first, last, taken = first[index], last[index], torch.ones_like(first[index])
    step, move = direction[index], lift[index]
    for _ in range(30):
        cut = torch.nan_to_num(first / (first - last), nan=0.5).clamp(0.05, 0.7)
        shorter = torch.where(last >= -0.5 * first, taken, taken * cut)
        change = (shorter - taken)[:, None, None]
        part.dual += change * step
        part.scores += change * move
        taken = shorter
        last = inner(_residual(part)[0], move)
        if bool((last >= -0.5 * first).all()):
            break
    batch.dual[index], batch.scores[index] = part.dual, part.scores
    return _residual(batch)
