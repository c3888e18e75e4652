"""Logistic fits of every fold and label vector of one site, to a certified optimum.

Three solvers lead to the same optimum. *Shared*: one factor, from the fit on all rows, serves all
folds, each with its own rows removed; best for few label vectors and many folds, also where folds
scale columns by their own rows (``probes.solvers.fold_scaling``). *Primal*: few folds of many rows
need no exact factor (``probes.solvers.newton.newton_primal_rough``). *Each fold*: a factor for each
fold's training rows serves all label vectors; best for permutations, and for fits that the other
two leave unsolved.

Fits without a certificate after that, because of rounding or a matrix that cannot be factorized,
go to ``probes.solvers.last_resort`` one by one. ``README.md`` in this folder has the decision
tree and the formulas.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # pyright: ignore

from probes.solvers.compiled import dispatch
from probes.solvers.each_fold import fit_all_rows, fit_each_fold
from probes.solvers.fold_scaling import fold_scales, solve_rescaled
from probes.solvers.last_resort import fit_uncertified
from probes.solvers.newton.initial_fit import initial_fit
from probes.solvers.newton.newton_cg import ACCEPTED_TOL, TOL
from probes.solvers.newton.newton_cg_mixed import LIMITS
from probes.solvers.newton.newton_primal_rough import fit_primal
from probes.solvers.objective.batch import Batch, Work
from probes.solvers.objective.factor import (
    MAX_SWEPT_ROWS,
    Factor,
    Operator,
    factor_gram,
    floor_weight,
    gram_matrix,
    remove_rows,
)
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import (
    FitJob,
    LogisticOptions,
    centered_rows,
    column_std,
    one_hot,
    row_weights,
)
from probes.solvers.uncertified import UncertifiedFit
from probes.splits.folds import Folds

MAX_SHARED_LABELS = 8
"""Number of label vectors from which a factor for each fold pays."""
MIN_SHARED_FOLDS = 40
"""Number of folds from which many label vectors too are fitted one by one on a shared factor."""
MIN_FOLDS_PER_CLASS_FACTOR = 4
"""Number of folds from which a factor for each class pays."""
MAX_PRIMAL_FOLDS = 40
"""Largest number of folds that are fitted in parameter space, without an exact factor."""
SINGLE_THREAD_SIZE = 500
"""Largest classes x rows for which a second thread costs more than it saves."""


@dataclass(frozen=True)
class CrossFit:
    """Held-out scores and, if requested, the probes.

    Attributes:
        scores: (label, class or 1, row) held-out decision values, NaN where no fold scores the row.
        certificate: (label, fold) relative distance to the optimum; infinite if unknown.
        coef: (label, fold, class or 1, d) in units per unit of the given rows.
        intercept: (label, fold, class or 1).
        work: Counters of products and operations.
    """

    scores: Tensor
    certificate: Tensor
    coef: Tensor | None
    intercept: Tensor | None
    work: Work

    @property
    def n_uncertified(self) -> int:
        """Number of fits that did not reach the tolerance of their type."""
        return len(self.uncertified)

    @property
    def uncertified(self) -> tuple[UncertifiedFit, ...]:
        """Fits that did not reach the tolerance of their type."""
        is_uncertified = ~(self.certificate <= ACCEPTED_TOL[self.scores.dtype])
        return tuple(
            UncertifiedFit(float(self.certificate[label, fold]), fold, label)
            for label, fold in is_uncertified.nonzero().tolist()
        )


def crossfit(
    x: Tensor,
    codes: Tensor,
    classes: int,
    folds: Folds,
    options: LogisticOptions,
    *,
    sample_weight: Tensor | None = None,
    coefficients: bool = False,
) -> CrossFit:
    """Fit and score every fold for every label vector.

    Args:
        x: (row, d) one site; converted to float64.
        codes: (label, row) class codes below ``classes``.
        classes: Number of classes, every one present in every fold's training rows.
        folds: Training and test rows.
        options: The model.
        sample_weight: (row,) >= 0.
        coefficients: Whether to return the probes too.

    Raises:
        InputError: the memory budget is too small for even one problem.
    """
    x, mean = centered_rows(x)
    n, d = x.shape
    row_weight = torch.ones(n, dtype=x.dtype, device=x.device)
    row_weight = row_weight if sample_weight is None else sample_weight.to(row_weight)
    scale = None
    if options.standardize == "all":
        scale = column_std(x, row_weight)
        x = x / scale
    job = FitJob(x, codes, classes, folds, options, row_weight, coefficients)
    wide = n <= 2 * (d + 1)
    max_labels = MAX_SHARED_LABELS if wide else max(MAX_SHARED_LABELS, d // 30)
    # Fits whose matrix cannot be factorized are left to ``fit_uncertified``.
    with few_threads(n * job.columns):
        remaining: Sequence[int] = range(len(folds))
        few_labels = len(codes) < max_labels and len(codes) <= len(folds)
        if few_labels and _supports_primal(job):
            for label in range(len(codes)):
                with suppress(LinAlgError):
                    _fit_primal(job, label)
            remaining = _uncertified_folds(job)
        # If the approximate preconditioner fails for one fold, it usually fails for all, so
        # use the shared exact factor.
        can_share = options.standardize != "fold" or _supports_fold_scaling(job)
        can_share = can_share and (few_labels or _many_small_folds(job))
        if can_share and 2 * len(remaining) > len(folds):
            shared = _SharedRows.of(job)
            for label in range(len(codes)):
                with suppress(LinAlgError):
                    _fit_shared(job, shared, label)
            remaining = _uncertified_folds(job) if options.standardize == "fold" else ()
        if remaining:
            with suppress(LinAlgError):
                fit_each_fold(job, remaining)
        fit_uncertified(job)
    if job.coef is not None and job.intercept is not None:
        job.coef /= 1 if scale is None else scale
        job.intercept -= job.coef @ torch.nan_to_num(mean)  # infinite only where coef is 0
    return CrossFit(job.scores, job.certificate, job.coef, job.intercept, job.work)


@contextmanager
def few_threads(size: int) -> Iterator[None]:
    """Use one torch thread if the systems are small; restore the number afterwards.

    Starting a second thread takes longer than its half of a (200, 200) array: leave-one-out over
    200 rows took 3.5 times as long with two threads as with one.
    """
    before = torch.get_num_threads()
    if size > SINGLE_THREAD_SIZE or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _supports_fold_scaling(job: FitJob) -> bool:
    """Whether folds with scales of their own can share the factor of all rows."""
    max_removed = int((~job.train).sum(1).max())
    return job.wide and job.columns == 1 and 0 < max_removed <= len(job.x) // 4


def _many_small_folds(job: FitJob) -> bool:
    """Whether one factor a label vector costs less than one a fold, however many label vectors.

    A label vector then costs one factor, and each of its folds a low-rank correction. On 100 rows
    that are nearly separable, a label vector took 2 ms instead of 400 ms for rows left out one by
    one, and 40 ms instead of 220 ms for 50 groups of two; for 20 groups of five it saved little.
    """
    n_removed = job.folds.left_out.shape[1]
    fits_one_factor = job.wide and job.columns == 1 and job.options.standardize != "fold"
    can_remove = 0 < n_removed <= min(MAX_SWEPT_ROWS, len(job.x) // 4)
    is_many = len(job.folds) >= MIN_SHARED_FOLDS and job.x.device.type == "cpu"
    return fits_one_factor and can_remove and is_many


def _uncertified_folds(job: FitJob) -> list[int]:
    """Folds in which some label vector has no certificate."""
    is_solved = (job.certificate <= ACCEPTED_TOL[job.options.precision]).all(0)
    return (~is_solved).nonzero()[:, 0].tolist()


def _supports_primal(job: FitJob) -> bool:
    """Whether fitting the folds from zero is cheaper than an exact factor."""
    options, folds = job.options, len(job.folds)
    is_plain = options.mixed and options.standardize != "fold"
    return is_plain and not job.wide and job.columns == 1 and folds <= MAX_PRIMAL_FOLDS


def _fit_primal(job: FitJob, label: int) -> None:
    """All folds of one label vector in parameter space, from zero."""
    codes = job.codes[label : label + 1]
    target = one_hot(codes, job.classes)
    for part in job.chunks(len(job.folds), len(job.x), n_factors=2):
        weights = job.base * job.train[part]
        weights = row_weights(codes, job.classes, weights, job.options)
        loss, tol = Loss(target, weights), TOL[torch.float64]
        params, scores, certificate = fit_primal(job.x, loss, tol, job.work)
        job.certificate[label, part] = certificate
        if job.coef is not None and job.intercept is not None:
            job.coef[label, part, 0] = params[:, :-1]
            job.intercept[label, part, 0] = params[:, -1]
        test = job.test[part].nonzero()
        job.scores[label, 0, test[:, 1]] = scores[test[:, 0], test[:, 1]].to(job.scores)


@dataclass(frozen=True)
class _SharedRows:
    """What all label vectors share.

    Attributes:
        x: (row, d) rows, scaled if folds scale their columns.
        scale: (d,) that scale, or ones.
        gram: (row, row) their inner products for two classes and wide rows, else None.
    """

    x: Tensor
    scale: Tensor
    gram: Tensor | None

    @staticmethod
    def of(job: FitJob) -> "_SharedRows":
        by_fold = job.options.standardize == "fold"
        scale = column_std(job.x, job.base) if by_fold else torch.ones_like(job.x[0])
        x = job.x / scale if by_fold else job.x
        return _SharedRows(x, scale, gram_matrix(x) if job.wide and job.columns == 1 else None)


def _fit_shared(job: FitJob, shared: _SharedRows, label: int) -> None:
    """All folds of one label vector on one factor."""
    folds, options = job.folds, job.options
    by_fold = options.standardize == "fold"
    x, scale, gram = shared.x, shared.scale, shared.gram
    n = len(x)
    codes = job.codes[label : label + 1]
    target = one_hot(codes, job.classes)
    full_loss = Loss(target, row_weights(codes, job.classes, job.base[None], options))
    if gram is not None:
        positive_weight = full_loss.weight.clamp(min=1e-9 * float(full_loss.weight.max()))
        compiled = dispatch.supports_size(len(folds), 0, gram)
        fit = initial_fit(gram, Loss(target, positive_weight), compiled=compiled)
        alpha, scores = fit.dual, fit.scores
        factor = factor_gram(gram, floor_weight(fit.weight[None], gram.diagonal()))
    else:
        factor, scores, alpha, curvature = fit_all_rows(job, x, full_loss, 1e-3)
        alpha, scores = alpha[0], scores[0]
        # A factor for each class pays if many folds share them.
        many_folds = len(folds) >= MIN_FOLDS_PER_CLASS_FACTOR
        weight = job.class_weights(curvature[0]) if many_folds else curvature.mean(1)
        factor = job.factor(x, weight.clamp(min=1e-12))
    n_removed = folds.left_out.shape[1]
    can_remove = 0 < n_removed <= (n // 4 if job.wide else min(8, n // 4))
    is_plain = can_remove and not by_fold and job.columns == 1
    if is_plain and dispatch.supports_leave_out(factor, len(folds), n_removed):
        _fit_leave_out(job, label, factor, full_loss, alpha[0], scores[0])
    is_uncertified = ~(job.certificate[label] <= ACCEPTED_TOL[options.precision])
    if not bool(is_uncertified.any()):
        return
    left_out = torch.from_numpy(folds.left_out).to(x.device)
    rows, present = left_out.clamp(min=0), left_out >= 0
    # Solvers drop converged problems from the end of a batch.
    order = _hardest_first(factor, alpha, rows, present)
    order = order[is_uncertified[order]]
    n_removed = n_removed if can_remove else 0
    dual = alpha + factor.weight * scores
    for chunk in job.chunks(len(order), n, n_removed, by_fold, len(factor.weight)):
        part = order[chunk]
        train = job.train[part]
        weights = row_weights(codes, job.classes, job.base * train, options)
        if can_remove:
            operator, one_step = remove_rows(factor, rows[part], present[part])
            removed_alpha = alpha[:, rows[part]].transpose(0, 1)  # (fold, class, g)
            coefficients = -(one_step @ removed_alpha[..., None]).transpose(2, 3)
            assert operator.removal is not None
            q_rows = operator.removal.q_rows
            # A few elementwise passes are cheaper than thousands of tiny products.
            if n_removed <= MAX_SWEPT_ROWS:
                start_scores = scores + (coefficients.transpose(2, 3) * q_rows).sum(2)
            else:
                start_scores = scores + (coefficients @ q_rows)[:, :, 0]
            start_dual = (dual * train[:, None]).contiguous()
        else:
            operator = Operator(factor, factor.weight[None])
            start_dual = dual.expand(len(train), -1, -1).clone()
            start_scores = scores.expand(len(train), -1, -1).clone()
        batch = Batch(Loss(target, weights), operator, start_dual, start_scores)
        weight = operator.weight.expand(len(train), -1, n)
        if by_fold:
            scales = fold_scales(x, job.base * train)
            fold_scores, fold_dual, certificate = solve_rescaled(
                batch, scales, job.iteration_dtype, job.work
            )
            certificate[~scales.valid] = torch.inf
            job.store_coef(label, part, scales.weights(fold_dual) / scale, fold_scores, weight)
        else:
            fold_scores, fold_dual, certificate = job.solve(batch, job.wide)
            job.store_dual(label, part, fold_dual, fold_scores, weight, x)
        job.certificate[label, part] = certificate.double()
        test = job.test[part].nonzero()
        job.scores[label, :, test[:, 1]] = fold_scores[test[:, 0], :, test[:, 1]].to(job.scores).T


def _fit_leave_out(
    job: FitJob, label: int, factor: Factor, full_loss: Loss, alpha: Tensor, scores: Tensor
) -> None:
    """Folds that each leave few rows out of one factor, compiled."""
    folds, options, codes = job.folds, job.options, job.codes[label : label + 1]
    rows, dtype = torch.from_numpy(folds.left_out), options.precision
    iteration_dtype = job.iteration_dtype if dtype == torch.float64 else dtype
    for part in job.chunks(len(folds), len(job.x), rows.shape[1]):
        weight, train = full_loss.weight, job.train[part]
        if options.balanced:  # within the training rows
            weight = row_weights(codes, job.classes, job.base * train, options)
        fold_scores, dual, certificate = dispatch.solve_leave_out(
            factor,
            Loss(full_loss.target, weight),
            alpha,
            scores,
            rows[part],
            dtype,
            (TOL[dtype], ACCEPTED_TOL[dtype]),
            iteration_dtype,
            LIMITS,
            job.work,
        )
        if job.coef is not None:
            weight_left = factor.weight * train[:, None]
            job.store_dual(label, part, dual, fold_scores, weight_left, job.x)
        job.certificate[label, part] = certificate.double()
        fold, row = folds.scored
        in_chunk = (fold >= part.start) & (fold < part.stop)
        fold, row = fold[in_chunk] - part.start, row[in_chunk]
        # NumPy indexes a few hundred values in a tenth of torch's time.
        job.scores[label, 0].numpy()[row] = fold_scores[:, 0].numpy()[fold, row]


def _hardest_first(factor: Factor, alpha: Tensor, rows: Tensor, present: Tensor) -> Tensor:
    """(fold,) folds in descending order of the change that leaving out their rows causes.

    Args:
        factor: Of all rows.
        alpha: (class, n) negative gradient of the loss by the scores.
        rows: (fold, g) rows left out, padded.
        present: (fold, g) False on padding.
    """
    leverage = Operator(factor, factor.weight[None]).leverage()[0]
    shift = (alpha.square() * leverage / factor.weight / (1 - leverage).square()).sum(0)
    return (shift[rows] * present).sum(1).argsort(descending=True)
