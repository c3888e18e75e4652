"""Logistic fits of every fold and label vector of one site, exact to a certificate.

Three routes lead to the same optimum. *Shared*: one factor, from the fit on all rows,
serves all folds, each with its own rows taken out; best for few label vectors and
many folds, also where folds scale columns by their own rows
(``probes.solvers.fold_scaling``). *Tall*: few folds of many rows need no exact factor
at all (``probes.solvers.newton.newton_primal_rough``). *Each fold*: a factor for each
fold's training rows serves all label vectors; best for permutations, and for what the
other routes leave unsolved.

What all of them leave, to rounding or to a matrix that has no factor, is fitted by
itself by ``probes.solvers.fit_uncertified``.
"""

from collections.abc import Sequence
from contextlib import suppress
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
from probes.solvers.threads import few_threads
from probes.solvers.uncertified import UncertifiedFit
from probes.splits.folds import Folds

MAX_SHARED_LABELS = 8
"""From so many label vectors a factor for each fold pays."""
MIN_FOLDS_PER_CLASS_FACTOR = 4
"""From so many folds on each class gets a factor of its own."""
MAX_PRIMAL_FOLDS = 40
"""Up to so many folds of many rows are fitted without an exact factor."""


@dataclass(frozen=True)
class CrossFit:
    """Held-out scores and, if asked for, the probes.

    Attributes:
        scores: (label, class or 1, row) held-out decision values, NaN where no fold
            scores the row.
        certificate: (label, fold) distance to the optimum, relative; infinite where
            nothing is known of it.
        coef: (label, fold, class or 1, d) in units per unit of the rows given.
        intercept: (label, fold, class or 1).
        work: What was spent.
    """

    scores: Tensor
    certificate: Tensor
    coef: Tensor | None
    intercept: Tensor | None
    work: Work

    @property
    def n_uncertified(self) -> int:
        """How many fits did not reach the tolerance of their type."""
        return len(self.uncertified)

    @property
    def uncertified(self) -> tuple[UncertifiedFit, ...]:
        """The fits that did not reach the tolerance of their type."""
        left = ~(self.certificate <= ACCEPTED_TOL[self.scores.dtype])
        return tuple(
            UncertifiedFit(float(self.certificate[label, fold]), fold, label)
            for label, fold in left.nonzero().tolist()
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
        folds: Which rows fit and which are scored.
        options: The model.
        sample_weight: (row,) >= 0.
        coefficients: Whether to return the probes too.

    Raises:
        InputError: the memory budget is too small for even one problem.
    """
    x, mean = centered_rows(x)
    n, d = x.shape
    base = torch.ones(n, dtype=x.dtype, device=x.device)
    base = base if sample_weight is None else sample_weight.to(base)
    scale = None
    if options.standardize == "all":
        scale = column_std(x, base)
        x = x / scale
    job = FitJob(x, codes, classes, folds, options, base, coefficients)
    wide = n <= 2 * (d + 1)
    limit = MAX_SHARED_LABELS if wide else max(MAX_SHARED_LABELS, d // 30)
    # Where a matrix has no factor, its fits are left to the last resort.
    with few_threads(n * job.columns):
        left: Sequence[int] = range(len(folds))
        few = len(codes) < limit and len(codes) <= len(folds)
        if few and _supports_primal(job):
            for label in range(len(codes)):
                with suppress(LinAlgError):
                    _fit_primal(job, label)
            left = _uncertified_folds(job)
        # What is too stiff for a rough metric is so in nearly every fold.
        shared = options.standardize != "fold" or _supports_fold_scaling(job)
        if few and shared and 2 * len(left) > len(folds):
            for label in range(len(codes)):
                with suppress(LinAlgError):
                    _fit_shared(job, label)
            left = _uncertified_folds(job) if options.standardize == "fold" else ()
        if left:
            with suppress(LinAlgError):
                fit_each_fold(job, left)
        fit_uncertified(job)
    if job.coef is not None and job.intercept is not None:
        job.coef /= 1 if scale is None else scale
        job.intercept -= job.coef @ mean
    return CrossFit(job.scores, job.certificate, job.coef, job.intercept, job.work)


def _supports_fold_scaling(job: FitJob) -> bool:
    """Whether folds with scales of their own can share the factor of all rows."""
    widest = int((~job.train).sum(1).max())
    return job.wide and job.columns == 1 and 0 < widest <= len(job.x) // 4


def _uncertified_folds(job: FitJob) -> list[int]:
    """Folds in which some label vector has no certificate."""
    solved = (job.certificate <= ACCEPTED_TOL[job.options.precision]).all(0)
    return (~solved).nonzero()[:, 0].tolist()


def _supports_primal(job: FitJob) -> bool:
    """Whether folds are cheaper to fit from nothing than an exact factor is to make."""
    options, folds = job.options, len(job.folds)
    plain = options.mixed and options.standardize != "fold"
    return plain and not job.wide and job.columns == 1 and folds <= MAX_PRIMAL_FOLDS


def _fit_primal(job: FitJob, label: int) -> None:
    """All folds of one label vector on a rough metric, from nothing."""
    codes = job.codes[label : label + 1]
    target = one_hot(codes, job.classes)
    for part in job.chunks(len(job.folds), len(job.x), factors=2):
        weights = job.base * job.train[part]
        weights = row_weights(codes, job.classes, weights, job.options)
        loss, goal = Loss(target, weights), TOL[torch.float64]
        point, scores, certificate = fit_primal(job.x, loss, goal, job.work)
        job.certificate[label, part] = certificate
        if job.coef is not None and job.intercept is not None:
            job.coef[label, part, 0] = point[:, :-1]
            job.intercept[label, part, 0] = point[:, -1]
        test = job.test[part].nonzero()
        job.scores[label, 0, test[:, 1]] = scores[test[:, 0], test[:, 1]].to(job.scores)


def _fit_shared(job: FitJob, label: int) -> None:
    """All folds of one label vector on one factor."""
    folds, options = job.folds, job.options
    rescaled = options.standardize == "fold"
    size = column_std(job.x, job.base) if rescaled else torch.ones_like(job.x[0])
    x = job.x / size if rescaled else job.x
    n = len(x)
    codes = job.codes[label : label + 1]
    target = one_hot(codes, job.classes)
    whole = Loss(target, row_weights(codes, job.classes, job.base[None], options))
    if job.wide and job.columns == 1:
        gram = gram_matrix(x)
        positive = whole.weight.clamp(min=1e-9 * float(whole.weight.max()))
        compiled = dispatch.supports_size(len(folds), 0, gram)
        fit = initial_fit(gram, Loss(target, positive), compiled=compiled)
        alpha, scores = fit.dual, fit.scores
        factor = factor_gram(gram, floor_weight(fit.weight[None], gram.diagonal()))
    else:
        factor, scores, alpha, curvature = fit_all_rows(job, x, whole, 1e-3)
        alpha, scores = alpha[0], scores[0]
        # A factor for each class pays where several folds share them.
        several = len(folds) >= MIN_FOLDS_PER_CLASS_FACTOR
        weight = job.class_weights(curvature[0]) if several else curvature.mean(1)
        factor = job.factor(x, weight.clamp(min=1e-12))
    taken = folds.left_out.shape[1]
    take_out = 0 < taken <= (n // 4 if job.wide else min(8, n // 4))
    plain = take_out and not rescaled and job.columns == 1
    if plain and dispatch.supports_leave_out(factor, len(folds), taken):
        _fit_leave_out(job, label, factor, whole, alpha[0], scores[0])
    left = ~(job.certificate[label] <= ACCEPTED_TOL[options.precision])
    if not bool(left.any()):
        return
    left_out = torch.from_numpy(folds.left_out).to(x.device)
    rows, present = left_out.clamp(min=0), left_out >= 0
    # The solver waits for those that come first.
    order = _hardest_first(factor, alpha, rows, present)
    order = order[left[order]]
    taken = taken if take_out else 0
    dual = alpha + factor.weight * scores
    for some in job.chunks(len(order), n, taken, rescaled, len(factor.weight)):
        part = order[some]
        train = job.train[part]
        weights = row_weights(codes, job.classes, job.base * train, options)
        if take_out:
            operator, first = remove_rows(factor, rows[part], present[part])
            pulled = alpha[:, rows[part]].transpose(0, 1)  # (fold, class, g)
            push = -(first @ pulled[..., None]).transpose(2, 3)
            assert operator.removal is not None
            strips = operator.removal.q_rows
            # Thousands of tiny products cost more than a few sweeps.
            if taken <= MAX_SWEPT_ROWS:
                begin = scores + (push.transpose(2, 3) * strips).sum(2)
            else:
                begin = scores + (push @ strips)[:, :, 0]
            start = (dual * train[:, None]).contiguous()
        else:
            operator = Operator(factor, factor.weight[None])
            start = dual.expand(len(train), -1, -1).clone()
            begin = scores.expand(len(train), -1, -1).clone()
        batch = Batch(Loss(target, weights), operator, start, begin)
        weight = operator.weight.expand(len(train), -1, n)
        if rescaled:
            scales = fold_scales(x, job.base * train)
            held, final, certificate = solve_rescaled(
                batch, scales, job.iteration_dtype, job.work
            )
            certificate[~scales.valid] = torch.inf
            job.store_coef(label, part, scales.weights(final) / size, held, weight)
        else:
            held, final, certificate = job.solve(batch, job.wide)
            job.store_dual(label, part, final, held, weight, x)
        job.certificate[label, part] = certificate.double()
        test = job.test[part].nonzero()
        job.scores[label, :, test[:, 1]] = (
            held[test[:, 0], :, test[:, 1]].to(job.scores).T
        )


def _fit_leave_out(
    job: FitJob, label: int, factor: Factor, whole: Loss, alpha: Tensor, scores: Tensor
) -> None:
    """Folds that each take few rows out of one factor, compiled."""
    folds, options, codes = job.folds, job.options, job.codes[label : label + 1]
    rows, kind = torch.from_numpy(folds.left_out), options.precision
    inner = job.iteration_dtype if kind == torch.float64 else kind
    for part in job.chunks(len(folds), len(job.x), rows.shape[1]):
        weight, train = whole.weight, job.train[part]
        if options.balanced:  # within the training rows
            weight = row_weights(codes, job.classes, job.base * train, options)
        held, dual, certificate = dispatch.solve_leave_out(
            factor,
            Loss(whole.target, weight),
            alpha,
            scores,
            rows[part],
            kind,
            (TOL[kind], ACCEPTED_TOL[kind]),
            inner,
            LIMITS,
            job.work,
        )
        if job.coef is not None:
            kept = factor.weight * train[:, None]
            job.store_dual(label, part, dual, held, kept, job.x)
        job.certificate[label, part] = certificate.double()
        fold, row = folds.scored
        here = (fold >= part.start) & (fold < part.stop)
        fold, row = fold[here] - part.start, row[here]
        # Through NumPy, to which a few hundred indices cost a tenth.
        job.scores[label, 0].numpy()[row] = held[:, 0].numpy()[fold, row]


def _hardest_first(
    factor: Factor, alpha: Tensor, rows: Tensor, present: Tensor
) -> Tensor:
    """(fold,) folds in the order of what their rows, taken out, move.

    Args:
        factor: Of all rows.
        alpha: (class, n) pull of the rows.
        rows: (fold, g) rows taken out, padded.
        present: (fold, g) True where ``rows`` is not padding.
    """
    leverage = Operator(factor, factor.weight[None]).leverage()[0]
    moved = (alpha.square() * leverage / factor.weight / (1 - leverage).square()).sum(0)
    return (moved[rows] * present).sum(1).argsort(descending=True)
