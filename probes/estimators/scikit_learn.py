"""Classifiers of scikit-learn in the place of a probe, fitted again in every fold."""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.linalg import LinAlgError  # pyright: ignore

from evidence.errors import InputError, quoted
from probes.estimators.base import HeldOut, LinearProbe, ProbabilityMixin
from probes.solvers.uncertified import UncertifiedFit
from probes.splits.folds import Folds

MIN_PROBABILITY = 1e-12
"""Smallest probability whose logarithm is taken."""


class ScikitProbe(LinearProbe):
    """A scikit-learn classifier or pipeline, one fit a fold and label vector.

    Scores are log-odds from ``predict_proba`` where the classifier has it, else its decision
    values.

    Args:
        estimator: The classifier.
    """

    def __init__(self, estimator: Any = None):
        self.estimator = estimator

    @property
    def has_probabilities(self) -> bool:
        """Whether the scores are log-odds."""
        return hasattr(self.estimator, "predict_proba")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of the classifier, so that ``penalties=`` finds its ``C`` or ``alpha``."""
        return self.estimator.get_params(deep)

    def copy(self, **parameters) -> "ScikitProbe":
        """An unfitted copy with other parameters of the classifier."""
        return ScikitProbe(self._unfitted().set_params(**parameters))

    def _unfitted(self) -> Any:
        return clone(self.estimator)

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
        """As ``LinearProbe.held_out``. A fit that did not converge is listed as uncertified.

        Raises:
            InputError: coefficients are asked for, which only linear probes have.
        """
        if coefficients:
            raise InputError(
                f"{type(self.estimator).__name__} does not keep coefficients",
                fix="Leave out coefficients=, or use LogisticProbe, RidgeProbe, LDAProbe or "
                "MeanDifferenceProbe",
            )
        rows, labels = x.cpu().numpy(), codes.cpu().numpy()
        scores = np.full((len(labels), 1 if classes == 2 else classes, len(rows)), np.nan)
        certificate = np.zeros((len(labels), len(folds)))
        for fold, (train, test) in enumerate(zip(folds.train, folds.test, strict=True)):
            for label, row_labels in enumerate(labels):
                values, converged = self._fit(rows[train], row_labels[train], rows[test], classes)
                scores[label][:, test] = values
                certificate[label, fold] = 0.0 if converged else np.inf
        failed = np.argwhere(certificate > 0).tolist()
        return HeldOut(
            torch.from_numpy(scores).to(x.device),
            torch.from_numpy(certificate),
            uncertified=tuple(UncertifiedFit(np.inf, fold, label) for label, fold in failed),
        )

    def _fit(
        self, rows: NDArray, labels: NDArray, test_rows: NDArray, classes: int
    ) -> tuple[NDArray, bool]:
        """(class or 1, test row) scores of one fit, and whether it converged."""
        columns = 1 if classes == 2 else classes
        if len(test_rows) == 0:
            return np.zeros((columns, 0)), True
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                values = self._scores(self._unfitted().fit(rows, labels), test_rows, classes)
            except (LinAlgError, np.linalg.LinAlgError):
                values = np.full((columns, len(test_rows)), np.nan)
        converged = bool(np.isfinite(values).all())
        for warning in caught:
            if issubclass(warning.category, ConvergenceWarning):
                converged = False
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
        return np.where(np.isfinite(values), values, 0.0), converged

    def _scores(self, fitted: Any, rows: NDArray, classes: int) -> NDArray:
        if self.has_probabilities:
            logs = np.log(np.clip(fitted.predict_proba(rows), MIN_PROBABILITY, None)).T
            return logs[1:] - logs[:1] if classes == 2 else logs
        values = np.asarray(fitted.decision_function(rows))
        return values[None] if values.ndim == 1 else values.T


def as_probe(probe: Any) -> LinearProbe:
    """A probe of this toolkit as it is, and a classifier of scikit-learn as a ``ScikitProbe``.

    Raises:
        InputError: no classifier, or one without decision values.
    """
    if isinstance(probe, LinearProbe):
        return probe
    expected = "LogisticProbe(), another probe, or a classifier or pipeline of scikit-learn"
    if isinstance(probe, type):
        raise InputError(
            f"{probe.__name__} is a class, not a probe",
            expected=expected,
            fix=f"Write {probe.__name__}()",
        )
    if not isinstance(probe, BaseEstimator) or not is_classifier(probe):
        raise InputError("the probe is no classifier", expected=expected, got=quoted(probe))
    if not (hasattr(probe, "predict_proba") or hasattr(probe, "decision_function")):
        raise InputError(
            f"{type(probe).__name__} gives only predictions, so there is no AUC",
            expected="a classifier with predict_proba or decision_function",
        )
    if type(probe).__name__ == "SVC" and getattr(probe, "decision_function_shape", "") == "ovo":
        raise InputError(
            "SVC(decision_function_shape='ovo') scores pairs of classes",
            fix="Use decision_function_shape='ovr'",
        )
    return ScikitProbe(probe)


def gives_log_odds(probe: LinearProbe) -> bool:
    """Whether the probe's scores are log-odds, so that a log-loss means something."""
    if isinstance(probe, ScikitProbe):
        return probe.has_probabilities
    return isinstance(probe, ProbabilityMixin)
