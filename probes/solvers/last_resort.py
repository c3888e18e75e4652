"""Fits that no shared way certifies, each by itself on its own rows."""

import torch

from probes.solvers.newton.newton_certified import newton_fit
from probes.solvers.newton.newton_cg import ACCEPTED_TOL, TOL
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import FitJob, column_std, one_hot, row_weights

N_HESSIAN_ARRAYS = 4
"""Square arrays of the size of the Hessian that a fit holds at once."""


def fit_uncertified(job: FitJob) -> None:
    """Fit what has no certificate yet, in place, by Newton steps on its training rows.

    The answer before stays where its certificate is the smaller, or where the memory
    budget has no room for another. Where it is not a number, zeros take its place: a
    probe that reads nothing, without a certificate.
    """
    accepted = ACCEPTED_TOL[job.options.precision]
    for label, fold in (~(job.certificate <= accepted)).nonzero().tolist():
        _fit(job, label, fold)


def _fit(job: FitJob, label: int, fold: int) -> None:
    options, test = job.options, job.test[fold]
    train = job.train[fold] & (job.base > 0)
    inside, base = job.x[train], job.base[train]
    codes = job.codes[label : label + 1, train]
    centre, size = inside.mean(0), torch.ones_like(inside[0])
    if options.standardize == "fold":
        size = column_std(inside, base)
    rows = (inside - centre) / size
    weight = row_weights(codes, job.classes, base[None], options)
    loss = Loss(one_hot(codes, job.classes), weight)
    coef = rows.new_zeros(job.columns, rows.shape[1])
    intercept = coef.new_zeros(job.columns)
    known = bool(torch.isfinite(job.scores[label][:, test]).all())
    if (
        8 * N_HESSIAN_ARRAYS * (job.columns * (1 + min(rows.shape))) ** 2
        <= options.memory
    ):
        found = newton_fit(rows, loss, TOL[torch.float64])
        if found.certificate < job.certificate[label, fold]:
            job.certificate[label, fold] = found.certificate
            coef, intercept, known = found.weights, found.intercept, False
    if known:
        return
    reach = (job.x[test] - centre) / size
    scores = coef @ reach.T + intercept[:, None]
    job.scores[label][:, test] = scores.to(job.scores)
    if job.coef is not None and job.intercept is not None:
        job.coef[label, fold] = coef / size
        job.intercept[label, fold] = intercept - (coef / size) @ centre
