"""Linear probes of hidden states: one logistic regression a site, in raw units."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from evidence.progress import Progress, as_progress
from probes.estimators.logistic import LogisticProbe
from probes.solvers.uncertified import UncertifiedFit
from probes.splits.folds import Folds


@dataclass(frozen=True)
class SiteProbe:
    """One fitted linear probe a site.

    Attributes:
        weights: (site, d_model, output) in raw activation units; one output for a binary task,
            else one a class.
        bias: (site, output).
        uncertified: Fits without a certificate of optimality, by site.
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
    """Fit L2-regularized logistic regression on standardized states, site by site.

    Standardization uses the fitting rows alone. A site whose states do not vary gets zero
    weights. Work that does not depend on the labels is shared by the label vectors.

    Args:
        states: (site, item, d_model), finite.
        labels: Label vectors (item,) of class indices, 0 to k - 1, every class present in each.
        penalty: Inverse regularization strength (scikit-learn's C).

    Returns:
        One probe for each label vector.
    """
    codes = torch.from_numpy(np.stack(labels).astype(np.int64))
    classes = int(codes.max()) + 1
    outputs = 1 if classes == 2 else classes
    count, rows, width = states.shape
    weights = np.zeros((len(codes), count, width, outputs))
    bias = np.zeros((len(codes), count, outputs))
    by_label: list[list[UncertifiedFit]] = [[] for _ in codes]
    all_rows = np.ones((1, rows), dtype=bool)
    # All rows are fitted, so "all" and "fold" standardization agree.
    probe = LogisticProbe(C=penalty, standardize="all")
    with as_progress(progress).task("fit probes", count) as done:
        # In float64: the standard deviation of equal float32 rows is not exactly 0.
        for site, x in enumerate(states.astype(np.float64)):
            if (x.std(0) > 1e-6 * max(1e-12, np.abs(x).max())).any():
                fit = probe.held_out(
                    torch.from_numpy(x),
                    codes,
                    classes,
                    Folds(all_rows, ~all_rows, "all rows"),
                    coefficients=True,
                )
                assert fit.coef is not None and fit.intercept is not None
                weights[:, site] = fit.coef[:, 0].transpose(1, 2).numpy()
                bias[:, site] = fit.intercept[:, 0].numpy()
                for loose in fit.uncertified:
                    named = replace(loose, site=f"site {site}", fold=None)
                    by_label[loose.label].append(named)
            done(1)
    fitted = zip(weights, bias, map(tuple, by_label), strict=True)
    return [SiteProbe(*parts) for parts in fitted]
