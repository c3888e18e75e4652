"""Safeguarded Newton-CG for many logistic problems that share one factor.

Each problem minimises 0.5 ||W||^2 + sum_i s_i loss(y_i, x_i W + b), scikit-learn's
objective with C inside the weights s and the intercept b not penalised. The problems
of a batch share the rows X and a factor Q = A H^-1 A' (see ``probes.solvers.factor``);
they differ in labels and in row weights, so folds, permutations, control labels and
seeds are only different members of a batch. With parameters written as H^-1 A' c the
scores are E = Q c, the gradient is -A' r with r = a - c + w E (a the pull of the loss
on the scores, w the fixed weights), and a Newton step solves

    (I + (W - w) Q) u = r     by conjugate gradients in the inner product u' Q v,

one product with Q an iteration for all problems and classes at once. r' Q r is the
squared gradient in the metric of H^-1: the distance to the optimum to first order in
the metric of H, and hence the certificate every problem gets.
"""

import torch
from torch import Tensor

from probes.solvers.batch import (
    Batch,
    Work,
    advance,
    centred,
    inner,
    own_size,
    residual_of,
    size_of,
    strayed,
)
from probes.solvers.compiled import dispatch
from probes.solvers.newton.conjugate_gradients import conjugate
from probes.solvers.newton.newton_cg_mixed import LIMITS, approach
from probes.solvers.newton.newton_direct import eliminate
from probes.solvers.newton.newton_primal import minimise_narrow

ACCEPTED = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest certificate of a solved problem, by the type of the answer."""
TARGET = {torch.float64: 1e-9, torch.float32: 5e-6}
SMALL = 300
"""Up to so many classes x rows one problem is solved by elimination."""
ENOUGH = 1e-2
"""Share of a residual that may be left of it where only its length is asked for."""


def minimise(
    batch: Batch,
    *,
    target: float | None = None,
    iterations: torch.dtype | None = None,
    steps: int = 60,
    fall_back: bool = True,
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
        fall_back: Whether what those steps leave unsolved is solved by elimination.
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
    batch = batch if batch.loss.binary else centred(batch)
    size = batch.scores[0].numel()
    if size <= SMALL and len(batch.scores) * size**3 <= SMALL**3:
        return eliminate(batch, target)
    if batch.loss.binary and batch.operator.factor.basis is not None:
        solved = minimise_narrow(batch, target, iterations, steps, work)
        return _eliminate_rest(batch, *solved, target, fall_back)
    if batch.operator.factor.matrix is None:
        return _slowly(batch, target, steps, fall_back, work)
    # Loose targets ask for a start, and no certificate.
    accepted = max(ACCEPTED[dtype], target)
    if target <= ACCEPTED[dtype] and dispatch.relaxes(batch):
        found = dispatch.relax(batch, target, accepted, iterations, LIMITS.steps, work)
        scores, dual, certificate = found
        left = (~(certificate <= accepted)).nonzero()[:, 0]
        if len(left):
            part = batch.select(left)
            scores[left], dual[left], certificate[left] = _approached(
                part, target, accepted, iterations, steps, fall_back, work
            )
    else:
        scores, dual, certificate = _approached(
            batch, target, accepted, iterations, steps, fall_back, work
        )
    return _eliminate_rest(batch, scores, dual, certificate, target, fall_back)


def _approached(
    batch: Batch,
    target: float,
    accepted: float,
    iterations: torch.dtype,
    steps: int,
    fall_back: bool,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """The short way, and safeguarded steps for what that leaves."""
    found = approach(batch, target, accepted, iterations, steps, work)
    scores, dual, certificate = found
    left = ~(certificate <= accepted)
    if bool(left.any()):
        which = left.nonzero()[:, 0]
        part = batch.select(which)
        scores[which], dual[which], certificate[which] = _slowly(
            part, target, steps, fall_back, work
        )
    if not batch.loss.binary and target <= ACCEPTED[scores.dtype]:
        certificate = judged(batch, scores, dual, certificate, work)
    return scores, dual, certificate


def _slowly(
    batch: Batch, target: float, steps: int, fall_back: bool, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """By safeguarded Newton steps, whose systems conjugate gradients solve."""
    scores, dual, certificate = _stage(batch, target, steps, work)
    _undrift(batch, scores, dual, certificate, target, steps, work)
    certificate = judged(batch, scores, dual, certificate, work)
    return _eliminate_rest(batch, scores, dual, certificate, target, fall_back)


def judged(
    batch: Batch,
    scores: Tensor,
    dual: Tensor,
    certificate: Tensor,
    work: Work,
    margin: Tensor | None = None,
) -> Tensor:
    """Certificates in the metric of the Hessian where each answer stands.

    So far they are in the factor's, which says nothing where separable rows have lost
    their curvature. For two classes the least of a row's curvature over its fixed
    weight bounds what that makes of them; where the bound is too weak, and for several
    classes, the step that is left is solved for.
    """
    whole = Batch(batch.loss, batch.operator, dual, scores)
    most = ACCEPTED[scores.dtype]
    if batch.loss.binary:
        fixed = batch.operator.weight
        bend = residual_of(whole, work)[1].diagonal + fixed
        # Rows taken out have neither, and their 0 / 0 counts as no change.
        share = torch.where(fixed > 0, bend / fixed, 1.0).amin((1, 2)).clamp(max=1)
        worst = certificate / share
    else:
        worst = torch.full_like(certificate, torch.inf)
    rest = (certificate <= most) & ~(worst <= most)
    if bool(rest.any()):
        which = rest.nonzero()[:, 0]
        part = whole.select(which)
        residual, curvature = residual_of(part, work)
        pulled = part.operator(residual, work.like("pulled", residual))
        work.count(part.operator, residual)
        square = inner(residual, pulled, work).abs()
        enough = torch.full_like(square, ENOUGH)
        step, lift, slope = conjugate(
            part.operator,
            curvature,
            residual,
            pulled,
            square,
            enough,
            work,
            share=0.0,
            foresee=False,
        )
        # A step that could not be solved for is too short, and certifies nothing.
        unsolved = residual - curvature.add_to(step, lift)
        work.count(part.operator, unsolved)
        over = inner(unsolved, part.operator(unsolved), work).abs()
        slope = torch.where(over <= 4 * ENOUGH**2 * square, slope, torch.inf)
        own = (slope.abs() / own_size(part, curvature, work)).sqrt()
        own = own if margin is None else own * margin[which]
        own = torch.nan_to_num(own, nan=torch.inf)
        worst[which] = torch.maximum(certificate[which], own)
    return torch.where(certificate <= most, worst, certificate)


def _eliminate_rest(
    batch: Batch,
    scores: Tensor,
    dual: Tensor,
    certificate: Tensor,
    target: float,
    fall_back: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve what is left, in place, from where conjugate gradients stopped."""
    left = ~(certificate <= max(target, ACCEPTED[scores.dtype]))
    for problem in left.nonzero()[:, 0].tolist() if fall_back else ():
        one = torch.tensor([problem], device=scores.device)
        part = batch.select(one)
        part = Batch(part.loss, part.operator, dual[one], scores[one])
        scores[one], dual[one], reached = eliminate(part, target)
        certificate[one] = reached.to(certificate)  # elimination works in float64
    return scores, dual, certificate


def _undrift(
    batch: Batch,
    scores: Tensor,
    dual: Tensor,
    certificate: Tensor,
    target: float,
    steps: int,
    work: Work,
) -> None:
    """Make sure, in place, that scores are those of the dual values.

    They are carried along step by step; see ``strayed``. Problems without a
    certificate only get their scores: no use in trying them again.
    """
    claimed = certificate <= max(target, ACCEPTED[scores.dtype])
    for turn in range(3):
        fresh = batch.operator(dual)
        work.count(batch.operator, dual)
        off = strayed(scores, fresh) & claimed
        scores.copy_(fresh)
        if not bool(off.any()):
            return
        which = off.nonzero()[:, 0]
        if turn == 2:
            certificate[which] = torch.inf
            return
        part = batch.select(which)
        part = Batch(part.loss, part.operator, dual[which], fresh[which])
        scores[which], dual[which], certificate[which] = _stage(
            part, target, steps, work
        )


def _stage(
    batch: Batch, target: float, steps: int, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    scores, dual = torch.empty_like(batch.scores), torch.empty_like(batch.dual)
    count = len(scores)
    certificate = scores.new_full((count,), torch.inf)
    # Which problem each member is; -1 once its answer is stored.
    place = torch.arange(count, device=scores.device)
    best, stalled = certificate.clone(), torch.zeros_like(certificate)
    finest = 1e-3 if scores.dtype == torch.float32 else 1e-7
    residual, curvature = residual_of(batch, work)
    for step in range(steps + 1):
        pulled = batch.operator(residual, work.like("pulled", residual))
        work.count(batch.operator, residual)
        # Below zero it is rounding, and no reason to certify anything.
        square = inner(residual, pulled, work).abs()
        now = (square / size_of(batch, work)).sqrt()
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
            place, batch = place[keep], batch.select(keep)
            best, stalled = best[keep], stalled[keep]
            residual, pulled = residual[keep], pulled[keep]
            now, square = now[keep], square[keep]
            curvature = curvature.select(keep)
        forcing = torch.maximum(now.clamp(max=0.1), 0.3 * target / now)
        forcing = forcing.clamp(min=finest)
        residual, curvature = advance(
            batch,
            work,
            *conjugate(
                batch.operator, curvature, residual, pulled, square, forcing, work
            ),
        )
    return scores, dual, certificate


def certified(batch: Batch, residual: Tensor, work: Work) -> Tensor:
    """(problem,) the certificate, in the type of the answers.

    Coarser products lose it: where most of a residual is sent to nothing, what is left
    is rounding, at times below zero, and would certify anything.
    """
    pulled = batch.operator(residual)
    work.count(batch.operator, residual)
    square = inner(residual, pulled, work).abs()
    return (square / size_of(batch, work)).sqrt()
