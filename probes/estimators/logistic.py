"""Logistic regression at its optimum: one fit, or every fold at once."""

import numbers
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from evidence.arrays import RowsError
from probes.estimators.base import SCALINGS, HeldOut, LinearProbe, ProbabilityMixin
from probes.solvers.crossfit import crossfit
from probes.solvers.problem import LogisticOptions
from probes.solvers.uncertified import UncertifiedFit, warn_uncertified
from probes.splits.folds import Folds

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


class LogisticProbe(ProbabilityMixin, LinearProbe):
    """Penalized logistic regression, scikit-learn's objective at its true optimum.

    Minimizes 0.5 ||W||^2 + C sum_i s_i loss(y_i, x_i W + b); the intercept b is not penalized. More
    than two classes share a softmax, with intercepts that sum to 0.

    Args:
        C: Inverse penalty, > 0 and finite: without a penalty, separable rows have no optimum.
        class_weight: None, "balanced" (within each fold's training rows), or a
            mapping from label to weight.
        standardize: "fold" divides each column by its standard deviation over the training rows (in
            ``fit``, all rows), "all" by that over all rows given to ``held_out``, None not at
            all. Coefficients are always in raw activation units.
        precision: "float64" reaches the optimum to 1e-8 relative, "float32" to 1e-4.

    Fitted:
        certificate_: Relative distance to the optimum: gradient norm in the metric of the inverse
            Hessian over the parameters' norm in that of the Hessian.
        uncertified_: The fit itself if its certificate is above 1e-8 (float64) or 1e-4 (float32).
            It is kept, and ``fit`` warns with an ``UncertifiedWarning``. Empty otherwise.

    ``probes/solvers/README.md`` describes the solvers.

    Examples:
        >>> probe = exhume.LogisticProbe(C=0.1, standardize="fold")
        >>> probe.fit(states.site("resid.1"), cities).score(states.site("resid.1"), cities) > 0.9
        True
        >>> probe.certificate_ < 1e-8
        True
    """

    def __init__(self, C=1.0, class_weight=None, standardize=None, precision="float64"):
        self.C = C
        self.class_weight = class_weight
        self.standardize = standardize
        self.precision = precision

    certificate_: float
    uncertified_: tuple[UncertifiedFit, ...]

    def fit(self, X, y, sample_weight=None) -> "LogisticProbe":
        """Fit on rows.

        Args:
            X: (row, d) array or tensor.
            y: (row,) labels of any sortable kind.
            sample_weight: (row,), >= 0; a weight of 2 equals the row given twice.
        """
        rows, codes, weights = self._prepare(X, y, sample_weight)
        all_rows = np.ones((1, len(rows)), dtype=bool)
        if weights is not None:
            # A row of weight 0 must not change the fit.
            rows, codes, weights = _drop_zero_weight(rows, codes, weights)
            all_rows = all_rows[:, : len(rows)]
            if len(codes.unique()) < len(self.classes_):
                raise RowsError("a class has no row with positive sample weight")
        result = crossfit(
            rows,
            codes,
            len(self.classes_),
            Folds(all_rows, ~all_rows, "all rows"),
            self._options(self.classes_, max(1 << 30, 8 * rows.numel())),
            sample_weight=weights,
            coefficients=True,
        )
        self.certificate_ = float(result.certificate.max())
        self.uncertified_ = tuple(
            replace(each, name="all rows", fold=None) for each in result.uncertified
        )
        warn_uncertified(self.uncertified_)
        assert result.coef is not None and result.intercept is not None
        return self._set_fitted(*_centered(result.coef[0, 0], result.intercept[0, 0]))

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
        """As ``LinearProbe.held_out``; every fold at its true optimum.

        The keys of a mapping in ``class_weight`` are class codes here.
        """
        options = self._options(np.arange(classes), memory)
        result = crossfit(x, codes, classes, folds, options, coefficients=coefficients)
        return HeldOut(
            result.scores.double(),
            result.certificate,
            result.coef,
            result.intercept,
            result.uncertified,
        )

    def _options(self, classes: np.ndarray, memory: int) -> LogisticOptions:
        C = self.C
        if not isinstance(C, numbers.Real) or not 0 < float(C) < np.inf:
            raise RowsError(
                "C must be positive and finite",
                got=str(C),
                fix="Without a penalty, separable rows have no optimum; for a weak penalty use a "
                "large C, such as 1e4",
            )
        if self.standardize not in SCALINGS:
            raise RowsError(
                "unknown standardize", expected="None, 'fold' or 'all'", got=repr(self.standardize)
            )
        if self.precision not in PRECISIONS:
            raise RowsError(
                "unknown precision", expected="'float64' or 'float32'", got=repr(self.precision)
            )
        fixed = None
        if isinstance(self.class_weight, dict):
            unknown = set(self.class_weight) - set(classes.tolist())
            if unknown:
                raise RowsError(f"class_weight names unknown classes {sorted(unknown)}")
            fixed = tuple(float(self.class_weight.get(c, 1.0)) for c in classes)
            if min(fixed) <= 0:
                raise RowsError("class weights must be positive", got=str(min(fixed)))
        elif self.class_weight not in (None, "balanced"):
            raise RowsError(
                "unknown class_weight",
                expected="None, 'balanced' or a dict",
                got=repr(self.class_weight),
            )
        return LogisticOptions(
            C=float(C),
            balanced=self.class_weight == "balanced",
            class_weight=fixed,
            standardize=self.standardize,
            precision=PRECISIONS[self.precision],
            memory=memory,
        )


def _drop_zero_weight(rows: Tensor, codes: Tensor, weights: Tensor):
    used = weights > 0
    return rows[used], codes[:, used], weights[used]


def _centered(coef: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax intercepts shifted to sum to 0; a common shift changes no probability."""
    if len(coef) > 1:
        intercept = intercept - intercept.mean()
    return coef, intercept
