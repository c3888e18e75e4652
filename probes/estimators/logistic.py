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
    """Penalised logistic regression, scikit-learn's objective at its true optimum.

    Minimises 0.5 ||W||^2 + C sum_i s_i loss(y_i, x_i W + b); the intercept b is not
    penalised. More than two classes share a softmax, with intercepts that sum to 0.

    Args:
        C: Inverse of the penalty, > 0 and finite: without a penalty separable rows
            have no optimum.
        class_weight: None, "balanced" (within each fold's training rows), or a
            mapping from label to weight.
        standardize: "fold" divides each column by the standard deviation of the rows
            fitted on (in ``fit`` that is all of them), "all" by that of all rows
            given to ``held_out``, None not at all. Coefficients always come back in
            raw activation units.
        precision: "float64" reaches the optimum to 1e-8 relative, "float32" to 1e-4.

    Fitted:
        certificate_: Distance to the optimum: gradient norm in the inverse Hessian's
            metric over the parameters' norm in the Hessian's.
        uncertified_: The fit itself where that is above 1e-8 (float64) or 1e-4
            (float32): what was found is kept, and ``fit`` warns with an
            ``UncertifiedWarning``. Empty otherwise.

    Source: folds on one factor by Newton-CG, see ``probes.solvers.newton.newton_cg``.
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
        everything = np.ones((1, len(rows)), dtype=bool)
        if weights is not None:
            # A row of weight 0 must leave the fit as if it were not there.
            rows, codes, weights = _drop_zero_weight(rows, codes, weights)
            everything = everything[:, : len(rows)]
            if len(codes.unique()) < len(self.classes_):
                raise RowsError("a class has no row with positive sample weight")
        result = crossfit(
            rows,
            codes,
            len(self.classes_),
            Folds(everything, ~everything, "all rows"),
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

        A mapping in ``class_weight`` is by class code here.
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
                fix="Without a penalty separable rows have no optimum; for a weak one "
                "use a large C, such as 1e4",
            )
        if self.standardize not in SCALINGS:
            raise RowsError(
                "unknown standardize",
                expected="None, 'fold' or 'all'",
                got=repr(self.standardize),
            )
        if self.precision not in PRECISIONS:
            raise RowsError(
                "unknown precision",
                expected="'float64' or 'float32'",
                got=repr(self.precision),
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
    """Softmax intercepts are free up to a constant: make them sum to 0."""
    if len(coef) > 1:
        intercept = intercept - intercept.mean()
    return coef, intercept
