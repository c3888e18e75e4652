"""Linear readers of hidden states: one logistic probe a site, raw-space weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from evidence.progress import Progress
from probes.estimators.logistic import LogisticProbe
from probes.solvers.uncertified import UncertifiedFit
from probes.splits.folds import Folds


@dataclass(frozen=True)
class SiteProbe:
    """One fitted linear reader a site.

    Attributes:
        weights: (site, d_model, output) in raw activation units; one output for a
            yes/no question, one a class otherwise.
        bias: (site, output).
        uncertified: Fits that are not certified to be at their optimum, by site.
    """

    weights: np.ndarray
    bias: np.ndarray
    uncertified: tuple[UncertifiedFit, ...] = ()

    def scores(self, states: np.ndarray) -> np.ndarray:
        """(site, item, output) decision values of ``states`` (site, item, d_model)."""
        return states.astype(np.float64) @ self.weights + self.bias[:, None, :]


def fit_site_probes(
    states: np.ndarray, labels: Sequence[np.ndarray], penalty: float, progress: Progress
) -> list[SiteProbe]:
    """Fit L2 logistic regression on standardised states, site by site, to its optimum.

    Standardisation uses the fitting rows alone. A site whose states do not vary gets
    zero weights: it reads nothing. What does not depend on the labels is computed once
    a site.

    Args:
        states: (site, item, d_model), finite.
        labels: Label vectors (item,) of class numbers, 0 to k - 1, every class present
            in each.
        penalty: Inverse regularisation strength (scikit-learn's C).
        progress: Where to show progress.

    Returns:
        A reader for each label vector.
    """
    codes = torch.from_numpy(np.stack(labels).astype(np.int64))
    classes = int(codes.max()) + 1
    outputs = 1 if classes == 2 else classes
    count, rows, width = states.shape
    weights = np.zeros((len(codes), count, width, outputs))
    bias = np.zeros((len(codes), count, outputs))
    lost: list[list[UncertifiedFit]] = [[] for _ in codes]
    every = np.ones((1, rows), dtype=bool)
    # All rows are fitted, so scaling by all of them is scaling by the fold.
    probe = LogisticProbe(C=penalty, standardize="all")
    with progress.task("fit probes", count) as done:
        # In float64: the deviation of equal float32 rows is not 0 but rounding.
        for site, x in enumerate(states.astype(np.float64)):
            if (x.std(0) > 1e-6 * max(1e-12, np.abs(x).max())).any():
                found = probe.held_out(
                    torch.from_numpy(x),
                    codes,
                    classes,
                    Folds(every, ~every, "all rows"),
                    coefficients=True,
                )
                assert found.coef is not None and found.intercept is not None
                weights[:, site] = found.coef[:, 0].transpose(1, 2).numpy()
                bias[:, site] = found.intercept[:, 0].numpy()
                for fit in found.uncertified:
                    named = replace(fit, site=f"site {site}", fold=None)
                    lost[fit.label].append(named)
            done(1)
    each = zip(weights, bias, map(tuple, lost), strict=True)
    return [SiteProbe(*parts) for parts in each]
