"""Folds on factors of their own, each of which serves all label vectors."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # pyright: ignore

from probes.solvers.newton.newton_cg import minimize
from probes.solvers.objective.batch import Batch
from probes.solvers.objective.factor import Operator
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import FitJob, column_std, one_hot, row_weights

MAX_REFACTORS = 6
"""Most factors tried to start a fit with many rows."""
MAX_PILOTS = 32
"""Up to so many label vectors are all fitted on all rows to start their folds."""


@dataclass(frozen=True)
class _Start:
    """Where label vectors start, from fits on all rows.

    Attributes:
        scores: (label, class, n), or (class, n) towards a row's class, for all.
        alpha: Pull of the rows, the same.
        weight: (m, n) the factor's weights.
    """

    scores: Tensor
    alpha: Tensor
    weight: Tensor


def fit_all_rows(job: FitJob, rows: Tensor, loss: Loss, target: float):
    """Fit all label vectors on all rows, roughly: factor, scores, alpha, curvature.

    Where classes are nearly separable most rows' curvature vanishes and a factor of
    constant weights is no use: it is replaced by that of the curvature found so far.
    """
    labels, columns, n = loss.target.shape
    # Exact at the start for several classes; for two, a guess at where they end.
    share = 0.1 if columns == 1 else 1 / columns
    weight = (share * loss.weight).mean(0).clamp(min=1e-12)
    scores = alpha = rows.new_zeros((labels, columns, n))
    factor = job.factor(rows, weight)
    for turn in range(MAX_REFACTORS):
        operator = Operator(factor, factor.weight[None])
        # The same point in the new factor's terms: alpha = c - w E.
        dual = alpha + factor.weight * scores
        last = job.wide or turn + 1 == MAX_REFACTORS
        scores, dual, certificate = minimize(
            Batch(loss, operator, dual, operator(dual)),
            tol=target,
            iteration_dtype=job.iteration_dtype if columns == 1 or job.wide else None,
            steps=60 if last else 8,
            fall_back=last,
            work=job.work,
        )
        alpha = dual - factor.weight * scores
        if last or bool((certificate <= target).all()):
            break
        weight = loss.curvature(loss.probabilities(scores)).mean(0)
        if labels == 1:
            weight = job.class_weights(weight)
        else:
            weight = weight.mean(0, keepdim=True)
        factor = job.factor(rows, weight.clamp(min=1e-12))
    return factor, scores, alpha, loss.curvature(loss.probabilities(scores))


def fit_each_fold(job: FitJob, folds: Sequence[int]) -> None:
    """Fit all label vectors of the folds ``folds``, each fold on its own factor.

    A fold whose rows have no factor is left as it is.
    """
    x, options, codes = job.x, job.options, job.codes
    labels = len(codes)
    scaled = options.standardize == "fold"
    pilot = codes if labels <= MAX_PILOTS else codes[: MAX_PILOTS // 2]
    target = one_hot(pilot, job.classes)
    weights = row_weights(pilot, job.classes, job.base[None], options)
    weights = weights.expand(len(pilot), -1, -1).clamp(min=1e-9 * float(weights.max()))
    whole = Loss(target, weights)
    rows = x / column_std(x, job.base) if scaled else x
    _, scores, alpha, curvature = fit_all_rows(job, rows, whole, 1e-3)
    # Each class's own curvature, unless label vectors that differ share the factor.
    if labels == 1:
        fixed = job.class_weights(curvature[0]).clamp(min=1e-12)
    else:
        mean = curvature.mean(1, keepdim=True).clamp(min=1e-12)
        fixed = mean.log().mean(0).exp()
    if labels > MAX_PILOTS and job.columns == 1:
        # New label vectors start from the pilots' mean pull towards a row's class.
        side = 2 * target - 1
        scores, alpha = (scores * side).mean(0), (alpha * side).mean(0)
    begin = _Start(scores, alpha, fixed)
    for fold in folds:
        with suppress(LinAlgError):
            _fit_fold(job, fold, begin)


def _fit_fold(job: FitJob, fold: int, begin: _Start) -> None:
    """All label vectors of one fold on the factor of its training rows."""
    options, codes, labels = job.options, job.codes, len(job.codes)
    scores, alpha, fixed = begin.scores, begin.alpha, begin.weight
    train, test = job.train[fold].nonzero()[:, 0], job.test[fold].nonzero()[:, 0]
    inside, outside = job.x[train], job.x[test]
    centre = inside.mean(0)
    scaled = options.standardize == "fold"
    size = column_std(inside, job.base[train]) if scaled else torch.ones_like(centre)
    inside, outside = (inside - centre) / size, (outside - centre) / size
    factor = job.factor(inside, fixed[:, train], outside)
    operator = Operator(factor, factor.weight[None])
    for part in job.chunks(labels, len(train), factors=len(fixed)):
        local = codes[part][:, train]
        goal = one_hot(local, job.classes)
        weights = row_weights(local, job.classes, job.base[train][None], options)
        if labels <= MAX_PILOTS:
            start = alpha[part][:, :, train]
            start = start + factor.weight * scores[part][:, :, train]
        elif job.columns == 1:
            start = alpha[:, train] + factor.weight * scores[:, train]
            start = start * (2 * goal - 1)
        else:
            start = torch.zeros_like(goal)
        batch = Batch(Loss(goal, weights), operator, start, operator(start))
        held, final, certificate = job.solve(batch, job.wide)
        reach = factor.other_scores(final.double()).to(job.scores)
        job.scores[part, :, test] = reach
        job.store_dual(part, fold, final, held, operator.weight, inside)
        if job.coef is not None and job.intercept is not None:
            job.coef[part, fold] /= size
            job.intercept[part, fold] -= job.coef[part, fold] @ centre
        job.certificate[part, fold] = certificate.double()
