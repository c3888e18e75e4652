"""The short way to many optima: one product with Q a step, most of them in float32.

A Newton step solved by conjugate gradients pays two products more than it uses: one to
see how far it is from the optimum and one to see that its system is solved. Nonlinear
conjugate gradients need one a step, and keep what they learnt from one step to the
next. They come down in float32; there the scores are computed anew in the type of the
answer, and what little is left is a linear system whose residual is exact and whose
solution need not be. A certificate is always that of the exact residual. Problems that
do not come down this way are left to ``probes.solvers.newton.newton_cg``'s safeguarded
steps.

A pass over a block costs as much as a tenth of a product, so there are few: the state
is the scores E and b = s t - alpha (s the rows' weights in the loss, t the targets,
alpha = c - w E), for then the residual is b - s p.

Source: Daniel (1967), SIAM J. Numer. Anal. 4:10, for the conjugacy of directions.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probes.solvers.batch import Batch, Limits, Work, inner
from probes.solvers.compiled import dispatch
from probes.solvers.factor import Operator
from probes.solvers.loss import Curvature, Loss, centre_classes
from probes.solvers.newton.conjugate_gradients import conjugate

HANDOVER = 1e-5
"""Certificate at which float32 has done its part of a float64 solve."""
LIMITS = Limits(steps=30, turns=6, finest=1e-5, near=1e-4)
"""How far to go before safeguarded steps are the better way."""
BEHIND = 0.05
"""Share of problems that may still be above a goal when the others go on."""
FEWER = 0.6
"""Share of problems left at which they are copied together."""


@dataclass
class _Place:
    """Where problems stand.

    Attributes:
        loss: What is minimised.
        operator: In the type of the loss.
        scores: (problem, class, n) E.
        rest: (problem, class, n) b.
    """

    loss: Loss
    operator: Operator
    scores: Tensor
    rest: Tensor

    def select(self, keep: Tensor | slice) -> "_Place":
        """The problems ``keep`` (indices)."""
        loss, operator = self.loss.select(keep), self.operator.select(keep)
        return _Place(loss, operator, self.scores[keep], self.rest[keep])

    def dual(self) -> Tensor:
        """(problem, class, n) c = alpha + w E."""
        pull = self.loss.target * self.loss.weight - self.rest
        return pull.addcmul_(self.operator.weight, self.scores)

    def residual(self, work: Work) -> tuple[Tensor, Tensor, Tensor]:
        """Residual, probabilities and their product with the rows' weights."""
        chance = self.loss.probabilities(self.scores, work.like("chance", self.scores))
        mass = work.like("mass", chance)
        torch.mul(chance, self.loss.weight, out=mass)
        left = torch.sub(self.rest, mass, out=work.like("residual", chance))
        return left, chance, mass


def approach(
    batch: Batch,
    target: float,
    accepted: float,
    iterations: torch.dtype,
    steps: int,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve what can be solved the short way.

    Args:
        batch: Problems whose factor is a matrix, with scores = Q dual.
        target: Certificate to reach.
        accepted: Certificate that the metric of the own Hessian must keep, which for
            two classes is bounded from the least of the curvature over the weights.
        iterations: Type of most products.
        steps: Most steps of either part.
        work: Where to count the work.

    Returns:
        As ``engine.minimise``; the certificate is infinite where a problem was left,
        and for several classes still in the factor's metric.
    """
    kind, loss, operator = batch.scores.dtype, batch.loss, batch.operator
    goal = max(target, HANDOVER) if iterations != kind else target
    down, turns = min(steps, LIMITS.steps), min(steps, LIMITS.turns)
    if dispatch.suits(batch):
        limits = replace(LIMITS, steps=down, turns=turns)
        return dispatch.approach(batch, target, accepted, iterations, limits, work)
    pull = loss.target * loss.weight
    rough = _Place(
        loss.to(iterations),
        operator.to(iterations),
        batch.scores.to(iterations, copy=True),
        (pull - batch.dual).addcmul_(operator.weight, batch.scores).to(iterations),
    )
    size = _descend(rough, goal, down, work).to(kind)
    dual = rough.dual().to(kind)
    scores = operator(dual)
    work.count(operator, dual)
    alpha = dual.addcmul_(operator.weight, scores, value=-1)
    if not loss.binary:
        centre_classes(alpha)
        centre_classes(scores)
    exact = _Place(loss, operator, scores, torch.sub(pull, alpha, out=alpha))
    return _polish(exact, rough.operator, size, target, accepted, turns, work)


def _descend(whole: _Place, goal: float, steps: int, work: Work) -> Tensor:
    """Nonlinear conjugate gradients, in place, until nearly all are at the goal.

    Problems that come first are the ones waited for: a tail that has arrived is cut
    off without copying the others.

    Returns:
        (problem,) squared norm of the parameters in the metric of H.
    """
    place, binary = whole, whole.loss.binary
    product = inner(place.dual(), place.scores, work)
    # Scores of a thousandth count as nothing: optima at zero have no scale.
    everyone = torch.maximum(product, 1e-6 * place.operator.weight.mean(1).sum(1))
    least = everyone * goal**2
    best, last = torch.full_like(least, torch.inf), torch.zeros_like(least)
    bend = slope = length = last
    index, copied = torch.arange(len(least), device=least.device), False
    far = torch.ones_like(least, dtype=torch.bool)
    residual, chance, mass = place.residual(work)
    for turn in range(steps):
        operator, scores = place.operator, place.scores
        pulled = operator(residual, work.like("pulled", scores))
        work.count(operator, residual)
        square = inner(residual, pulled, work)
        if turn % 2 == 0:
            # Float32 has a floor of its own, which differs from problem to problem.
            far = (square.abs() > least) & (square < 0.8 * best)
            best, waiting = square, far.nonzero()[:, 0]
            if turn + 1 >= steps or len(waiting) <= BEHIND * len(everyone):
                break
            head, kept = int(waiting[-1]) + 1, None
            if head <= 0.85 * len(far) and head <= 1.5 * len(waiting):
                kept = slice(0, head)
            elif len(waiting) <= FEWER * len(far):
                kept = waiting
                for name in ("ahead", "inside", "image"):
                    old = work.like(name, scores)[kept]
                    work.like(name, old).copy_(old)
            if kept is not None:
                if copied:
                    whole.scores[index], whole.rest[index] = scores, place.rest
                copied |= kept is waiting
                place, index = place.select(kept), index[kept]
                operator, scores = place.operator, place.scores
                residual, pulled, square = residual[kept], pulled[kept], square[kept]
                chance, mass, least = chance[kept], mass[kept], least[kept]
                best, last, far = best[kept], last[kept], far[kept]
                bend, slope, length = bend[kept], slope[kept], length[kept]
        # A direction moves scores by ``ahead`` and alpha by ``inside``.
        ahead, inside = work.like("ahead", scores), work.like("inside", scores)
        image, step = work.like("image", scores), work.like("step", scores)
        torch.addcmul(residual, operator.weight, pulled, value=-1, out=step)
        if not binary:
            centre_classes(step)
            centre_classes(pulled)
        if turn == 0:
            ahead.copy_(pulled)
            inside.copy_(step)
            slope = square
        else:
            # A step that was none leaves no direction to go on from.
            keep = -inner(pulled, image, work).clamp_(max=0) / bend
            keep = torch.where(length > 0, keep, 0.0)
            slope = square + keep * last
            wide = keep[:, None, None]
            torch.addcmul(pulled, ahead, wide, out=ahead)
            torch.addcmul(step, inside, wide, out=inside)
        _bent(binary, chance, mass, inside, ahead, image)
        bend = inner(ahead, image, work)
        # Steps of finished problems are rounding.
        length = torch.where(far & (bend > 0) & (slope > 0), slope / bend, 0.0)
        change = length
        for _ in range(4):
            wide = change[:, None, None]
            scores.addcmul_(ahead, wide)
            place.rest.addcmul_(inside, wide, value=-1)
            residual, chance, mass = place.residual(work)
            last = inner(residual, ahead, work)
            over = (last < -0.5 * slope) & (length > 0)
            if not bool(over.any()):
                break
            # The slope turned by over half: back to where a line has its root.
            part = slope / (slope - last) - 1
            change = torch.where(over, length * part, 0.0)
            length = length + change
    if copied:
        whole.scores[index], whole.rest[index] = place.scores, place.rest
    return everyone


def _bent(
    binary: bool,
    chance: Tensor,
    mass: Tensor,
    start: Tensor,
    ahead: Tensor,
    out: Tensor,
) -> None:
    """``start`` + (second derivative) ``ahead``; for two classes spoils ``mass``."""
    if binary:
        mass.addcmul_(mass, chance, value=-1)
        torch.addcmul(start, mass, ahead, out=out)
        return
    total = torch.mul(chance, ahead, out=out).sum(1, keepdim=True)
    torch.addcmul(start, mass, ahead, out=out)
    out.addcmul_(mass, total, value=-1)


def _polish(
    place: _Place,
    fast: Operator,
    size: Tensor,
    target: float,
    accepted: float,
    turns: int,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton steps on exact residuals, each solved as far as the target needs."""
    operator, binary = place.operator, place.loss.binary
    scores, dual = torch.empty_like(place.scores), torch.empty_like(place.scores)
    certificate = scores.new_full((len(scores),), torch.inf)
    index = torch.arange(len(scores), device=scores.device)
    kind, before = fast.weight.dtype, torch.full_like(size, torch.inf)
    mild = place.loss.to(kind)
    over = torch.where(fast.weight > 0, 1 / fast.weight, 0.0)
    over = over.expand(len(index), *over.shape[1:])
    leverage = fast.leverage().expand(over.shape) if binary else over
    for turn in range(turns):
        residual, chance, _ = place.residual(work)
        rough, chance = residual, chance.to(kind)
        if kind != residual.dtype:
            rough = work.like("rough", residual, kind).copy_(residual)
        if binary:
            bend = mild.curvature(chance, work.like("bend", chance))
            curvature = Curvature(bend.sub_(fast.weight))
        else:
            curvature = Curvature(fast.weight, chance, mild.weight)
        pulled = fast(rough, work.like("pulled", rough))
        work.count(fast, rough)
        square = inner(rough, pulled, work)
        now, own = _certificates(size, over, leverage, curvature, rough, square, work)
        lost = now
        if binary:
            longer = _longer(size, curvature.diagonal, fast.weight, place, work)
            own = own * longer
            # What scores lose to rounding is that much more in the own metric.
            lost = own * longer.square()
        # At the floor of rounding a turn more brings nothing.
        done = ((now <= target) | (now > 0.5 * before)) & (own <= accepted)
        before = now
        left = (~done).nonzero()[:, 0]
        last = len(left) == 0 or turn + 1 == turns
        if last or len(left) < FEWER * len(index):
            scores[index], dual[index] = place.scores, place.dual()
            certificate[index] = torch.where(done, torch.maximum(now, own), torch.inf)
            if last:
                break
            index, now, size, lost = index[left], now[left], size[left], lost[left]
            before = now
            place, fast, mild = place.select(left), fast.select(left), mild.select(left)
            curvature = curvature.select(left)
            over, leverage = over[left], leverage[left]
            rough, pulled, square = rough[left], pulled[left], square[left]
        enough = (0.3 * target / now).clamp(LIMITS.finest, 0.1)
        step, lift, _ = conjugate(
            fast, curvature, rough, pulled, square, enough, work, share=BEHIND
        )
        step.addcmul_(fast.weight, lift, value=-1)
        if not binary:
            centre_classes(step)
            centre_classes(lift)
        place.rest.sub_(step)
        place.scores.add_(lift)
        if not bool((lost <= LIMITS.near).all()):
            # Scores were moved by float32 products; make them exact again.
            dual_here = place.dual()
            operator = place.operator
            fresh = operator(dual_here)
            work.count(operator, dual_here)
            place.rest.addcmul_(operator.weight, fresh - place.scores)
            place.scores.copy_(fresh)
    return scores, dual, certificate


def _longer(
    size: Tensor, bend: Tensor, fixed: Tensor, place: _Place, work: Work
) -> Tensor:
    """(problem,) length of the parameters in the factor's metric over their own, >= 1.

    Weights of a factor are raised where they are too small to invert, and with them
    what the parameters seem to be.
    """
    bend = bend.to(size)
    own = inner(place.dual(), place.scores, work).to(size)
    own = own + (bend * place.scores.square()).sum((1, 2))
    own = torch.maximum(own, 1e-6 * (bend + fixed.to(size)).sum((1, 2)))
    return (size / torch.minimum(own, size)).sqrt()


def _certificates(
    size: Tensor,
    over: Tensor,
    leverage: Tensor,
    curvature: Curvature,
    residual: Tensor,
    square: Tensor,
    work: Work,
) -> tuple[Tensor, Tensor]:
    """(problem,) certificates in the factor's metric and bounds in the own Hessian's.

    Rounding of a product is part of both: where most of a residual is sent to nothing,
    what is left of it is no certificate. For two classes the own Hessian is, in units
    of the factor's, at least the least ratio of a row's curvature W to its weight w. It
    is also at least 1/2 - sum over rows of max(w / 2 - W, 0) Q_ii, as a matrix is at
    most its trace: so that rows which hardly count may lose what curvature they had.
    """
    image = work.like("image", residual)
    noise = 16 * torch.finfo(residual.dtype).eps
    rest = inner(residual, torch.mul(residual, over, out=image), work)
    square = square.abs() + noise * rest
    now = (square.to(size) / size).sqrt()
    if curvature.probabilities is not None:
        return now, now
    ratio = torch.mul(curvature.diagonal, over, out=image)
    least = 1 + ratio.amin((1, 2))
    # 1/2 - W / w = -1/2 - (W - w) / w, times the leverage w Q_ii.
    lost = ratio.add_(0.5).neg_().clamp_(min=0)
    least = torch.maximum(least, 0.5 - inner(lost, leverage, work))
    return now, now / least.to(now).clamp(1e-7, 1).sqrt()
