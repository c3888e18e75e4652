"""Linear discriminant with a shrunken covariance, rows left out by downdates."""

import numbers

import torch
from torch import Tensor

from probes.base import SCALINGS, HeldOut, LinearProbe, ProbabilityMixin
from probes.folds import Folds
from probes.inputs import RowsError
from probes.job import spread
from probes.refits import by_refitting


class LDAProbe(ProbabilityMixin, LinearProbe):
    """Gaussian classes with one covariance, shrunk towards a multiple of identity.

    The covariance is (1 - s) S + s tr(S)/d I with S the pooled within-class
    covariance (divided by n): scikit-learn's ``LinearDiscriminantAnalysis`` with
    ``solver="lsqr"`` and this shrinkage. Priors are the class shares.

    Args:
        shrinkage: s, above 0 and at most 1.
        standardize: As in ``LogisticProbe``.
    """

    def __init__(self, shrinkage=0.1, standardize=None):
        self.shrinkage = shrinkage
        self.standardize = standardize

    def fit(self, X, y) -> "LDAProbe":
        """Fit on (row, d) ``X`` with (row,) labels ``y``."""
        rows, codes, _ = self._prepare(X, y)
        if self.standardize not in SCALINGS:
            raise RowsError("unknown standardize", got=repr(self.standardize))
        s = self._shrinkage()
        n, d = rows.shape
        centre = rows.mean(0)
        ones = torch.ones_like(rows[:, 0])
        scale = spread(rows - centre, ones) if self.standardize else 1.0
        rows = (rows - centre) / scale
        member = torch.nn.functional.one_hot(codes[0], len(self.classes_)).double()
        counts = member.sum(0)
        means = member.T @ rows / counts[:, None]
        within = (rows - means[codes[0]]) * (1 - s) ** 0.5 / n**0.5
        ridge = s * float((rows - means[codes[0]]).square().sum()) / (n * d)
        if ridge <= 0:
            raise RowsError(
                "no row differs from its class mean, so there is no covariance",
                fix="Use MeanDifferenceProbe",
            )
        coef = _solve_ridge(within, ridge, means)
        offset = -0.5 * (coef * means).sum(1) + (counts / n).log()
        if len(coef) == 2:
            coef, offset = coef[1:] - coef[:1], offset[1:] - offset[:1]
        coef = coef / scale
        return self._keep(coef, offset - coef @ centre)

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
        """As ``LinearProbe.held_out``: one spectrum, then few products a fold."""
        if self.standardize == "fold" or coefficients:
            return by_refitting(self, x, codes, classes, folds, coefficients)
        s = self._shrinkage()
        x = x.double() - x.double().mean(0)
        if self.standardize == "all":
            x = x / spread(x, torch.ones_like(x[:, 0]))
        n, d = x.shape
        # Rows in an orthonormal basis of their span: inner products stay.
        rows = torch.linalg.qr(x.T, mode="r").R.T if n < d else x
        columns = 1 if classes == 2 else classes
        out = x.new_full((len(codes), columns, n), torch.nan)
        for label in range(len(codes)):
            out[label] = _downdate(rows, codes[label], classes, folds, s, d, memory)
        return HeldOut(out, torch.zeros(len(codes), len(folds), dtype=torch.float64))

    def _shrinkage(self) -> float:
        s = self.shrinkage
        if not isinstance(s, numbers.Real) or not 0 < float(s) <= 1:
            raise RowsError(
                "shrinkage must be above 0 and at most 1",
                got=str(s),
                fix="With fewer rows than columns the covariance has no inverse "
                "without it",
            )
        return float(s)


def _solve_ridge(within: Tensor, ridge: float, sides: Tensor) -> Tensor:
    """(W'W + ridge I)^-1 applied to each row of ``sides``, by the smaller side."""
    n, d = within.shape
    if d <= n:
        system = within.T @ within
        system.diagonal().add_(ridge)
        return torch.cholesky_solve(sides.T, torch.linalg.cholesky(system)).T
    system = within @ within.T
    system.diagonal().add_(ridge)
    lower = torch.linalg.cholesky(system)
    inner = torch.cholesky_solve(within @ sides.T, lower).T @ within
    return (sides - inner) / ridge


def _downdate(
    rows: Tensor,
    codes: Tensor,
    classes: int,
    folds: Folds,
    s: float,
    d: int,
    memory: int,
) -> Tensor:
    """Held-out decision values of one label vector.

    With T the within-class scatter of all rows, a fold's scatter is T - V'V: V holds
    the removed rows' residuals and, for each class, the shift of its mean times the
    root of the rows left. In T's eigenbasis any ridge is a change of diagonal, and a
    fold needs only the inner products of V, its class means and its test rows.
    """
    n = len(rows)
    member = torch.nn.functional.one_hot(codes, classes).double()
    counts = member.sum(0)
    means = member.T @ rows / counts[:, None]
    residual = rows - means[codes]
    values, basis = torch.linalg.eigh(residual.T @ residual)
    values = values.clamp(min=0)
    rows, means, residual = rows @ basis, means @ basis, residual @ basis
    total = residual.square().sum()
    train = torch.as_tensor(folds.train, device=rows.device)
    test = torch.as_tensor(folds.test, device=rows.device)
    out = rows.new_full((1 if classes == 2 else classes, n), torch.nan)
    removed_counts = (~train).sum(1)
    widest = int(removed_counts.max())
    width = rows.shape[1]
    size = max(1, int(memory // (32 * width * (2 * widest + 2 * classes))))
    for start in range(0, len(folds), size):
        gone = ~train[start : start + size]
        many = len(gone)
        place = gone.nonzero()
        index = torch.zeros((many, widest), dtype=torch.long, device=rows.device)
        present = torch.arange(widest, device=rows.device) < gone.sum(1)[:, None]
        index[present] = place[:, 1]
        lost = residual[index] * present[:, :, None]  # (fold, g, width)
        which = member[index] * present[:, :, None]  # (fold, g, class)
        left = counts - which.sum(1)  # (fold, class)
        shift = -(which.transpose(1, 2) @ lost) / left[:, :, None]
        part_means = means + shift
        v = torch.cat([lost, left.sqrt()[:, :, None] * shift], 1)
        kept = left.sum(1)
        trace = total - v.square().sum((1, 2))
        ridge = s * trace / (kept * d)
        if bool((ridge <= 1e-14 * s * total / (n * d)).any()):
            raise RowsError(
                "in a fold no row differs from its class mean, so there is no "
                "covariance",
                fix="Use MeanDifferenceProbe",
            )
        # Inner products under ((1 - s) T / kept + ridge)^-1, before removal.
        share = (1 - s) / kept
        inverse = 1 / (share[:, None] * values + ridge[:, None])
        v = v * share.sqrt()[:, None, None]
        subject = torch.cat([part_means, rows[index]], 1)
        weighted = v * inverse[:, None, :]
        stiff = torch.eye(v.shape[1], dtype=v.dtype, device=v.device)
        core = torch.linalg.cholesky(stiff - weighted @ v.transpose(1, 2))
        half = torch.linalg.solve_triangular(
            core, weighted @ subject.transpose(1, 2), upper=False
        )
        product = (part_means * inverse[:, None, :]) @ subject.transpose(1, 2)
        product = product + half[:, :, :classes].transpose(1, 2) @ half
        own = product[:, :, :classes].diagonal(dim1=1, dim2=2)  # (fold, class)
        value = product[:, :, classes:] - 0.5 * own[:, :, None]
        value = value + (left / kept[:, None]).log()[:, :, None]
        if classes == 2:
            value = value[:, 1:] - value[:, :1]
        scored = present & test[start : start + size].gather(1, index)
        out[:, index[scored]] = value.transpose(1, 2)[scored].T
    return out
