"""Safeguarded Newton-CG for many logistic problems that share one factor.

Each problem minimises 0.5 ||W||^2 + sum_i s_i loss(y_i, x_i W + b), scikit-learn's
objective with C inside the weights s and the intercept b not penalised. The problems
of a batch share the rows X and a factor Q = A H^-1 A' (see
``probes.solvers.objective.factor``); they differ in labels and in row weights, so
folds, permutations, control labels and seeds are only different members of a batch.
With parameters written as H^-1 A' c the scores are E = Q c, the gradient is -A' r with
r = a - c + w E (a the pull of the loss on the scores, w the fixed weights), and a
Newton step solves

    (I + (W - w) Q) u = r     by conjugate gradients in the inner product u' Q v,

one product with Q an iteration for all problems and classes at once. r' Q r is the
squared gradient in the metric of H^-1: the distance to the optimum to first order in
the metric of H, and hence the certificate every problem gets.
"""

import torch
from torch import Tensor

from probes.solvers.compiled import dispatch
from probes.solvers.newton.conjugate_gradients import solve_newton_system
from probes.solvers.newton.newton_cg_mixed import LIMITS, solve_mixed
from probes.solvers.newton.newton_direct import solve_direct
from probes.solvers.newton.newton_primal import minimize_primal
from probes.solvers.objective.batch import (
    Batch,
    Work,
    centered,
    has_drifted,
    inner,
    local_squared_norm,
    residual_and_curvature,
    squared_norm,
    take_safeguarded_step,
)

ACCEPTED_TOL = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest certificate of a solved problem, by the type of the answer."""
TOL = {torch.float64: 1e-9, torch.float32: 5e-6}
MAX_DIRECT_SIZE = 300
"""Up to so many classes x rows one problem is solved by elimination."""
RESIDUAL_TOL = 1e-2
"""Share of a residual that may be left of it where only its length is asked for."""


def minimize(
    batch: Batch,
    *,
    tol: float | None = None,
    iteration_dtype: torch.dtype | None = None,
    steps: int = 60,
    fall_back: bool = True,
    work: Work | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve every problem of ``batch``.

    Args:
        batch: Problems with a starting point for which scores = Q dual.
        tol: Certificate to reach; the type's ``TOL`` by default.
        iteration_dtype: Type of the inner products; float32 inside a float64 solve
            halves the cost and leaves the answer's accuracy, for the outer residual and
            the last products are float64.
        steps: Newton steps before giving up.
        fall_back: Whether what those steps leave unsolved is solved by elimination.
        work: Where to count the work.

    Returns:
        (problem, class, n) scores and dual values c at the optimum, and the
        (problem,) certificate: gradient norm in the metric of H^-1 over the norm of
        the parameters in H. Problems not solved have one above ``ACCEPTED_TOL``.
    """
    dtype = batch.scores.dtype
    tol = TOL[dtype] if tol is None else tol
    iteration_dtype = dtype if iteration_dtype is None else iteration_dtype
    work = Work() if work is None else work
    batch = batch if batch.loss.binary else centered(batch)
    size = batch.scores[0].numel()
    if size <= MAX_DIRECT_SIZE and len(batch.scores) * size**3 <= MAX_DIRECT_SIZE**3:
        return solve_direct(batch, tol)
    if batch.loss.binary and batch.operator.factor.basis is not None:
        solved = minimize_primal(batch, tol, iteration_dtype, steps, work)
        return _solve_rest_directly(batch, *solved, tol, fall_back)
    if batch.operator.factor.matrix is None:
        return _solve_safeguarded(batch, tol, steps, fall_back, work)
    # Loose targets ask for a start, and no certificate.
    accepted = max(ACCEPTED_TOL[dtype], tol)
    if tol <= ACCEPTED_TOL[dtype] and dispatch.supports_softmax(batch):
        found = dispatch.solve_softmax(
            batch, tol, accepted, iteration_dtype, LIMITS.steps, work
        )
        scores, dual, certificate = found
        left = (~(certificate <= accepted)).nonzero()[:, 0]
        if len(left):
            part = batch.select(left)
            scores[left], dual[left], certificate[left] = _solve_mixed_then_safeguarded(
                part, tol, accepted, iteration_dtype, steps, fall_back, work
            )
    else:
        scores, dual, certificate = _solve_mixed_then_safeguarded(
            batch, tol, accepted, iteration_dtype, steps, fall_back, work
        )
    return _solve_rest_directly(batch, scores, dual, certificate, tol, fall_back)


def _solve_mixed_then_safeguarded(
    batch: Batch,
    target: float,
    accepted: float,
    iterations: torch.dtype,
    steps: int,
    fall_back: bool,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """The short way, and safeguarded steps for what that leaves."""
    found = solve_mixed(batch, target, accepted, iterations, steps, work)
    scores, dual, certificate = found
    left = ~(certificate <= accepted)
    if bool(left.any()):
        which = left.nonzero()[:, 0]
        part = batch.select(which)
        scores[which], dual[which], certificate[which] = _solve_safeguarded(
            part, target, steps, fall_back, work
        )
    if not batch.loss.binary and target <= ACCEPTED_TOL[scores.dtype]:
        certificate = local_certificates(batch, scores, dual, certificate, work)
    return scores, dual, certificate


def _solve_safeguarded(
    batch: Batch, target: float, steps: int, fall_back: bool, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """By safeguarded Newton steps, whose systems conjugate gradients solve."""
    scores, dual, certificate = _newton_cg(batch, target, steps, work)
    _recompute_scores(batch, scores, dual, certificate, target, steps, work)
    certificate = local_certificates(batch, scores, dual, certificate, work)
    return _solve_rest_directly(batch, scores, dual, certificate, target, fall_back)


def local_certificates(
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
    most = ACCEPTED_TOL[scores.dtype]
    if batch.loss.binary:
        fixed = batch.operator.weight
        bend = residual_and_curvature(whole, work)[1].diagonal + fixed
        # Rows taken out have neither, and their 0 / 0 counts as no change.
        share = torch.where(fixed > 0, bend / fixed, 1.0).amin((1, 2)).clamp(max=1)
        worst = certificate / share
    else:
        worst = torch.full_like(certificate, torch.inf)
    rest = (certificate <= most) & ~(worst <= most)
    if bool(rest.any()):
        which = rest.nonzero()[:, 0]
        part = whole.select(which)
        residual, curvature = residual_and_curvature(part, work)
        pulled = part.operator(residual, work.scratch_like("pulled", residual))
        work.count(part.operator, residual)
        square = inner(residual, pulled, work).abs()
        enough = torch.full_like(square, RESIDUAL_TOL)
        step, lift, slope = solve_newton_system(
            part.operator,
            curvature,
            residual,
            pulled,
            square,
            enough,
            work,
            max_unsolved=0.0,
            predict_stop=False,
        )
        # A step that could not be solved for is too short, and certifies nothing.
        unsolved = residual - curvature.add_to(step, lift)
        work.count(part.operator, unsolved)
        over = inner(unsolved, part.operator(unsolved), work).abs()
        slope = torch.where(over <= 4 * RESIDUAL_TOL**2 * square, slope, torch.inf)
        own = (slope.abs() / local_squared_norm(part, curvature, work)).sqrt()
        own = own if margin is None else own * margin[which]
        own = torch.nan_to_num(own, nan=torch.inf)
        worst[which] = torch.maximum(certificate[which], own)
    return torch.where(certificate <= most, worst, certificate)


def _solve_rest_directly(
    batch: Batch,
    scores: Tensor,
    dual: Tensor,
    certificate: Tensor,
    target: float,
    fall_back: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve what is left, in place, from where conjugate gradients stopped."""
    left = ~(certificate <= max(target, ACCEPTED_TOL[scores.dtype]))
    for problem in left.nonzero()[:, 0].tolist() if fall_back else ():
        one = torch.tensor([problem], device=scores.device)
        part = batch.select(one)
        part = Batch(part.loss, part.operator, dual[one], scores[one])
        scores[one], dual[one], reached = solve_direct(part, target)
        certificate[one] = reached.to(certificate)  # elimination works in float64
    return scores, dual, certificate


def _recompute_scores(
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
    claimed = certificate <= max(target, ACCEPTED_TOL[scores.dtype])
    for turn in range(3):
        fresh = batch.operator(dual)
        work.count(batch.operator, dual)
        off = has_drifted(scores, fresh) & claimed
        scores.copy_(fresh)
        if not bool(off.any()):
            return
        which = off.nonzero()[:, 0]
        if turn == 2:
            certificate[which] = torch.inf
            return
        part = batch.select(which)
        part = Batch(part.loss, part.operator, dual[which], fresh[which])
        scores[which], dual[which], certificate[which] = _newton_cg(
            part, target, steps, work
        )


def _newton_cg(
    batch: Batch, target: float, steps: int, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    scores, dual = torch.empty_like(batch.scores), torch.empty_like(batch.dual)
    count = len(scores)
    certificate = scores.new_full((count,), torch.inf)
    # Which problem each member is; -1 once its answer is stored.
    place = torch.arange(count, device=scores.device)
    best, stalled = certificate.clone(), torch.zeros_like(certificate)
    finest = 1e-3 if scores.dtype == torch.float32 else 1e-7
    residual, curvature = residual_and_curvature(batch, work)
    for step in range(steps + 1):
        pulled = batch.operator(residual, work.scratch_like("pulled", residual))
        work.count(batch.operator, residual)
        # Below zero it is rounding, and no reason to certify anything.
        square = inner(residual, pulled, work).abs()
        now = (square / squared_norm(batch, work)).sqrt()
        now = torch.nan_to_num(now, nan=torch.inf)
        # Rounding sets a floor: stop where steps no longer help.
        stalled = torch.where(now < 0.5 * best, 0.0, stalled + 1)
        best = torch.minimum(best, now)
        done = (now <= target) | (stalled >= 12) | (now > 1e4 * best)
        done |= (stalled >= 3) & (now <= ACCEPTED_TOL[batch.scores.dtype])
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
        residual, curvature = take_safeguarded_step(
            batch,
            work,
            *solve_newton_system(
                batch.operator, curvature, residual, pulled, square, forcing, work
            ),
        )
    return scores, dual, certificate


def factor_certificates(batch: Batch, residual: Tensor, work: Work) -> Tensor:
    """(problem,) the certificate, in the type of the answers.

    Coarser products lose it: where most of a residual is sent to nothing, what is left
    is rounding, at times below zero, and would certify anything.
    """
    pulled = batch.operator(residual)
    work.count(batch.operator, residual)
    square = inner(residual, pulled, work).abs()
    return (square / squared_norm(batch, work)).sqrt()
