"""A battery of nonlinear classifiers as stronger attackers, from scikit-learn."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from evidence.arrays import as_tensor, check_finite, validate_labels
from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import numpy_rng, stage_seed
from probes.estimators.logistic import LogisticProbe
from probes.solvers.uncertified import UncertifiedFit, warn_uncertified
from probes.splits import metrics
from probes.splits.folds import Folds, check_folds, group_codes, k_fold

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True, eq=False, repr=False)
class ClassifierBattery:
    """Held-out skill of every classifier on every view of the same rows.

    Attributes:
        rows: One row a classifier and view: view, classifier, auc, auc_low, auc_high, accuracy.
        uncertified: Logistic fits that are not certified to be at their optimum, by view and
            classifier; their scores are included.
    """

    rows: tuple[tuple[str, str, float, float, float, float], ...]
    uncertified: tuple[UncertifiedFit, ...] = ()

    def __repr__(self) -> str:
        auc = [row[2] for row in self.rows]
        text = f"ClassifierBattery({len(auc)} classifiers: AUC {min(auc):.2f} to {max(auc):.2f}"
        if self.uncertified:
            text += f", {len(self.uncertified)} fits uncertified"
        return text + ")"

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def to_frame(self) -> pd.DataFrame:
        """One row a classifier and view."""
        names = ["view", "classifier", "auc", "auc_low", "auc_high", "accuracy"]
        return pd.DataFrame(list(self.rows), columns=names)


def battery_classifiers(seed: int = 0, n_rows: int = 100) -> dict[str, BaseEstimator]:
    """Unfitted classifiers by name; all but the forest see standardized columns.

    Args:
        seed: Seed of the networks and the forest.
        n_rows: Fewest training rows of any fit; bounds the number of neighbors.
    """
    random_state = stage_seed(seed, "battery") % 2**32

    def scaled(classifier) -> BaseEstimator:
        return make_pipeline(StandardScaler(), classifier)

    classifiers: dict[str, BaseEstimator] = {
        f"logistic C={C:g}": LogisticProbe(C, standardize="fold") for C in PENALTIES
    }
    classifiers["mlp 64"] = scaled(MLPClassifier((64,), alpha=0.01, random_state=random_state))
    classifiers["mlp 128-64"] = scaled(
        MLPClassifier((128, 64), alpha=0.01, random_state=random_state)
    )
    classifiers["svm rbf"] = scaled(SVC(C=1.0))
    classifiers["nearest neighbours"] = scaled(KNeighborsClassifier(min(10, n_rows)))
    classifiers["random forest"] = RandomForestClassifier(200, random_state=random_state, n_jobs=1)
    return classifiers


def refit_battery(
    views: dict[str, ArrayLike],
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    folds: int = 5,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress = AUTO,
) -> ClassifierBattery:
    """Fit every classifier on every view by folds of whole groups.

    The best of these is a maximum: compare it with the maximum of the same battery on permuted
    labels or on a reference model, not with 0.5.

    Args:
        views: (row, d) tables of the same rows, such as {"last": ..., "mean": ...}.
        labels: (row,).
        groups: (row,) entities.
        folds: Number of folds.
        draws: Bootstrap draws of whole groups.
        seed: Seed of folds, classifiers and bootstrap.
        progress: One unit a fit.

    Warns:
        UncertifiedWarning: fits that are not certified to be at their optimum.

    Examples:
        >>> found = exhume.refit_battery(
        ...     {"last": states.site("resid.0")}, cities == "Lisbon", people, folds=2, draws=50)
        >>> found.to_frame()["classifier"].tolist()[-3:]
        ['svm rbf', 'nearest neighbours', 'random forest']
    """
    if not views:
        raise InputError("there are no views to read")
    tables = {name: as_tensor(table).cpu().numpy() for name, table in views.items()}
    n = len(next(iter(tables.values())))
    for name, table in tables.items():
        if table.ndim != 2 or len(table) != n:
            raise InputError(
                f"view {name} must have one vector a row",
                expected=f"({n}, d)",
                got=str(table.shape),
            )
        check_finite(torch.from_numpy(table), f"view {name}: the activations")
    classes, codes = validate_labels(labels, n)
    entities = group_codes(groups, n)
    scheme = k_fold(None if groups is None else entities, codes, folds, seed)
    check_folds(scheme, codes, classes)
    weights = metrics.cluster_bootstrap_weights(
        entities, draws, numpy_rng(seed, "battery bootstrap")
    )
    battery = battery_classifiers(seed, int(scheme.train.sum(1).min()))
    rows, uncertified = [], []
    with as_progress(progress).task("fitting classifiers", len(tables) * len(battery)) as advance:
        for view, table in tables.items():
            for name, classifier in battery.items():
                fits: list[UncertifiedFit] = []
                scores = held_out_scores(classifier, table, codes, len(classes), scheme, fits)
                uncertified += [replace(fit, site=view, name=name) for fit in fits]
                auc = metrics.weighted_auc(scores, codes, len(classes), np.ones((1, n)))
                bootstrap = metrics.weighted_auc(scores, codes, len(classes), weights)
                low, high = metrics.percentile_interval(bootstrap)
                predicted = scores.argmax(0) if len(scores) > 1 else scores[0] > 0
                accuracy = float((predicted == codes).mean())
                rows.append((view, name, float(auc[0]), low, high, accuracy))
                advance(1)
    warn_uncertified(uncertified)
    return ClassifierBattery(tuple(rows), tuple(uncertified))


def held_out_scores(
    classifier,
    x: NDArray[np.float64],
    codes: NDArray[np.int64],
    classes: int,
    folds: Folds,
    uncertified: list[UncertifiedFit] | None = None,
) -> NDArray[np.float64]:
    """(class or 1, row) held-out scores; 0 is the two-class threshold.

    Args:
        classifier: A scikit-learn classifier; fitted again in every fold.
        x: (row, d).
        codes: (row,) class codes.
        classes: Number of classes.
        folds: Training and test rows.
        uncertified: Receives the uncertified fits of a ``LogisticProbe``.
    """
    out = np.zeros((1 if classes == 2 else classes, len(x)))
    pairs = zip(folds.train, folds.test, strict=True)
    for fold, (train, test) in enumerate(pairs):
        with warnings.catch_warnings():
            # A network stopped early is a weaker attacker, not an error.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = classifier.fit(x[train], codes[train])
        if uncertified is not None:
            fits = getattr(fitted, "uncertified_", ())
            uncertified += [replace(fit, fold=fold) for fit in fits]
        if hasattr(fitted, "decision_function"):
            values = np.asarray(fitted.decision_function(x[test]))
        else:
            values = np.asarray(fitted.predict_proba(x[test]))
            values = values[:, 1] - 0.5 if classes == 2 else values
        out[:, test] = values.T if values.ndim == 2 else values
    return out
