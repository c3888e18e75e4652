"""Linear readers of hidden states: one logistic probe a site, raw-space weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evidence.progress import Progress


@dataclass(frozen=True)
class Reader:
    """One fitted linear reader a site.

    Attributes:
        weights: (site, d_model, output) in raw activation units; one output for a
            yes/no question, one a class otherwise.
        bias: (site, output).
    """

    weights: np.ndarray
    bias: np.ndarray

    def scores(self, states: np.ndarray) -> np.ndarray:
        """(site, item, output) decision values of ``states`` (site, item, d_model)."""
        return states.astype(np.float64) @ self.weights + self.bias[:, None, :]


def fit_readers(
    states: np.ndarray, labels: Sequence[np.ndarray], penalty: float, progress: Progress
) -> list[Reader]:
    """One reader for each label vector; see ``fit_reader``."""
    return [fit_reader(states, each, penalty, progress) for each in labels]


def fit_reader(
    states: np.ndarray, labels: np.ndarray, penalty: float, progress: Progress
) -> Reader:
    """Fit L2 logistic regression on standardised states, site by site.

    Standardisation uses the fitting rows alone. A site whose states do not vary gets
    zero weights: it reads nothing.

    Args:
        states: (site, item, d_model), finite.
        labels: (item,) class numbers, 0 to k - 1, every class present.
        penalty: Inverse regularisation strength (scikit-learn's C).
        progress: Where to show progress.
    """
    classes = int(labels.max()) + 1
    outputs = 1 if classes == 2 else classes
    weights = np.zeros((len(states), states.shape[2], outputs))
    bias = np.zeros((len(states), outputs))
    with progress.task("fit probes", len(states)) as done:
        for site, x in enumerate(states.astype(np.float64)):
            if (x.std(0) > 1e-6 * max(1e-12, np.abs(x).max())).any():
                scaler = StandardScaler().fit(x)
                model = LogisticRegression(C=penalty, max_iter=2000, tol=1e-4)
                model.fit(scaler.transform(x), labels)
                raw = model.coef_ / scaler.scale_
                weights[site] = raw.T
                bias[site] = model.intercept_ - raw @ scaler.mean_
            done(1)
    return Reader(weights, bias)
