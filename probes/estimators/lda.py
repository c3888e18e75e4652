"""Linear discriminant analysis with shrunk covariance, leaving rows out by downdates."""

import numbers
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from evidence.arrays import RowsError
from probes.estimators.base import (
    SCALINGS,
    DegenerateRows,
    HeldOut,
    LinearProbe,
    ProbabilityMixin,
    degenerate_if_singular,
    held_out_or_refit,
    refit_held_out,
)
from probes.solvers.objective.factor import gram_matrix
from probes.solvers.problem import column_std
from probes.splits.folds import Folds


class LDAProbe(ProbabilityMixin, LinearProbe):
    """Gaussian classes with a common covariance, shrunk towards a multiple of the identity.

    The covariance is (1 - s) S + s tr(S)/d I with S the pooled within-class covariance (divided by
    n): scikit-learn's ``LinearDiscriminantAnalysis`` with ``solver="lsqr"`` and this shrinkage.
    Priors are the class frequencies.

    Args:
        shrinkage: s, above 0 and at most 1.
        standardize: As in ``LogisticProbe``.

    Examples:
        >>> probe = exhume.LDAProbe(shrinkage=0.2).fit(states.site("resid.1"), cities)
        >>> probe.predict_proba(states.site("resid.1")).shape
        (76, 8)
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
        center = rows.mean(0)
        ones = torch.ones_like(rows[:, 0])
        scale = column_std(rows - center, ones) if self.standardize else 1.0
        rows = (rows - center) / scale
        member = torch.nn.functional.one_hot(codes[0], len(self.classes_)).double()
        counts = member.sum(0)
        means = member.T @ rows / counts[:, None]
        within = (rows - means[codes[0]]) * (1 - s) ** 0.5 / n**0.5
        ridge = s * float((rows - means[codes[0]]).square().sum()) / (n * d)
        if ridge <= 0:
            raise DegenerateRows(
                "no row differs from its class mean, so there is no covariance",
                fix="Use MeanDifferenceProbe",
            )
        if not ridge < float("inf"):
            raise DegenerateRows(
                "the rows are too large for their squares to be added up",
                fix="Divide the activations by their scale first",
            )
        with degenerate_if_singular():
            coef = _solve_ridge(within, ridge, means)
        offset = -0.5 * (coef * means).sum(1) + (counts / n).log()
        if len(coef) == 2:
            coef, offset = coef[1:] - coef[:1], offset[1:] - offset[:1]
        coef = coef / scale
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
        """As ``LinearProbe.held_out``: one eigendecomposition for all folds."""
        if self.standardize == "fold" or coefficients:
            return refit_held_out(self, x, codes, classes, folds, coefficients)
        self._shrinkage()
        scores = partial(self._closed_form, x, codes, classes, folds, memory)
        return held_out_or_refit(scores, self, x, codes, classes, folds)

    def _closed_form(
        self, x: Tensor, codes: Tensor, classes: int, folds: Folds, memory: int
    ) -> Tensor:
        """(label, class or 1, row) held-out scores."""
        s = self._shrinkage()
        x = x.double() - x.double().mean(0)
        if self.standardize == "all":
            x = x / column_std(x, torch.ones_like(x[:, 0]))
        n, d = x.shape
        gram = gram_matrix(x) if n < d else None
        columns = 1 if classes == 2 else classes
        out = x.new_full((len(codes), columns, n), torch.nan)
        for label in range(len(codes)):
            out[label] = _downdate(x, gram, codes[label], classes, folds, s, memory)
        return out

    def _shrinkage(self) -> float:
        shrinkage = self.shrinkage
        if not isinstance(shrinkage, numbers.Real) or not 0 < float(shrinkage) <= 1:
            raise RowsError(
                "shrinkage must be above 0 and at most 1",
                got=str(shrinkage),
                fix="With fewer rows than columns the covariance has no inverse without shrinkage",
            )
        return float(shrinkage)


def _solve_ridge(within: Tensor, ridge: float, sides: Tensor) -> Tensor:
    """(W'W + ridge I)^-1 applied to each row of ``sides``, by the smaller system."""
    n, d = within.shape
    wide = d > n
    system = within @ within.T if wide else within.T @ within
    system.diagonal().add_(ridge)
    lower, failed = torch.linalg.cholesky_ex(system)
    if bool(failed):  # squared, the scales differ by more than float64 holds
        _, sizes, axes = torch.linalg.svd(within, full_matrices=False)
        along = sides @ axes.T
        inside = along / (sizes.square() + ridge)
        return inside @ axes + (sides - along @ axes) / ridge
    if not wide:
        return torch.cholesky_solve(sides.T, lower).T
    inner = torch.cholesky_solve(within @ sides.T, lower).T @ within
    return (sides - inner) / ridge


@dataclass(frozen=True)
class _Scatter:
    """Eigendecomposition of the within-class scatter T of all rows.

    Attributes:
        values: (width,) eigenvalues of T.
        coordinates: (class + row, width) class means, then rows minus their class mean, in T's
            eigenbasis.
        outside_products: (class, class) inner products of the class means' components outside that
            basis.
    """

    values: Tensor
    coordinates: Tensor
    outside_products: Tensor

    def products(self, vectors: Tensor, ridge: Tensor | None = None) -> Tensor:
        """(fold, k, k) inner products of some of ``coordinates``, the class means first.

        Args:
            vectors: (fold, k, width), scaled by the root of an inverse eigenvalue where T is
                inverted.
            ridge: (fold,) the inverse's ridge.
        """
        products = vectors @ vectors.mT
        classes = len(self.outside_products)
        scale = 1.0 if ridge is None else 1 / ridge[:, None, None]
        products[:, :classes, :classes] += self.outside_products * scale
        return products


def _scatter(x: Tensor, gram: Tensor | None, member: Tensor) -> _Scatter:
    """The scatter of rows (row, d) in classes (row, class), one-hot.

    Where features are many, T = R'R has the values of the (row, row) R R' = U V U', R's
    places are U V^(1/2) and any row's are those of V^(-1/2) U'R.
    """
    mean = (member / member.sum(0)).T
    if gram is None:
        means = mean @ x
        residual = x - member @ means
        values, basis = torch.linalg.eigh(residual.T @ residual)
        coordinates = torch.cat([means, residual]) @ basis
        zeros = x.new_zeros(len(mean), len(mean))
        return _Scatter(values.clamp(min=0), coordinates, zeros)
    class_gram = mean @ gram  # (class, row)
    mean_gram = class_gram @ mean.T
    means = class_gram - mean_gram @ member.T  # inner products with R
    residual_gram = gram - class_gram.T @ member.T - member @ means
    values, basis = torch.linalg.eigh(residual_gram)
    # Eigenvalues at rounding level are zero.
    is_direction = values > len(x) * torch.finfo(x.dtype).eps * values[-1]
    root = torch.where(is_direction, values, 0.0).sqrt()
    means = means @ basis * torch.where(is_direction, 1 / root, 0.0)
    coordinates = torch.cat([means, basis * root])
    return _Scatter(root.square(), coordinates, mean_gram - means @ means.T)


def _downdate(
    x: Tensor, gram: Tensor | None, codes: Tensor, classes: int, folds: Folds, s: float, memory: int
) -> Tensor:
    """Held-out decision values of one label vector.

    With T the within-class scatter of all rows, a fold's scatter is T - V'V: V holds the removed
    rows' residuals and, for each class, the shift of its mean times the root of the rows left. All
    of these are combinations of class means and removed rows, so a fold needs the inner products of
    those only.
    """
    n, d = x.shape
    member = torch.nn.functional.one_hot(codes, classes).double()
    counts = member.sum(0)
    scatter = _scatter(x, gram, member)
    total = scatter.values.sum()
    train = torch.as_tensor(folds.train, device=x.device)
    test = torch.as_tensor(folds.test, device=x.device)
    out = x.new_full((1 if classes == 2 else classes, n), torch.nan)
    widest = int((~train).sum(1).max())
    size_per_fold = classes + widest
    eye = torch.eye(size_per_fold, dtype=x.dtype, device=x.device)
    folds_per_chunk = max(
        1, int(memory // (24 * size_per_fold * (len(scatter.values) + 4 * size_per_fold)))
    )
    for start in range(0, len(folds), folds_per_chunk):
        removed = ~train[start : start + folds_per_chunk]
        n_folds = len(removed)
        index = torch.zeros((n_folds, widest), dtype=torch.long, device=x.device)
        is_row = torch.arange(widest, device=x.device) < removed.sum(1)[:, None]
        index[is_row] = removed.nonzero()[:, 1]
        removed_classes = member[index] * is_row[:, :, None]  # (fold, g, class)
        counts_left = counts - removed_classes.sum(1)  # (fold, class)
        rows_left = counts_left.sum(1)
        # Coefficients on class means and removed rows' residuals.
        zeros = torch.zeros_like(removed_classes)
        removed_part = torch.cat([zeros, eye[classes:, classes:] * is_row[:, :, None]], 2)
        shift = -(removed_classes.mT @ removed_part) / counts_left[:, :, None]
        part_means = eye[:classes] + shift
        v = torch.cat([removed_part, counts_left.sqrt()[:, :, None] * shift], 1)
        rows = torch.cat([removed_classes, eye[classes:, classes:].expand(n_folds, -1, -1)], 2)
        scored_vectors = torch.cat([part_means, rows], 1)
        means = torch.arange(classes, device=x.device).expand(n_folds, -1)
        vectors = scatter.coordinates[torch.cat([means, classes + index], 1)]
        trace = total - (v @ scatter.products(vectors) * v).sum((1, 2))
        ridge = s * trace / (rows_left * d)
        if bool((ridge <= 1e-14 * s * total / (n * d)).any()):
            raise DegenerateRows(
                "in a fold no row differs from its class mean, so there is no covariance",
                fix="Use MeanDifferenceProbe",
            )
        share = (1 - s) / rows_left
        # Inner products under ((1 - s) T / kept + ridge)^-1, before removal.
        scale = share[:, None] * scatter.values + ridge[:, None]
        product = scatter.products(vectors * scale.rsqrt()[:, None], ridge)
        v = v * share.sqrt()[:, None, None]
        weighted = v @ product
        eye_v = torch.eye(v.shape[1], dtype=v.dtype, device=v.device)
        core = torch.linalg.cholesky(eye_v - weighted @ v.mT)
        half = torch.linalg.solve_triangular(core, weighted @ scored_vectors.mT, upper=False)
        product = part_means @ product @ scored_vectors.mT
        product = product + half[:, :, :classes].mT @ half
        self_product = product[:, :, :classes].diagonal(dim1=1, dim2=2)  # (fold, class)
        values = product[:, :, classes:] - 0.5 * self_product[:, :, None]
        values = values + (counts_left / rows_left[:, None]).log()[:, :, None]
        if classes == 2:
            values = values[:, 1:] - values[:, :1]
        scored = is_row & test[start : start + folds_per_chunk].gather(1, index)
        out[:, index[scored]] = values.mT[scored].T
    return out
