"""Held-out scores by fitting every fold afresh, where nothing faster is exact."""

import torch
from torch import Tensor

from probes.estimators.base import HeldOut, LinearProbe
from probes.solvers.problem import column_std
from probes.splits.folds import Folds


def refit_held_out(
    probe: LinearProbe,
    x: Tensor,
    codes: Tensor,
    classes: int,
    folds: Folds,
    coefficients: bool,
) -> HeldOut:
    """As ``LinearProbe.held_out``: one ``fit`` a fold and label vector.

    With ``standardize="all"`` the columns are scaled once, before the folds.
    """
    x = x.double()
    centre = x.mean(0)
    x = x - centre
    scale = torch.ones_like(centre)
    probe = probe.copy()
    if getattr(probe, "standardize", None) == "all":
        scale = column_std(x, torch.ones_like(x[:, 0]))
        probe = probe.copy(standardize=None)
    x = x / scale
    columns = 1 if classes == 2 else classes
    labels, n = codes.shape
    scores = x.new_full((labels, columns, n), torch.nan)
    coef = x.new_zeros((labels, len(folds), columns, x.shape[1]))
    intercept = x.new_zeros((labels, len(folds), columns))
    for fold in range(len(folds)):
        train, test = folds.train[fold], folds.test[fold]
        for label in range(labels):
            fitted = probe.fit(x[train], codes[label, train].cpu().numpy())
            w = torch.as_tensor(fitted.coef_, device=x.device)
            b = torch.as_tensor(fitted.intercept_, device=x.device)
            scores[label][:, test] = w @ x[test].T + b[:, None]
            coef[label, fold] = w / scale
            intercept[label, fold] = b - (w / scale) @ centre
    certificate = torch.zeros(labels, len(folds), dtype=torch.float64)
    if not coefficients:
        return HeldOut(scores, certificate)
    return HeldOut(scores, certificate, coef, intercept)
