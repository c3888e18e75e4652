"""Folds on factors of their own, each serving all label vectors."""

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
"""Most factors tried for the fit on all rows, if rows are many."""
MAX_PILOTS = 32
"""Largest number of label vectors that are all fitted on all rows to start their folds."""


@dataclass(frozen=True)
class _Start:
    """Starting points of label vectors, from fits on all rows.

    Attributes:
        scores: (label, class, n); or (class, n), signed towards a row's class, for all labels.
        alpha: Negative gradient of the loss by the scores, the same shape.
        weight: (m, n) weights of the factor.
    """

    scores: Tensor
    alpha: Tensor
    weight: Tensor


def fit_all_rows(job: FitJob, rows: Tensor, loss: Loss, tol: float):
    """Fit all label vectors on all rows to ``tol``: factor, scores, alpha, curvature.

    Where classes are nearly separable, most rows lose their curvature and a factor of constant
    weights is useless; it is replaced by that of the latest curvature.
    """
    n_labels, columns, n = loss.target.shape
    # Exact at zero scores for several classes; for two, a guess of the final curvature.
    share = 0.1 if columns == 1 else 1 / columns
    weight = (share * loss.weight).mean(0).clamp(min=1e-12)
    scores = alpha = rows.new_zeros((n_labels, columns, n))
    factor = job.factor(rows, weight)
    for attempt in range(MAX_REFACTORS):
        operator = Operator(factor, factor.weight[None])
        # The same point in terms of the new factor: alpha = c - w E.
        dual = alpha + factor.weight * scores
        is_last = job.wide or attempt + 1 == MAX_REFACTORS
        scores, dual, certificate = minimize(
            Batch(loss, operator, dual, operator(dual)),
            tol=tol,
            iteration_dtype=job.iteration_dtype if columns == 1 or job.wide else None,
            steps=60 if is_last else 8,
            fall_back=is_last,
            work=job.work,
        )
        alpha = dual - factor.weight * scores
        if is_last or bool((certificate <= tol).all()):
            break
        weight = loss.curvature(loss.probabilities(scores)).mean(0)
        if n_labels == 1:
            weight = job.class_weights(weight)
        else:
            weight = weight.mean(0, keepdim=True)
        factor = job.factor(rows, weight.clamp(min=1e-12))
    return factor, scores, alpha, loss.curvature(loss.probabilities(scores))


def fit_each_fold(job: FitJob, folds: Sequence[int]) -> None:
    """Fit all label vectors of ``folds``, each fold on its own factor.

    A fold whose Hessian cannot be factorized is skipped.
    """
    x, options, codes = job.x, job.options, job.codes
    n_labels = len(codes)
    by_fold = options.standardize == "fold"
    pilots = codes if n_labels <= MAX_PILOTS else codes[: MAX_PILOTS // 2]
    target = one_hot(pilots, job.classes)
    weight = row_weights(pilots, job.classes, job.base[None], options)
    weight = weight.expand(len(pilots), -1, -1).clamp(min=1e-9 * float(weight.max()))
    full_loss = Loss(target, weight)
    rows = x / column_std(x, job.base) if by_fold else x
    _, scores, alpha, curvature = fit_all_rows(job, rows, full_loss, 1e-3)
    # One factor for each class, unless several label vectors share it.
    if n_labels == 1:
        fixed = job.class_weights(curvature[0]).clamp(min=1e-12)
    else:
        mean = curvature.mean(1, keepdim=True).clamp(min=1e-12)
        fixed = mean.log().mean(0).exp()
    if n_labels > MAX_PILOTS and job.columns == 1:
        # New label vectors start from the pilots' mean alpha, signed towards a row's class.
        side = 2 * target - 1
        scores, alpha = (scores * side).mean(0), (alpha * side).mean(0)
    start = _Start(scores, alpha, fixed)
    for fold in folds:
        with suppress(LinAlgError):
            _fit_fold(job, fold, start)


def _fit_fold(job: FitJob, fold: int, start: _Start) -> None:
    """Fit all label vectors of one fold on the factor of its training rows."""
    options, codes, n_labels = job.options, job.codes, len(job.codes)
    scores, alpha, fixed = start.scores, start.alpha, start.weight
    train, test = job.train[fold].nonzero()[:, 0], job.test[fold].nonzero()[:, 0]
    train_rows, test_rows = job.x[train], job.x[test]
    center = train_rows.mean(0)
    by_fold = options.standardize == "fold"
    scale = column_std(train_rows, job.base[train]) if by_fold else torch.ones_like(center)
    train_rows, test_rows = (train_rows - center) / scale, (test_rows - center) / scale
    factor = job.factor(train_rows, fixed[:, train], test_rows)
    operator = Operator(factor, factor.weight[None])
    for part in job.chunks(n_labels, len(train), n_factors=len(fixed)):
        local = codes[part][:, train]
        target = one_hot(local, job.classes)
        weights = row_weights(local, job.classes, job.base[train][None], options)
        if n_labels <= MAX_PILOTS:
            start_dual = alpha[part][:, :, train]
            start_dual = start_dual + factor.weight * scores[part][:, :, train]
        elif job.columns == 1:
            start_dual = alpha[:, train] + factor.weight * scores[:, train]
            start_dual = start_dual * (2 * target - 1)
        else:
            start_dual = torch.zeros_like(target)
        batch = Batch(Loss(target, weights), operator, start_dual, operator(start_dual))
        fold_scores, dual, certificate = job.solve(batch, job.wide)
        test_scores = factor.other_scores(dual.double()).to(job.scores)
        job.scores[part, :, test] = test_scores
        job.store_dual(part, fold, dual, fold_scores, operator.weight, train_rows)
        if job.coef is not None and job.intercept is not None:
            job.coef[part, fold] /= scale
            job.intercept[part, fold] -= job.coef[part, fold] @ center
        job.certificate[part, fold] = certificate.double()
