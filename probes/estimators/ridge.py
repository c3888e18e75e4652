"""Ridge classifier, with exact scores for rows left out."""

import numbers
from functools import partial

import numpy as np
import torch
from torch import Tensor

from evidence.arrays import RowsError
from probes.estimators.base import (
    SCALINGS,
    HeldOut,
    LinearProbe,
    degenerate_if_singular,
    held_out_or_refit,
    refit_held_out,
)
from probes.solvers.problem import column_std, one_hot
from probes.splits.folds import Folds


class RidgeProbe(LinearProbe):
    """Least squares on labels coded -1 and 1, with a penalty on the weights.

    Minimizes ||y - XW - b||^2 + alpha ||W||^2, one target a class (a single one for two classes),
    with a free intercept: scikit-learn's ``RidgeClassifier``.

    Args:
        alpha: Penalty, > 0, in squared activation units.
        standardize: As in ``LogisticProbe``; "fold" has no closed form and refits.

    Source: Allen (1974), Technometrics 16:125: removing rows G turns residuals r into
    (I - H_GG)^-1 r_G, with H the hat matrix.

    Examples:
        >>> probe = exhume.RidgeProbe(alpha=10.0).fit(states.site("resid.1"), cities == "Lisbon")
        >>> probe.coef_.shape
        (1, 32)
    """

    def __init__(self, alpha=1.0, standardize=None):
        self.alpha = alpha
        self.standardize = standardize

    def fit(self, X, y, sample_weight=None) -> "RidgeProbe":
        """Fit on rows; arguments as in ``LogisticProbe.fit``."""
        rows, codes, weights = self._prepare(X, y, sample_weight)
        classes = len(self.classes_)
        weight = torch.ones_like(rows[:, 0]) if weights is None else weights
        target = 2 * one_hot(codes, classes)[0] - 1  # (class or 1, row)
        coef, intercept = self._solve(rows, target, weight)
        return self._set_fitted(coef, intercept)

    def _solve(self, rows: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self._alpha()
        if self.standardize not in SCALINGS:
            raise RowsError("unknown standardize", got=repr(self.standardize))
        normalized = weight / weight.sum()
        center, target_mean = normalized @ rows, target @ normalized
        scale = column_std(rows, weight) if self.standardize else torch.ones_like(center)
        root = weight.sqrt()
        design = (rows - center) / scale * root[:, None]
        rhs = (target - target_mean[:, None]) * root
        wide = design.shape[0] <= design.shape[1]
        system = design @ design.T if wide else design.T @ design
        system.diagonal().add_(alpha)
        lower, failed = torch.linalg.cholesky_ex(system)
        if bool(failed):  # squared, the scales differ by more than float64 holds
            with degenerate_if_singular():
                left, sizes, axes = torch.linalg.svd(design, full_matrices=False)
            gain = torch.where(sizes > 0, 1 / (sizes + alpha / sizes), 0.0)
            coef = (rhs @ left * gain) @ axes
        elif wide:
            coef = torch.cholesky_solve(rhs.T, lower).T @ design
        else:
            coef = torch.cholesky_solve((rhs @ design).T, lower).T
        coef = coef / scale
        return coef, target_mean - coef @ center

    def held_out(
        self,
        x: Tensor,
        codes: Tensor,
        classes: int,
        folds: Folds,
        *,
        coefficients: bool = False,
        memory: int = 1 << 30,
    ) -> HeldOut:
        """As ``LinearProbe.held_out``, in closed form from the hat matrix."""
        if self.standardize == "fold" or coefficients:
            return refit_held_out(self, x, codes, classes, folds, coefficients)
        self._alpha()
        scores = partial(self._closed_form, x, codes, classes, folds)
        return held_out_or_refit(scores, self, x, codes, classes, folds)

    def _closed_form(self, x: Tensor, codes: Tensor, classes: int, folds: Folds) -> Tensor:
        """(label, class or 1, row) held-out scores."""
        x = x.double() - x.double().mean(0)
        if self.standardize == "all":
            x = x / column_std(x, torch.ones_like(x[:, 0]))
        n = len(x)
        target = 2 * one_hot(codes, classes) - 1
        flat = target.reshape(-1, n)
        residual_matrix = residual_maker(x, self._alpha())
        residuals = flat @ residual_matrix
        scores = torch.full_like(flat, torch.nan)
        train = torch.as_tensor(folds.train, device=x.device)
        test = torch.as_tensor(folds.test, device=x.device)
        is_left_out = ~train
        if bool((is_left_out.sum(1) == 1).all()) and bool((is_left_out == test).all()):
            rows = is_left_out.nonzero()[:, 1]
            scores[:, rows] = (flat - residuals / residual_matrix.diagonal())[:, rows]
        else:
            for fold in range(len(folds)):
                rows = (~train[fold]).nonzero()[:, 0]
                block = residual_matrix[rows][:, rows]
                held_out_residuals = torch.linalg.solve(block, residuals[:, rows].T).T
                scored = test[fold, rows]
                scores[:, rows[scored]] = (flat[:, rows] - held_out_residuals)[:, scored]
        return scores.view_as(target)

    def _alpha(self) -> float:
        if not isinstance(self.alpha, numbers.Real) or not 0 < self.alpha < np.inf:
            raise RowsError("alpha must be positive and finite", got=str(self.alpha))
        return float(self.alpha)


def residual_maker(x: Tensor, alpha: float) -> Tensor:
    """I - H for centered rows, intercept included: (n, n) float64.

    Computed without subtracting from 1 if features are many, so a leverage near 1 keeps its digits.
    """
    n, d = x.shape
    if n <= d:
        system = x @ x.T
        system.diagonal().add_(alpha)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
        ones = inverse.sum(0)
        return alpha * (inverse - torch.outer(ones, ones / ones.sum()))
    system = x.T @ x
    system.diagonal().add_(alpha)
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(system), x.T, upper=False)
    hat = half.T @ half
    return torch.eye(n, dtype=x.dtype, device=x.device) - hat - 1 / n
