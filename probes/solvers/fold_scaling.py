"""Folds that scale columns by their own rows, on the shared factor of all rows.

With columns standardized within the fold, every fold has its own Gram matrix. Leaving rows out
changes the scales little, though. The factor of rows scaled by all of them, with the fold's rows
removed, gives nearly exact Newton steps, and only the effect of a step on the scores must be
exact. That effect needs no Gram matrix: with row weights alpha it is X diag(s^2 / s_f^2) X'alpha,
two products with X for all folds at once. Converged folds are certified as everywhere else;
others fall back to the fold's own factor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.solvers.newton.conjugate_gradients import solve_newton_system
from probes.solvers.newton.newton_cg import (
    ACCEPTED_TOL,
    TOL,
    factor_certificates,
    local_certificates,
)
from probes.solvers.objective.batch import (
    Batch,
    Work,
    has_drifted,
    inner,
    residual_and_curvature,
    squared_norm,
    take_safeguarded_step,
)

MAX_STEPS = 40
"""Most Newton steps."""
MIN_VARIANCE_RATIO = 1e-4
"""Smallest variance of a fold's column, relative to all rows, whose scale is exact."""


@dataclass(frozen=True)
class FoldScales:
    """Column scales of folds.

    Attributes:
        rows: (n, d) rows, centered and scaled by all of them.
        ratio: (fold, d) variance over all rows divided by that over the fold's.
        valid: (fold,) whether no column nearly vanishes in the fold.
    """

    rows: Tensor
    ratio: Tensor
    valid: Tensor

    def select(self, folds: Tensor) -> "FoldScales":
        """The given folds (indices)."""
        return FoldScales(self.rows, self.ratio[folds], self.valid[folds])

    def weights(self, alpha: Tensor) -> Tensor:
        """(fold, 1, d) probe weights on ``rows``, from (fold, 1, n) row weights alpha."""
        return (alpha @ self.rows) * self.ratio[:, None]

    def scores(self, alpha: Tensor) -> Tensor:
        """(fold, 1, n) scores of those probe weights, without intercept."""
        return self.weights(alpha) @ self.rows.T


def fold_scales(rows: Tensor, weight: Tensor) -> FoldScales:
    """Column scales of folds.

    Args:
        rows: (n, d) centered and scaled by all rows; columns of zeros are constant.
        weight: (fold, n) sample weights, 0 on rows left out.
    """
    normalized = weight / weight.sum(1, keepdim=True)
    variance = normalized @ rows.square() - (normalized @ rows).square()
    constant = rows.abs().amax(0) == 0
    sound = ((variance > MIN_VARIANCE_RATIO) | constant).all(1)
    ratio = torch.where(
        variance > MIN_VARIANCE_RATIO, 1 / variance.clamp(min=MIN_VARIANCE_RATIO), 1.0
    )
    return FoldScales(rows, ratio, sound)


def solve_rescaled(
    batch: Batch, scales: FoldScales, iteration_dtype: torch.dtype, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve two-class folds whose scores are ``scales.scores`` of their row weights.

    Args:
        batch: In float64, started as if all folds had the scales of all rows.
        scales: Of the same folds.
        iteration_dtype: Type of the products inside iterations.
        work: Counters and scratch memory.

    Returns:
        (fold, 1, n) scores, (fold, 1, n) row weights alpha and the (fold,) certificate.
    """
    tol = TOL[torch.float64]
    full_batch = batch = _rescale(batch, scales)
    full_scales = scales
    scores, alpha = torch.empty_like(batch.scores), torch.empty_like(batch.scores)
    certificate = scores.new_full((len(scores),), torch.inf)
    fold_idx = torch.arange(len(scores), device=scores.device)
    best, n_stalled = certificate.clone(), torch.zeros_like(certificate)
    fast = batch.operator.to(iteration_dtype)
    # The factor's metric differs from the fold's by its scales only.
    margin = margins = scales.ratio.amax(1).clamp(min=1.0).sqrt()
    residual, curvature = residual_and_curvature(batch, work)
    for step in range(MAX_STEPS + 1):
        fast_residual = work.scratch_like("fast_residual", residual, iteration_dtype).copy_(
            residual
        )
        q_residual = fast(fast_residual, work.scratch_like("q_residual", fast_residual))
        work.count(fast, fast_residual)
        residual2 = inner(fast_residual, q_residual, work).clamp(min=0)
        now = (residual2.double() / squared_norm(batch, work)).sqrt() * margin
        now = torch.nan_to_num(now, nan=torch.inf)
        n_stalled = torch.where(now < 0.5 * best, 0.0, n_stalled + 1)
        best = torch.minimum(best, now)
        done = (now <= tol) | (n_stalled >= 6) | (now > 1e4 * best)
        done |= (n_stalled >= 3) & (now <= ACCEPTED_TOL[torch.float64])
        done |= step == MAX_STEPS
        ending = done & (fold_idx >= 0)
        if bool(ending.any()):
            finished = fold_idx[ending]
            idx = ending.nonzero()[:, 0]
            reached = factor_certificates(batch.select(idx), residual[idx], work)
            scores[finished] = batch.scores[ending]
            certificate[finished] = torch.nan_to_num(reached * margin[idx], nan=torch.inf)
            weight = batch.operator.weight.expand(len(fold_idx), -1, -1)[ending]
            alpha[finished] = batch.dual[ending] - weight * batch.scores[ending]
            fold_idx = torch.where(ending, -1, fold_idx)
        active = fold_idx >= 0
        if not bool(active.any()):
            break
        if int(active.sum()) < 0.9 * len(fold_idx):
            keep = active.nonzero()[:, 0]
            fold_idx, batch, fast = (fold_idx[keep], batch.select(keep), fast.select(keep))
            best, n_stalled, margin = best[keep], n_stalled[keep], margin[keep]
            fast_residual, q_residual, residual2 = (
                fast_residual[keep],
                q_residual[keep],
                residual2[keep],
            )
            now, scales = now[keep], scales.select(keep)
            residual, curvature = residual[keep], curvature.select(keep)
        # The step ignores the change of scales, so solving it more accurately is useless.
        forcing = now.clamp(max=0.1).clamp(min=1e-2)
        old_residual = residual.clone()
        # Another step costs two products with the rows: solve this one to its forcing term.
        d_dual, score_step, _ = solve_newton_system(
            fast, curvature, fast_residual, q_residual, residual2, forcing, work, predict_stop=False
        )
        weight = batch.operator.weight
        d_alpha = _sum_to_zero((d_dual - weight.to(d_dual) * score_step).double(), weight)
        d_scores = scales.scores(d_alpha)
        local_curvature = curvature.diagonal + weight
        shift = (old_residual - local_curvature * d_scores).sum(-1) / local_curvature.sum(-1)
        d_scores += shift[:, :, None]
        residual, curvature = take_safeguarded_step(
            batch, work, d_alpha + weight * d_scores, d_scores, inner(old_residual, d_scores, work)
        )
    weight = full_batch.operator.weight
    recomputed = _with_intercept(full_scales.scores(alpha), scores, weight)
    # Drifted scores get no certificate.
    certificate[has_drifted(scores, recomputed)] = torch.inf
    dual = alpha + weight * recomputed
    certificate = local_certificates(full_batch, recomputed, dual, certificate, work, margins)
    return recomputed, alpha, certificate


def _rescale(batch: Batch, scales: FoldScales) -> Batch:
    """The same row weights, with their scores in each fold's scales."""
    weight = batch.operator.weight
    alpha = _sum_to_zero(batch.dual - weight * batch.scores, weight)
    scores = _with_intercept(scales.scores(alpha), batch.scores, weight)
    return Batch(batch.loss, batch.operator, alpha + weight * scores, scores)


def _with_intercept(scores: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """``scores``, shifted to the mean of ``reference`` over the rows kept."""
    is_kept = (weight > 0).double()
    shift = ((reference - scores) * is_kept).sum(-1) / is_kept.sum(-1)
    return scores + shift[:, :, None]


def _sum_to_zero(alpha: Tensor, weight: Tensor) -> Tensor:
    """Row weights shifted to sum to zero over the rows kept, as a free intercept requires."""
    is_kept = (weight > 0).double()
    return (
        alpha - (alpha * is_kept).sum(-1, keepdim=True) / is_kept.sum(-1, keepdim=True)
    ) * is_kept
