"""The interface of every linear probe, a scikit-learn classifier."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.linalg import LinAlgError  # pyright: ignore

from evidence.arrays import (
    NotFinite,
    RowsError,
    validate_labels,
    validate_rows,
    validate_sample_weight,
)
from probes.solvers.problem import column_std
from probes.solvers.uncertified import UncertifiedFit
from probes.splits.folds import Folds

SCALINGS = (None, "fold", "all")


@dataclass(frozen=True)
class HeldOut:
    """Held-out scores: each row is scored by a probe fitted without it.

    Attributes:
        scores: (label, class or 1, row) float64 decision values, NaN where no fold scores the row.
        certificate: (label, fold) relative distance to the optimum; 0 for closed forms.
        coef: (label, fold, class or 1, d) or None.
        intercept: (label, fold, class or 1) or None.
        uncertified: Fits that are not certified to be at their optimum; their scores are
            included.
    """

    scores: Tensor
    certificate: Tensor
    coef: Tensor | None = None
    intercept: Tensor | None = None
    uncertified: tuple[UncertifiedFit, ...] = ()


class LinearProbe(ClassifierMixin, BaseEstimator):
    """A linear classifier of activations.

    Fitted:
        classes_: (class,) sorted labels.
        coef_: (1, d) for two classes, (class, d) otherwise, float64.
        intercept_: (1,) or (class,).
        n_features_in_: d.
    """

    classes_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray
    n_features_in_: int

    def decision_function(self, X) -> np.ndarray:
        """Decision values: (row,) for two classes, (row, class) otherwise.

        Args:
            X: (row, d) array or tensor.

        Returns:
            NumPy array; for a tensor, a tensor on the same device.
        """
        check_is_fitted(self, "coef_")
        rows = validate_rows(self, X, reset=False)
        coef = torch.as_tensor(self.coef_, device=rows.device)
        scores = rows @ coef.T + torch.as_tensor(self.intercept_, device=rows.device)
        scores = scores[:, 0] if scores.shape[1] == 1 else scores
        return scores if isinstance(X, Tensor) else scores.cpu().numpy()  # pyright: ignore

    def predict(self, X) -> np.ndarray:
        """(row,) most likely label, always a NumPy array."""
        scores = self.decision_function(X)
        if isinstance(scores, Tensor):
            scores = scores.cpu().numpy()
        index = scores.argmax(1) if scores.ndim == 2 else (scores > 0).astype(int)
        return self.classes_[index]

    def copy(self, **parameters) -> "LinearProbe":
        """An unfitted probe with the same parameters, except those given."""
        probe = cast(LinearProbe, clone(self))
        return cast(LinearProbe, probe.set_params(**parameters))

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
        """Score every row by probes fitted without it.

        Args:
            x: (row, d) float tensor.
            codes: (label, row) class codes below ``classes``, several label vectors at once.
            classes: Number of classes, all present in each fold's training rows.
            folds: Training and test rows.
            coefficients: Whether to return the probes too.
            memory: Bytes to use at most, beside the input.
        """
        raise NotImplementedError

    def fit(self, X, y) -> "LinearProbe":
        """Fit on (row, d) ``X`` with (row,) labels ``y``."""
        raise NotImplementedError

    def _prepare(self, X, y, sample_weight=None):
        """Checked rows, codes (1, row) and sample weights; sets ``classes_``."""
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        rows = validate_rows(self, X, reset=True)
        self.classes_, codes = validate_labels(y, len(rows))
        weights = validate_sample_weight(sample_weight, rows)
        return rows, torch.from_numpy(codes).to(rows.device)[None], weights

    def _set_fitted(self, coef: Tensor, intercept: Tensor):
        if not bool(torch.isfinite(coef).all() & torch.isfinite(intercept).all()):
            raise DegenerateRows(
                "the fitted weights are not finite, because the rows are too large or too small",
                fix="Divide the activations by their scale first",
            )
        self.coef_ = coef.cpu().numpy()
        self.intercept_ = intercept.cpu().numpy()
        return self


class ProbabilityMixin:
    """Probabilities of probes whose decision values are log-odds."""

    def predict_proba(self, X) -> np.ndarray:
        """(row, class) probability of each class."""
        scores = self.decision_function(X)  # pyright: ignore
        if isinstance(scores, Tensor):
            scores = scores.cpu().numpy()
        if scores.ndim == 1:
            positive = expit(scores)
            return np.stack([1 - positive, positive], axis=1)
        return softmax(scores, axis=1)

    def predict_log_proba(self, X) -> np.ndarray:
        """(row, class) logarithm of ``predict_proba``."""
        return np.log(self.predict_proba(X))


class DegenerateRows(RowsError):
    """Rows for which the probe has no finite solution."""


@contextmanager
def degenerate_if_singular() -> Iterator[None]:
    """Turn a failed factorization into ``DegenerateRows``."""
    try:
        yield
    except LinAlgError as error:
        raise DegenerateRows(
            "the rows cannot be factorized, because their scales differ too much",
            fix='Use standardize="fold", a stronger penalty, or leave extreme rows out',
        ) from error


def held_out_or_refit(
    closed_form: Callable[[], Tensor],
    probe: LinearProbe,
    x: Tensor,
    codes: Tensor,
    classes: int,
    folds: Folds,
) -> HeldOut:
    """Scores in closed form; label vectors for which it fails are fitted fold by fold.

    Args:
        closed_form: (label, class or 1, row) held-out scores.
        probe: Fitted where a score is not finite.
        x: As for ``LinearProbe.held_out``, like the others.
        codes: (label, row).
        classes: Number of classes.
        folds: Training and test rows.
    """
    scored = torch.as_tensor(folds.test.any(0), device=x.device)
    try:
        scores = closed_form()
    except (LinAlgError, DegenerateRows):
        return refit_held_out(probe, x, codes, classes, folds, False)
    certificate = torch.zeros(len(codes), len(folds), dtype=torch.float64)
    failed = (~torch.isfinite(scores[:, :, scored])).any(2).any(1).nonzero()[:, 0]
    if not len(failed):
        return HeldOut(scores, certificate)
    refitted = refit_held_out(probe, x, codes[failed], classes, folds, False)
    scores[failed] = refitted.scores
    certificate[failed.cpu()] = refitted.certificate
    fits = tuple(replace(fit, label=int(failed[fit.label])) for fit in refitted.uncertified)
    return HeldOut(scores, certificate, uncertified=fits)


def refit_held_out(
    probe: LinearProbe, x: Tensor, codes: Tensor, classes: int, folds: Folds, coefficients: bool
) -> HeldOut:
    """As ``LinearProbe.held_out``, with one ``fit`` a fold and label vector.

    With ``standardize="all"`` the columns are scaled once, before the folds. A fit without a finite
    solution scores 0, has coefficients of 0 and is listed as uncertified.
    """
    x = x.double()
    center = x.mean(0)
    x = x - center
    scale = torch.ones_like(center)
    probe = probe.copy()
    if getattr(probe, "standardize", None) == "all":
        scale = column_std(x, torch.ones_like(x[:, 0]))
        probe = probe.copy(standardize=None)
    x = x / scale
    columns = 1 if classes == 2 else classes
    n_labels, n = codes.shape
    scores = x.new_full((n_labels, columns, n), torch.nan)
    coef = x.new_zeros((n_labels, len(folds), columns, x.shape[1]))
    intercept = x.new_zeros((n_labels, len(folds), columns))
    certificate = torch.zeros(n_labels, len(folds), dtype=torch.float64)
    parts = (torch.zeros(0),) * 3
    for fold in range(len(folds)):
        train, test = folds.train[fold], folds.test[fold]
        for label in range(n_labels):
            try:
                fitted = probe.fit(x[train], codes[label, train].cpu().numpy())
                w = torch.as_tensor(fitted.coef_, device=x.device)
                b = torch.as_tensor(fitted.intercept_, device=x.device)
                parts = w @ x[test].T + b[:, None], w / scale, b - (w / scale) @ center
                is_finite = all(bool(torch.isfinite(part).all()) for part in parts)
            except (DegenerateRows, NotFinite):  # centered rows may be too large to be added up
                is_finite = False
            if is_finite:
                scores[label][:, test], coef[label, fold], intercept[label, fold] = parts
            else:
                scores[label][:, test], certificate[label, fold] = 0.0, torch.inf
    uncertified = tuple(
        UncertifiedFit(torch.inf, fold, label)
        for label, fold in certificate.isinf().nonzero().tolist()
    )
    if not coefficients:
        return HeldOut(scores, certificate, uncertified=uncertified)
    return HeldOut(scores, certificate, coef, intercept, uncertified)
