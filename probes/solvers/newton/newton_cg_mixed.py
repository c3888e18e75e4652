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

from probes.solvers.compiled import dispatch
from probes.solvers.newton.conjugate_gradients import solve_newton_system
from probes.solvers.objective.batch import Batch, Limits, Work, inner
from probes.solvers.objective.factor import Operator
from probes.solvers.objective.loss import Curvature, Loss, center_classes

FLOAT32_TOL = 1e-5
"""Certificate at which float32 has done its part of a float64 solve."""
LIMITS = Limits(steps=30, newton_steps=6, min_forcing=1e-5, rescore_above=1e-4)
"""How far to go before safeguarded steps are the better way."""
MAX_ACTIVE_FRACTION = 0.05
"""Share of problems that may still be above a goal when the others go on."""
COMPACT_BELOW = 0.6
"""Share of problems left at which they are copied together."""


@dataclass
class _State:
    """Where problems stand.

    Attributes:
        loss: What is minimised.
        operator: In the type of the loss.
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
        pull = self.loss.target * self.loss.weight - self.offset
        return pull.addcmul_(self.operator.weight, self.scores)

    def residual(self, work: Work) -> tuple[Tensor, Tensor, Tensor]:
        """Residual, probabilities and their product with the rows' weights."""
        chance = self.loss.probabilities(
            self.scores, work.scratch_like("chance", self.scores)
        )
        mass = work.scratch_like("mass", chance)
        torch.mul(chance, self.loss.weight, out=mass)
        left = torch.sub(self.offset, mass, out=work.scratch_like("residual", chance))
        return left, chance, mass


def solve_mixed(
    batch: Batch,
    tol: float,
    accepted_tol: float,
    iteration_dtype: torch.dtype,
    steps: int,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve what can be solved the short way.

    Args:
        batch: Problems whose factor is a matrix, with scores = Q dual.
        tol: Certificate to reach.
        accepted_tol: Certificate that the metric of the own Hessian must keep, which
            for two classes is bounded from the least of the curvature over the weights.
        iteration_dtype: Type of most products.
        steps: Most steps of either part.
        work: Where to count the work.

    Returns:
        As ``engine.minimise``; the certificate is infinite where a problem was left,
        and for several classes still in the factor's metric.
    """
    kind, loss, operator = batch.scores.dtype, batch.loss, batch.operator
    goal = max(tol, FLOAT32_TOL) if iteration_dtype != kind else tol
    down, turns = min(steps, LIMITS.steps), min(steps, LIMITS.newton_steps)
    if dispatch.supports_binary(batch):
        limits = replace(LIMITS, steps=down, newton_steps=turns)
        return dispatch.solve_binary(
            batch, tol, accepted_tol, iteration_dtype, limits, work
        )
    pull = loss.target * loss.weight
    rough = _State(
        loss.to(iteration_dtype),
        operator.to(iteration_dtype),
        batch.scores.to(iteration_dtype, copy=True),
        (pull - batch.dual).addcmul_(operator.weight, batch.scores).to(iteration_dtype),
    )
    size = _nonlinear_cg(rough, goal, down, work).to(kind)
    dual = rough.dual().to(kind)
    scores = operator(dual)
    work.count(operator, dual)
    alpha = dual.addcmul_(operator.weight, scores, value=-1)
    if not loss.binary:
        center_classes(alpha)
        center_classes(scores)
    exact = _State(loss, operator, scores, torch.sub(pull, alpha, out=alpha))
    return _newton_cg(exact, rough.operator, size, tol, accepted_tol, turns, work)


def _nonlinear_cg(whole: _State, goal: float, steps: int, work: Work) -> Tensor:
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
        pulled = operator(residual, work.scratch_like("pulled", scores))
        work.count(operator, residual)
        square = inner(residual, pulled, work)
        if turn % 2 == 0:
            # Float32 has a floor of its own, which differs from problem to problem.
            far = (square.abs() > least) & (square < 0.8 * best)
            best, waiting = square, far.nonzero()[:, 0]
            if turn + 1 >= steps or len(waiting) <= MAX_ACTIVE_FRACTION * len(everyone):
                break
            head, kept = int(waiting[-1]) + 1, None
            if head <= 0.85 * len(far) and head <= 1.5 * len(waiting):
                kept = slice(0, head)
            elif len(waiting) <= COMPACT_BELOW * len(far):
                kept = waiting
                for name in ("ahead", "inside", "image"):
                    old = work.scratch_like(name, scores)[kept]
                    work.scratch_like(name, old).copy_(old)
            if kept is not None:
                if copied:
                    whole.scores[index], whole.offset[index] = scores, place.offset
                copied |= kept is waiting
                place, index = place.select(kept), index[kept]
                operator, scores = place.operator, place.scores
                residual, pulled, square = residual[kept], pulled[kept], square[kept]
                chance, mass, least = chance[kept], mass[kept], least[kept]
                best, last, far = best[kept], last[kept], far[kept]
                bend, slope, length = bend[kept], slope[kept], length[kept]
        # A direction moves scores by ``ahead`` and alpha by ``inside``.
        ahead, inside = (
            work.scratch_like("ahead", scores),
            work.scratch_like("inside", scores),
        )
        image, step = (
            work.scratch_like("image", scores),
            work.scratch_like("step", scores),
        )
        torch.addcmul(residual, operator.weight, pulled, value=-1, out=step)
        if not binary:
            center_classes(step)
            center_classes(pulled)
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
        _hess_product(binary, chance, mass, inside, ahead, image)
        bend = inner(ahead, image, work)
        # Steps of finished problems are rounding.
        length = torch.where(far & (bend > 0) & (slope > 0), slope / bend, 0.0)
        change = length
        for _ in range(4):
            wide = change[:, None, None]
            scores.addcmul_(ahead, wide)
            place.offset.addcmul_(inside, wide, value=-1)
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
        whole.scores[index], whole.offset[index] = place.scores, place.offset
    return everyone


def _hess_product(
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


def _newton_cg(
    place: _State,
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
            rough = work.scratch_like("rough", residual, kind).copy_(residual)
        if binary:
            bend = mild.curvature(chance, work.scratch_like("bend", chance))
            curvature = Curvature(bend.sub_(fast.weight))
        else:
            curvature = Curvature(fast.weight, chance, mild.weight)
        pulled = fast(rough, work.scratch_like("pulled", rough))
        work.count(fast, rough)
        square = inner(rough, pulled, work)
        now, own = _certificates(size, over, leverage, curvature, rough, square, work)
        lost = now
        if binary:
            longer = _norm_ratio(size, curvature.diagonal, fast.weight, place, work)
            own = own * longer
            # What scores lose to rounding is that much more in the own metric.
            lost = own * longer.square()
        # At the floor of rounding a turn more brings nothing.
        done = ((now <= target) | (now > 0.5 * before)) & (own <= accepted)
        before = now
        left = (~done).nonzero()[:, 0]
        last = len(left) == 0 or turn + 1 == turns
        if last or len(left) < COMPACT_BELOW * len(index):
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
        enough = (0.3 * target / now).clamp(LIMITS.min_forcing, 0.1)
        step, lift, _ = solve_newton_system(
            fast,
            curvature,
            rough,
            pulled,
            square,
            enough,
            work,
            max_unsolved=MAX_ACTIVE_FRACTION,
        )
        step.addcmul_(fast.weight, lift, value=-1)
        if not binary:
            center_classes(step)
            center_classes(lift)
        place.offset.sub_(step)
        place.scores.add_(lift)
        if not bool((lost <= LIMITS.rescore_above).all()):
            # Scores were moved by float32 products; make them exact again.
            dual_here = place.dual()
            operator = place.operator
            fresh = operator(dual_here)
            work.count(operator, dual_here)
            place.offset.addcmul_(operator.weight, fresh - place.scores)
            place.scores.copy_(fresh)
    return scores, dual, certificate


def _norm_ratio(
    size: Tensor, bend: Tensor, fixed: Tensor, place: _State, work: Work
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
    image = work.scratch_like("image", residual)
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
