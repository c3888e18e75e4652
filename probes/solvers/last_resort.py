"""Fits that no shared solver certifies, each by itself on its own rows."""

import torch

from probes.solvers.newton.newton_certified import newton_fit
from probes.solvers.newton.newton_cg import ACCEPTED_TOL, TOL
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import FitJob, column_std, one_hot, row_weights

N_HESSIAN_ARRAYS = 4
"""Arrays of the Hessian's size that a fit holds at once."""


MAX_FAILURES = 20
"""Fits in a row that may fail before the others keep their earlier answers.

A fit takes a tenth of a second or more. Where so many fail, all rows are at fault, and thousands of
permutations would take hours to fail too.
"""


def fit_uncertified(job: FitJob) -> None:
    """Fit what has no certificate yet, in place, by certified Newton steps on its training rows.

    The earlier answer stays if its certificate is smaller, if the memory budget does not suffice,
    or after ``MAX_FAILURES`` failures in a row. If the earlier answer is not finite, it is replaced
    by zeros without a certificate.
    """
    accepted_tol = ACCEPTED_TOL[job.options.precision]
    n_failures = 0
    for label, fold in (~(job.certificate <= accepted_tol)).nonzero().tolist():
        _fit(job, label, fold, attempt=n_failures < MAX_FAILURES)
        is_solved = bool(job.certificate[label, fold] <= accepted_tol)
        n_failures = 0 if is_solved else n_failures + 1


def _fit(job: FitJob, label: int, fold: int, attempt: bool) -> None:
    options, test = job.options, job.test[fold]
    train = job.train[fold] & (job.base > 0)
    train_rows, sample_weight = job.x[train], job.base[train]
    codes = job.codes[label : label + 1, train]
    center, scale = train_rows.mean(0), torch.ones_like(train_rows[0])
    if options.standardize == "fold":
        scale = column_std(train_rows, sample_weight)
    rows = (train_rows - center) / scale
    weight = row_weights(codes, job.classes, sample_weight[None], options)
    loss = Loss(one_hot(codes, job.classes), weight)
    coef = rows.new_zeros(job.columns, rows.shape[1])
    intercept = coef.new_zeros(job.columns)
    has_scores = bool(torch.isfinite(job.scores[label][:, test]).all())
    size = 8 * N_HESSIAN_ARRAYS * (job.columns * (1 + min(rows.shape))) ** 2
    if attempt and size <= options.memory:
        fit = newton_fit(rows, loss, TOL[torch.float64])
        if fit.certificate < job.certificate[label, fold]:
            job.certificate[label, fold] = fit.certificate
            coef, intercept, has_scores = fit.weights, fit.intercept, False
    if has_scores:
        return
    if not bool(coef.any()):  # centers of extreme rows may not be finite
        job.scores[label][:, test] = intercept[:, None].expand(-1, int(test.sum())).to(job.scores)
        if job.coef is not None and job.intercept is not None:
            job.coef[label, fold], job.intercept[label, fold] = coef, intercept
        return
    test_rows = (job.x[test] - center) / scale
    scores = coef @ test_rows.T + intercept[:, None]
    job.scores[label][:, test] = scores.to(job.scores)
    if job.coef is not None and job.intercept is not None:
        job.coef[label, fold] = coef / scale
        job.intercept[label, fold] = intercept - (coef / scale) @ center
