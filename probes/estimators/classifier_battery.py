"""An attacker's battery: readers beyond the linear one, from scikit-learn parts."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from evidence.arrays import validate_labels
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng, stage_seed
from probes.estimators.logistic import LogisticProbe
from probes.solvers.uncertified import UncertifiedFit, warn_uncertified
from probes.splits import metrics
from probes.splits.folds import Folds, check_folds, group_codes, k_fold

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True, eq=False, repr=False)
class ClassifierBattery:
    """Held-out skill of every reader on every view of the same rows.

    Attributes:
        rows: One row a reader and view: view, reader, auc, auc_low, auc_high,
            accuracy.
        uncertified: Logistic fits that are not certified to be at their optimum, by
            view and reader; their scores count.
    """

    rows: tuple[tuple[str, str, float, float, float, float], ...]
    uncertified: tuple[UncertifiedFit, ...] = ()

    def __repr__(self) -> str:
        area = [row[2] for row in self.rows]
        text = f"Battery({len(area)} readers: AUC {min(area):.2f} to {max(area):.2f}"
        if self.uncertified:
            text += f", {len(self.uncertified)} fits uncertified"
        return text + ")"

    def to_frame(self) -> pd.DataFrame:
        """One row a reader and view."""
        names = ["view", "reader", "auc", "auc_low", "auc_high", "accuracy"]
        return pd.DataFrame(list(self.rows), columns=names)


def battery_classifiers(seed: int = 0, n_rows: int = 100) -> dict[str, BaseEstimator]:
    """Unfitted readers by name; all but the forest see standardised columns.

    Args:
        seed: Of the networks and the forest.
        n_rows: Fewest rows any fit will have; bounds the neighbours.
    """
    number = stage_seed(seed, "battery") % 2**32

    def scaled(model) -> BaseEstimator:
        return make_pipeline(StandardScaler(), model)

    found: dict[str, BaseEstimator] = {
        f"logistic C={C:g}": LogisticProbe(C, standardize="fold") for C in PENALTIES
    }
    found["mlp 64"] = scaled(MLPClassifier((64,), alpha=0.01, random_state=number))
    found["mlp 128-64"] = scaled(
        MLPClassifier((128, 64), alpha=0.01, random_state=number)
    )
    found["svm rbf"] = scaled(SVC(C=1.0))
    found["nearest neighbours"] = scaled(KNeighborsClassifier(min(10, n_rows)))
    found["random forest"] = RandomForestClassifier(200, random_state=number, n_jobs=1)
    return found


def refit_battery(
    views: dict[str, ArrayLike],
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    folds: int = 5,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress = SILENT,
) -> ClassifierBattery:
    """Fit every reader on every view by folds of whole groups.

    Args:
        views: (row, d) tables of the same rows, such as {"last": ..., "mean": ...}.
        labels: (row,).
        groups: (row,) entities.
        folds: Number of folds.
        draws: Bootstrap draws of whole groups.
        seed: Of folds, readers and bootstrap.
        progress: Shows fits.

    Warns:
        UncertifiedWarning: fits that are not certified to be at their optimum.

    The best of these is a maximum: compare it with the maximum of the same battery on
    permuted labels or on a floor model, not with 0.5.
    """
    if not views:
        raise InputError("there are no views to read")
    tables = {name: np.asarray(table, np.float64) for name, table in views.items()}
    n = len(next(iter(tables.values())))
    for name, table in tables.items():
        if table.ndim != 2 or len(table) != n or not np.isfinite(table).all():
            raise InputError(
                f"view {name} must hold one finite vector a row",
                expected=f"({n}, d)",
                got=str(table.shape),
            )
    classes, codes = validate_labels(labels, n)
    group = group_codes(groups, n)
    scheme = k_fold(None if groups is None else group, codes, folds, seed)
    check_folds(scheme, codes, classes)
    weights = metrics.cluster_bootstrap_weights(
        group, draws, numpy_rng(seed, "battery bootstrap")
    )
    battery = battery_classifiers(seed, int(scheme.train.sum(1).min()))
    out, uncertified = [], []
    with progress.task("fitting readers", len(tables) * len(battery)) as advance:
        for view, table in tables.items():
            for name, reader in battery.items():
                lost: list[UncertifiedFit] = []
                scores = held_out_scores(
                    reader, table, codes, len(classes), scheme, lost
                )
                uncertified += [replace(fit, site=view, name=name) for fit in lost]
                area = metrics.weighted_auc(
                    scores, codes, len(classes), np.ones((1, n))
                )
                drawn = metrics.weighted_auc(scores, codes, len(classes), weights)
                low, high = metrics.percentile_interval(drawn)
                guess = scores.argmax(0) if len(scores) > 1 else scores[0] > 0
                right = float((guess == codes).mean())
                out.append((view, name, float(area[0]), low, high, right))
                advance(1)
    warn_uncertified(uncertified)
    return ClassifierBattery(tuple(out), tuple(uncertified))


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
        classifier: A scikit-learn classifier; fitted anew in every fold.
        x: (row, d).
        codes: (row,) class codes.
        classes: Number of classes.
        folds: Who is left out together.
        uncertified: Where to add the fits of a ``LogisticProbe`` that are not
            certified to be at their optimum.
    """
    out = np.zeros((1 if classes == 2 else classes, len(x)))
    pairs = zip(folds.train, folds.test, strict=True)
    for fold, (train, test) in enumerate(pairs):
        with warnings.catch_warnings():
            # A network stopped early is an attacker with less patience, not a fault.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = classifier.fit(x[train], codes[train])
        if uncertified is not None:
            lost = getattr(fitted, "uncertified_", ())
            uncertified += [replace(fit, fold=fold) for fit in lost]
        if hasattr(fitted, "decision_function"):
            value = np.asarray(fitted.decision_function(x[test]))
        else:
            value = np.asarray(fitted.predict_proba(x[test]))
            value = value[:, 1] - 0.5 if classes == 2 else value
        out[:, test] = value.T if value.ndim == 2 else value
    return out
