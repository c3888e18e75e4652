"""Folds that scale columns by their own rows, on the factor of all rows.

Standardised within the fold, every fold has columns of its own scale and so a Gram
matrix of its own. Taking rows out changes the scales little, though: the factor of the
rows scaled by all of them, with the fold's rows removed, gives Newton steps that are
nearly right, and only what a step does to the scores has to be exact. That needs no
Gram matrix: with weights a on the rows it is X diag(s^2 / s_f^2) X'a, two products with
X for all folds at once. What converges that way is certified as everything else; what
does not is left to the fold's own factor.
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
MIN_VARIANCE_RATIO = 1e-4
"""Least variance of a fold's column, in that of all rows, for its scale to be exact."""


@dataclass(frozen=True)
class FoldScales:
    """Column scales of folds.

    Attributes:
        rows: (n, d) rows, centred and scaled by all of them.
        ratio: (fold, d) variance of all rows over that of the fold's.
        valid: (fold,) whether no column all but vanishes in the fold.
    """

    rows: Tensor
    ratio: Tensor
    valid: Tensor

    def select(self, folds: Tensor) -> "FoldScales":
        """The folds ``folds`` (indices)."""
        return FoldScales(self.rows, self.ratio[folds], self.valid[folds])

    def weights(self, alpha: Tensor) -> Tensor:
        """(fold, 1, d) probe weights on ``rows``, from (fold, 1, n) row weights."""
        return (alpha @ self.rows) * self.ratio[:, None]

    def scores(self, alpha: Tensor) -> Tensor:
        """(fold, 1, n) what those weights add to the scores."""
        return self.weights(alpha) @ self.rows.T


def fold_scales(rows: Tensor, weight: Tensor) -> FoldScales:
    """Scales of folds.

    Args:
        rows: (n, d) centred and scaled by all rows; columns of zeros are constant.
        weight: (fold, n) sample weights, 0 on rows taken out.
    """
    share = weight / weight.sum(1, keepdim=True)
    variance = share @ rows.square() - (share @ rows).square()
    constant = rows.abs().amax(0) == 0
    sound = ((variance > MIN_VARIANCE_RATIO) | constant).all(1)
    ratio = torch.where(
        variance > MIN_VARIANCE_RATIO, 1 / variance.clamp(min=MIN_VARIANCE_RATIO), 1.0
    )
    return FoldScales(rows, ratio, sound)


def solve_rescaled(
    batch: Batch, scales: FoldScales, iterations: torch.dtype, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve two-class folds whose scores are ``scales.scores`` of their row weights.

    Args:
        batch: In float64, started as if all folds had the scales of all rows.
        scales: Of the same folds.
        iterations: Type of the inner products.
        work: Where to count the work.

    Returns:
        (fold, 1, n) scores, (fold, 1, n) row weights alpha and the (fold,) certificate.
    """
    target = TOL[torch.float64]
    every = batch = _rescale(batch, scales)
    whole = scales
    scores, alpha = torch.empty_like(batch.scores), torch.empty_like(batch.scores)
    certificate = scores.new_full((len(scores),), torch.inf)
    place = torch.arange(len(scores), device=scores.device)
    best, stalled = certificate.clone(), torch.zeros_like(certificate)
    fast = batch.operator.to(iterations)
    # The factor's metric is the fold's up to its scales.
    margin = margins = scales.ratio.amax(1).clamp(min=1.0).sqrt()
    residual, curvature = residual_and_curvature(batch, work)
    for step in range(MAX_STEPS + 1):
        rough = work.scratch_like("rough", residual, iterations).copy_(residual)
        pulled = fast(rough, work.scratch_like("pulled", rough))
        work.count(fast, rough)
        square = inner(rough, pulled, work).clamp(min=0)
        now = (square.double() / squared_norm(batch, work)).sqrt() * margin
        now = torch.nan_to_num(now, nan=torch.inf)
        stalled = torch.where(now < 0.5 * best, 0.0, stalled + 1)
        best = torch.minimum(best, now)
        done = (now <= target) | (stalled >= 6) | (now > 1e4 * best)
        done |= (stalled >= 3) & (now <= ACCEPTED_TOL[torch.float64])
        done |= step == MAX_STEPS
        new = done & (place >= 0)
        if bool(new.any()):
            out = place[new]
            which = new.nonzero()[:, 0]
            exact = factor_certificates(batch.select(which), residual[which], work)
            scores[out] = batch.scores[new]
            certificate[out] = torch.nan_to_num(exact * margin[which], nan=torch.inf)
            weight = batch.operator.weight.expand(len(place), -1, -1)[new]
            alpha[out] = batch.dual[new] - weight * batch.scores[new]
            place = torch.where(new, -1, place)
        live = place >= 0
        if not bool(live.any()):
            break
        if int(live.sum()) < 0.9 * len(place):
            keep = live.nonzero()[:, 0]
            place, batch, fast = place[keep], batch.select(keep), fast.select(keep)
            best, stalled, margin = best[keep], stalled[keep], margin[keep]
            rough, pulled, square = rough[keep], pulled[keep], square[keep]
            now, scales = now[keep], scales.select(keep)
            residual, curvature = residual[keep], curvature.select(keep)
        # The step is wrong by what the scales changed: no use in solving it further.
        forcing = now.clamp(max=0.1).clamp(min=1e-2)
        first = residual.clone()
        # A step more costs two products with the rows: solve it as far as asked.
        move, lift, _ = solve_newton_system(
            fast, curvature, rough, pulled, square, forcing, work, predict_stop=False
        )
        weight = batch.operator.weight
        change = _sum_to_zero((move - weight.to(move) * lift).double(), weight)
        exact = scales.scores(change)
        bend = curvature.diagonal + weight
        shift = (first - bend * exact).sum(-1) / bend.sum(-1)
        exact += shift[:, :, None]
        residual, curvature = take_safeguarded_step(
            batch,
            work,
            change + weight * exact,
            exact,
            inner(first, exact, work),
        )
    weight = every.operator.weight
    fresh = _with_intercept(whole.scores(alpha), scores, weight)
    # What was carried along and strayed from it gets no certificate.
    certificate[has_drifted(scores, fresh)] = torch.inf
    dual = alpha + weight * fresh
    certificate = local_certificates(every, fresh, dual, certificate, work, margins)
    return fresh, alpha, certificate


def _rescale(batch: Batch, scales: FoldScales) -> Batch:
    """The same row weights with the scores that they have in each fold's scales."""
    weight = batch.operator.weight
    alpha = _sum_to_zero(batch.dual - weight * batch.scores, weight)
    scores = _with_intercept(scales.scores(alpha), batch.scores, weight)
    return Batch(batch.loss, batch.operator, alpha + weight * scores, scores)


def _with_intercept(scores: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """``scores``, shifted to the mean of ``wanted`` over the rows kept."""
    kept = (weight > 0).double()
    off = ((wanted - scores) * kept).sum(-1) / kept.sum(-1)
    return scores + off[:, :, None]


def _sum_to_zero(alpha: Tensor, weight: Tensor) -> Tensor:
    """Row weights that sum to zero over the rows kept, as the intercept has them."""
    kept = (weight > 0).double()
    return (
        alpha - (alpha * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True)
    ) * kept
