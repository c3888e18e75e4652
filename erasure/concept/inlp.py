"""Iterative nullspace projection (INLP)."""

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from erasure.concept.adversary import fit_logistic_probe
from erasure.concept.affine import AffineEraser, orthogonal_projection
from erasure.concept.base import MomentEraser
from erasure.concept.leace import concept_whitening
from erasure.concept.moments import Moments
from erasure.inputs import class_codes
from evidence.arrays import ConceptKind, RowsError


class IterativeNullspace(MomentEraser):
    """INLP: project out the weights of one linear probe after another.

    The "ridge" probe is solved from moments, for all sites at once, for classes and numbers; the
    "logistic" probe is fitted on rows, for classes. Both stop when the next probe finds almost
    nothing *on the training rows*, or after ``max_probes``.

    Args:
        probe: Type of probe, "ridge" or "logistic".
        max_probes: Maximum number of probes. Each removes as many dimensions as the concept has
            independent columns (one for two classes).
        penalty: L2 penalty on the probe's weights: for "ridge" in units of the activations' mean
            variance, for "logistic" on standardized activations, added to the mean cross-entropy.
        tolerance: When to stop: for "ridge" the explained share of the concept's variance, for
            "logistic" the accuracy above that of the largest class.
        kind: "classes" or "numbers", how the concept is read; None for the rule of
            ``evidence.arrays``.

    Source: Ravfogel et al. (2020), arXiv 2004.07667.

    Examples:
        >>> x = states.site("resid.1")
        >>> eraser = exhume.IterativeNullspace(max_probes=3).fit(x, cities == "Lisbon")
        >>> eraser.rank_ <= 3
        True
    """

    def __init__(
        self,
        probe: str = "ridge",
        max_probes: int = 20,
        penalty: float = 1e-3,
        tolerance: float = 1e-2,
        kind: ConceptKind | None = None,
    ):
        self.probe = probe
        self.max_probes = max_probes
        self.penalty = penalty
        self.tolerance = tolerance
        self.kind = kind

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> "IterativeNullspace":
        """Fit on (item, d) or (site, item, d) activations and the concept ``y``.

        Raises:
            RowsError: A parameter is out of range, or the probe is logistic and the concept
                numeric.
        """
        self._check()
        if self.probe == "ridge":
            super().fit(X, y)
            return self
        tables, single = self._finite_tables(X, y)
        if self.kind == "numbers":
            raise RowsError("a logistic probe needs classes", fix='Use probe="ridge"')
        classes, codes = class_codes(y, tables.shape[1], None)
        one_hot = torch.nn.functional.one_hot(codes, len(classes)).to(tables)
        bases = [self._logistic(table, one_hot) for table in tables]
        ranks = torch.tensor([basis.shape[1] for basis in bases], device=tables.device)
        width = int(ranks.max())
        padded = [torch.nn.functional.pad(b, (0, width - b.shape[1])) for b in bases]
        self.eraser_ = orthogonal_projection(
            type(self).__name__, torch.stack(padded), ranks, tables.mean(1), single
        )
        return self

    def solve(self, moments: Moments) -> AffineEraser:
        """Solve with ridge probes.

        Raises:
            RowsError: A parameter is out of range, or the probe is logistic.
        """
        self._check()
        if self.probe != "ridge":
            raise RowsError(
                "a logistic probe cannot be fitted on moments",
                fix='Use fit(x, z), or probe="ridge"',
            )
        cov = moments.cov_xx
        cross = moments.cov_xz @ concept_whitening(moments.cov_zz)
        sites, d, free = cross.shape
        variance = cov.diagonal(dim1=1, dim2=2).mean(1)
        unit = torch.where(variance > 0, variance, 1.0)
        basis = cov.new_zeros(sites, d, 0)
        ranks = torch.zeros(sites, dtype=torch.int64, device=cov.device)
        active = torch.ones(sites, dtype=torch.bool, device=cov.device)
        eye = torch.eye(d, dtype=cov.dtype, device=cov.device)
        for _ in range(self.max_probes):
            complement = eye - basis @ basis.mT
            ridge = (self.penalty * unit)[:, None, None] * eye
            coef = torch.linalg.solve(complement @ cov @ complement + ridge, complement @ cross)
            # The whitened concept has uncorrelated columns of variance one.
            explained = (coef * cross).sum((1, 2)) / free
            active &= explained > self.tolerance
            n_new = min(free, d - basis.shape[2])
            if not bool(active.any()) or n_new == 0:
                break
            new_directions = _new_directions(basis, coef, n_new) * active[:, None, None]
            ranks += torch.where(active, (new_directions.square().sum(1) > 0.5).sum(1), 0)
            basis = torch.cat([basis, new_directions], 2)
        return orthogonal_projection(
            type(self).__name__, basis, ranks, moments.mean_x, moments.single_site
        )

    def _logistic(self, rows: Tensor, one_hot: Tensor) -> Tensor:
        """(d, rank) orthonormal directions of one site."""
        rows = rows - rows.mean(0)
        d = rows.shape[1]
        basis = rows.new_zeros(d, 0)
        largest = float(one_hot.mean(0).max())
        for _ in range(self.max_probes):
            remaining = rows - (rows @ basis) @ basis.T
            scale = remaining.square().mean(0).sqrt()
            # Features already projected out are rounding errors; do not rescale them.
            nonzero = scale > 1e-9 * scale.max()
            scale = torch.where(nonzero, scale, torch.inf)
            probe = fit_logistic_probe(remaining / scale, one_hot, self.penalty)
            n_new = min(one_hot.shape[1] - 1, d - basis.shape[1])
            if probe.accuracy <= largest + self.tolerance or n_new == 0:
                break
            coef = probe.coef / scale[:, None]
            new_directions = _new_directions(basis[None], coef[None], n_new)[0]
            basis = torch.cat([basis, new_directions[:, new_directions.square().sum(0) > 0.5]], 1)
        return basis

    def _check(self) -> None:
        if self.probe not in ("ridge", "logistic"):
            raise RowsError("unknown probe", expected='"ridge" or "logistic"', got=repr(self.probe))
        if self.max_probes < 1 or not self.penalty > 0 or self.tolerance < 0:
            raise RowsError(
                "a parameter is out of range",
                expected="max_probes from 1, penalty above 0, tolerance from 0",
                got=f"{self.max_probes}, {self.penalty}, {self.tolerance}",
            )


def _new_directions(basis: Tensor, coef: Tensor, n_new: int) -> Tensor:
    """Orthonormal (site, d, room) directions of ``coef`` orthogonal to ``basis``.

    Missing directions are zero.
    """
    residual = coef - basis @ (basis.mT @ coef)
    new, sizes, _ = torch.linalg.svd(residual, full_matrices=False)
    significant = (sizes > 1e-6 * sizes[:, :1]) & (sizes > 0)
    new = new * significant[:, None]
    # Orthogonalize twice: late probes lie along the basis up to rounding.
    new = new - basis @ (basis.mT @ new)
    size = new.norm(dim=1, keepdim=True)
    new = torch.where(size > 0.5, new / size.clamp(min=0.5), 0.0)
    return new[..., :n_new]
