"""Held-out scores by fitting every fold afresh, where nothing faster is exact."""

from typing import Protocol

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor

from probes.base import HeldOut
from probes.crossfit import spread
from probes.folds import Folds


class Fits(Protocol):
    """A probe with ``fit`` and fitted coefficients."""

    coef_: np.ndarray
    intercept_: np.ndarray

    def fit(self, X, y) -> "Fits":
        """Fit on rows."""
        ...


def by_refitting(
    probe: BaseEstimator,
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
    probe = clone(probe)
    if getattr(probe, "standardize", None) == "all":
        scale = spread(x, torch.ones_like(x[:, 0]))
        probe.set_params(standardize=None)
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
