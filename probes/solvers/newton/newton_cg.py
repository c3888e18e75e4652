"""Safeguarded Newton-CG in row space, for many logistic problems that share one factor.

Each problem minimizes 0.5 ||W||^2 + sum_i s_i loss(y_i, x_i W + b), scikit-learn's objective
with C inside the weights s and the intercept b not penalized. The problems of a batch share
the rows X and a factor Q = A H^-1 A' (see ``probes.solvers.objective.factor``); they differ in
labels and row weights, so folds, permutations and control labels are members of one batch. With
parameters H^-1 A'c, the scores are E = Q c, the gradient is -A'r with r = a - c + w E (a the
negative gradient of the loss by the scores, w the factor's weights), and a Newton step solves

    (I + (W - w) Q) u = r     by conjugate gradients in the inner product u'Qv,

with one product with Q an iteration for all problems and classes at once. r'Qr is the squared
gradient norm in the metric of H^-1, to first order the squared distance to the optimum in the
metric of H. It is the certificate of each problem, relative to the norm of the parameters.
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
"""Largest certificate of a solved problem, by type of the answer."""
TOL = {torch.float64: 1e-9, torch.float32: 5e-6}
"""Certificate that solvers aim at."""
MAX_DIRECT_SIZE = 300
"""Largest classes x rows for which one problem is solved directly."""
RESIDUAL_TOL = 1e-2
"""Relative residual to which a system is solved if only the step's length is needed."""


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
        tol: Certificate to reach; ``TOL`` of the type by default.
        iteration_dtype: Type of the products inside iterations. Float32 inside a float64 solve
            halves the cost and keeps the accuracy, because outer residuals are float64.
        steps: Most Newton steps.
        fall_back: Whether unsolved problems are solved directly.
        work: Counters and scratch memory.

    Returns:
        (problem, class, n) scores and dual values c at the optimum, and the (problem,)
        certificate: gradient norm in the metric of H^-1 over the norm of the parameters in H.
        Unsolved problems have one above ``ACCEPTED_TOL``.
    """
    dtype = batch.scores.dtype
    tol = TOL[dtype] if tol is None else tol
    iteration_dtype = dtype if iteration_dtype is None else iteration_dtype
    work = Work() if work is None else work
    batch = batch if batch.loss.binary else centered(batch)
    problem_size = batch.scores[0].numel()
    if (
        problem_size <= MAX_DIRECT_SIZE
        and len(batch.scores) * problem_size**3 <= MAX_DIRECT_SIZE**3
    ):
        return solve_direct(batch, tol)
    if batch.loss.binary and batch.operator.factor.basis is not None:
        answer = minimize_primal(batch, tol, iteration_dtype, steps, work)
        return _solve_rest_directly(batch, *answer, tol, fall_back)
    if batch.operator.factor.matrix is None:
        return _solve_safeguarded(batch, tol, steps, fall_back, work)
    # A loose tolerance asks for a starting point without a certificate.
    accepted = max(ACCEPTED_TOL[dtype], tol)
    if tol <= ACCEPTED_TOL[dtype] and dispatch.supports_softmax(batch):
        answer = dispatch.solve_softmax(batch, tol, accepted, iteration_dtype, LIMITS.steps, work)
        scores, dual, certificate = answer
        unsolved = (~(certificate <= accepted)).nonzero()[:, 0]
        if len(unsolved):
            sub_batch = batch.select(unsolved)
            scores[unsolved], dual[unsolved], certificate[unsolved] = _solve_mixed_then_safeguarded(
                sub_batch, tol, accepted, iteration_dtype, steps, fall_back, work
            )
    else:
        scores, dual, certificate = _solve_mixed_then_safeguarded(
            batch, tol, accepted, iteration_dtype, steps, fall_back, work
        )
    return _solve_rest_directly(batch, scores, dual, certificate, tol, fall_back)


def _solve_mixed_then_safeguarded(
    batch: Batch,
    tol: float,
    accepted_tol: float,
    iteration_dtype: torch.dtype,
    steps: int,
    fall_back: bool,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mixed precision first, safeguarded steps for the unsolved problems."""
    answer = solve_mixed(batch, tol, accepted_tol, iteration_dtype, steps, work)
    scores, dual, certificate = answer
    unsolved = ~(certificate <= accepted_tol)
    if bool(unsolved.any()):
        idx = unsolved.nonzero()[:, 0]
        sub_batch = batch.select(idx)
        scores[idx], dual[idx], certificate[idx] = _solve_safeguarded(
            sub_batch, tol, steps, fall_back, work
        )
    if not batch.loss.binary and tol <= ACCEPTED_TOL[scores.dtype]:
        certificate = local_certificates(batch, scores, dual, certificate, work)
    return scores, dual, certificate


def _solve_safeguarded(
    batch: Batch, tol: float, steps: int, fall_back: bool, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Safeguarded Newton-CG in one precision."""
    scores, dual, certificate = _newton_cg(batch, tol, steps, work)
    _recompute_scores(batch, scores, dual, certificate, tol, steps, work)
    certificate = local_certificates(batch, scores, dual, certificate, work)
    return _solve_rest_directly(batch, scores, dual, certificate, tol, fall_back)


def local_certificates(
    batch: Batch,
    scores: Tensor,
    dual: Tensor,
    certificate: Tensor,
    work: Work,
    margin: Tensor | None = None,
) -> Tensor:
    """Certificates in the metric of the local Hessian, at each answer.

    Certificates so far are in the factor's metric, which is meaningless where separable rows have
    lost their curvature. For two classes, the smallest ratio of a row's curvature to its fixed
    weight bounds the local certificate. If that bound is too weak, and for several classes, the
    remaining Newton step is computed.

    Args:
        batch: Problems.
        scores: (problem, class, n) answers.
        dual: (problem, class, n) answers.
        certificate: (problem,) in the factor's metric.
        work: Counters and scratch memory.
        margin: (problem,) factor on computed local certificates.
    """
    here = Batch(batch.loss, batch.operator, dual, scores)
    accepted_tol = ACCEPTED_TOL[scores.dtype]
    if batch.loss.binary:
        fixed = batch.operator.weight
        curvature_diagonal = residual_and_curvature(here, work)[1].diagonal + fixed
        # Rows left out have neither; their 0 / 0 counts as 1.
        ratio = torch.where(fixed > 0, curvature_diagonal / fixed, 1.0).amin((1, 2)).clamp(max=1)
        bound = certificate / ratio
    else:
        bound = torch.full_like(certificate, torch.inf)
    undecided = (certificate <= accepted_tol) & ~(bound <= accepted_tol)
    if bool(undecided.any()):
        idx = undecided.nonzero()[:, 0]
        sub_batch = here.select(idx)
        residual, curvature = residual_and_curvature(sub_batch, work)
        q_residual = sub_batch.operator(residual, work.scratch_like("q_residual", residual))
        work.count(sub_batch.operator, residual)
        residual2 = inner(residual, q_residual, work).abs()
        forcing = torch.full_like(residual2, RESIDUAL_TOL)
        step, score_step, slope = solve_newton_system(
            sub_batch.operator,
            curvature,
            residual,
            q_residual,
            residual2,
            forcing,
            work,
            max_unsolved=0.0,
            predict_stop=False,
        )
        # An unconverged step is too short and certifies nothing.
        remaining = residual - curvature.add_to(step, score_step)
        work.count(sub_batch.operator, remaining)
        remaining2 = inner(remaining, sub_batch.operator(remaining), work).abs()
        slope = torch.where(remaining2 <= 4 * RESIDUAL_TOL**2 * residual2, slope, torch.inf)
        local = (slope.abs() / local_squared_norm(sub_batch, curvature, work)).sqrt()
        local = local if margin is None else local * margin[idx]
        local = torch.nan_to_num(local, nan=torch.inf)
        bound[idx] = torch.maximum(certificate[idx], local)
    return torch.where(certificate <= accepted_tol, bound, certificate)


def _solve_rest_directly(
    batch: Batch, scores: Tensor, dual: Tensor, certificate: Tensor, tol: float, fall_back: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve unsolved problems directly, in place, from where conjugate gradients stopped."""
    unsolved = ~(certificate <= max(tol, ACCEPTED_TOL[scores.dtype]))
    for problem in unsolved.nonzero()[:, 0].tolist() if fall_back else ():
        idx = torch.tensor([problem], device=scores.device)
        sub_batch = batch.select(idx)
        sub_batch = Batch(sub_batch.loss, sub_batch.operator, dual[idx], scores[idx])
        scores[idx], dual[idx], new_certificate = solve_direct(sub_batch, tol)
        certificate[idx] = new_certificate.to(certificate)  # direct solves use float64
    return scores, dual, certificate


def _recompute_scores(
    batch: Batch,
    scores: Tensor,
    dual: Tensor,
    certificate: Tensor,
    tol: float,
    steps: int,
    work: Work,
) -> None:
    """Recompute scores from dual values, in place, and solve drifted problems again.

    Scores are updated step by step; see ``has_drifted``. Problems without a certificate are not
    solved again.
    """
    claimed = certificate <= max(tol, ACCEPTED_TOL[scores.dtype])
    for attempt in range(3):
        recomputed = batch.operator(dual)
        work.count(batch.operator, dual)
        drifted = has_drifted(scores, recomputed) & claimed
        scores.copy_(recomputed)
        if not bool(drifted.any()):
            return
        idx = drifted.nonzero()[:, 0]
        if attempt == 2:
            certificate[idx] = torch.inf
            return
        sub_batch = batch.select(idx)
        sub_batch = Batch(sub_batch.loss, sub_batch.operator, dual[idx], recomputed[idx])
        scores[idx], dual[idx], certificate[idx] = _newton_cg(sub_batch, tol, steps, work)


def _newton_cg(batch: Batch, tol: float, steps: int, work: Work) -> tuple[Tensor, Tensor, Tensor]:
    """Iterate until each problem is certified or stalls; return scores, dual, certificates."""
    scores, dual = torch.empty_like(batch.scores), torch.empty_like(batch.dual)
    n_problems = len(scores)
    certificate = scores.new_full((n_problems,), torch.inf)
    # Problem of each member of the batch; -1 once its answer is stored.
    original_idx = torch.arange(n_problems, device=scores.device)
    best, n_stalled = certificate.clone(), torch.zeros_like(certificate)
    min_forcing = 1e-3 if scores.dtype == torch.float32 else 1e-7
    residual, curvature = residual_and_curvature(batch, work)
    for step in range(steps + 1):
        q_residual = batch.operator(residual, work.scratch_like("q_residual", residual))
        work.count(batch.operator, residual)
        # A negative square is rounding and must not certify anything.
        residual2 = inner(residual, q_residual, work).abs()
        now = (residual2 / squared_norm(batch, work)).sqrt()
        now = torch.nan_to_num(now, nan=torch.inf)
        # Stop at the floor set by rounding.
        n_stalled = torch.where(now < 0.5 * best, 0.0, n_stalled + 1)
        best = torch.minimum(best, now)
        done = (now <= tol) | (n_stalled >= 12) | (now > 1e4 * best)
        done |= (n_stalled >= 3) & (now <= ACCEPTED_TOL[batch.scores.dtype])
        done |= step == steps
        ending = done & (original_idx >= 0)
        if bool(ending.any()):
            finished = original_idx[ending]
            scores[finished], dual[finished] = (batch.scores[ending], batch.dual[ending])
            certificate[finished] = now[ending]
            original_idx = torch.where(ending, -1, original_idx)
        active = original_idx >= 0
        n_active = int(active.sum())
        if n_active == 0:
            break
        if n_active < 0.9 * len(original_idx):
            keep = active.nonzero()[:, 0]
            original_idx, batch = original_idx[keep], batch.select(keep)
            best, n_stalled = best[keep], n_stalled[keep]
            residual, q_residual = residual[keep], q_residual[keep]
            now, residual2 = now[keep], residual2[keep]
            curvature = curvature.select(keep)
        forcing = torch.maximum(now.clamp(max=0.1), 0.3 * tol / now)
        forcing = forcing.clamp(min=min_forcing)
        residual, curvature = take_safeguarded_step(
            batch,
            work,
            *solve_newton_system(
                batch.operator, curvature, residual, q_residual, residual2, forcing, work
            ),
        )
    return scores, dual, certificate


def factor_certificates(batch: Batch, residual: Tensor, work: Work) -> Tensor:
    """(problem,) certificates in the factor's metric, in the type of the answers.

    Products of lower precision do not suffice: if most of a residual cancels, the remainder is
    rounding, may be negative, and would certify anything.
    """
    q_residual = batch.operator(residual)
    work.count(batch.operator, residual)
    residual2 = inner(residual, q_residual, work).abs()
    return (residual2 / squared_norm(batch, work)).sqrt()
