"""Nearest class mean, with exact scores for rows left out."""

from functools import partial

import torch
from torch import Tensor

from evidence.arrays import RowsError
from probes.estimators.base import SCALINGS, HeldOut, LinearProbe, held_out_or_refit, refit_held_out
from probes.solvers.problem import column_std
from probes.splits.folds import Folds


class MeanDifferenceProbe(LinearProbe):
    """Nearest-mean classifier; for two classes, the difference of their means.

    The decision value of a class is x . m - ||m||^2 / 2 for its mean m, and for two classes the
    second's minus the first's, so 0 lies halfway between the means.

    Args:
        standardize: As in ``LogisticProbe``.

    Source: Marks and Tegmark (2023), arXiv 2310.06824, "mass-mean" probing.

    Examples:
        >>> probe = exhume.MeanDifferenceProbe().fit(states.site("resid.1"), cities == "Lisbon")
        >>> bool(probe.decision_function(states.site("resid.1")[cities == "Lisbon"]).min() > 0)
        True
    """

    def __init__(self, standardize=None):
        self.standardize = standardize

    def fit(self, X, y) -> "MeanDifferenceProbe":
        """Fit on (row, d) ``X`` with (row,) labels ``y``."""
        rows, codes, _ = self._prepare(X, y)
        if self.standardize not in SCALINGS:
            raise RowsError("unknown standardize", got=repr(self.standardize))
        ones = torch.ones_like(rows[:, 0])
        center = rows.mean(0)
        scale = column_std(rows - center, ones) if self.standardize else 1.0
        rows = (rows - center) / scale
        means = torch.stack([rows[codes[0] == code].mean(0) for code in range(len(self.classes_))])
        offset = -0.5 * means.square().sum(1)
        if len(means) == 2:
            means, offset = means[1:] - means[:1], offset[1:] - offset[:1]
        coef = means / scale
        return self._set_fitted(coef, offset - coef @ center)

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
        """As ``LinearProbe.held_out``: class sums minus the sums of the rows left out."""
        if self.standardize == "fold" or coefficients:
            return refit_held_out(self, x, codes, classes, folds, coefficients)
        scores = partial(self._closed_form, x, codes, classes, folds, memory)
        return held_out_or_refit(scores, self, x, codes, classes, folds)

    def _closed_form(
        self, x: Tensor, codes: Tensor, classes: int, folds: Folds, memory: int
    ) -> Tensor:
        """(label, class or 1, row) held-out scores."""
        x = x.double() - x.double().mean(0)
        if self.standardize == "all":
            x = x / column_std(x, torch.ones_like(x[:, 0]))
        n, d = x.shape
        columns = 1 if classes == 2 else classes
        out = x.new_full((len(codes), columns, n), torch.nan)
        train = torch.as_tensor(folds.train, device=x.device)
        is_left_out = (~train).double()
        tested = torch.as_tensor(folds.test, device=x.device).nonzero()
        folds_per_chunk = max(1, int(memory // (16 * classes * (d + n))))
        for label in range(len(codes)):
            member = torch.nn.functional.one_hot(codes[label], classes).double()
            sums, counts = member.T @ x, member.sum(0)
            for start in range(0, len(folds), folds_per_chunk):
                part = is_left_out[start : start + folds_per_chunk]
                removed = torch.einsum("fi,ic,id->fcd", part, member, x)
                counts_left = counts - part @ member  # (fold, class)
                means = (sums - removed) / counts_left[:, :, None]
                in_chunk = (tested[:, 0] >= start) & (tested[:, 0] < start + len(part))
                fold, row = tested[in_chunk, 0] - start, tested[in_chunk, 1]
                fold_means = means[fold]  # (test row, class, d)
                values = torch.einsum("tcd,td->tc", fold_means, x[row])
                values = values - 0.5 * means.square().sum(2)[fold]
                if columns == 1:
                    values = values[:, 1:] - values[:, :1]
                out[label, :, row] = values.T
        return out
