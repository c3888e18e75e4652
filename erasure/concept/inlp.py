"""Iterative nullspace projection: fit a reader, project off what it reads, again."""

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from erasure.concept.adversary import fit_logistic_probe
from erasure.concept.affine import AffineEraser, orthogonal_projection
from erasure.concept.base import MomentEraser
from erasure.concept.leace import concept_whitening
from erasure.concept.moments import Moments
from erasure.inputs import RowsError, class_codes


class IterativeNullspace(MomentEraser):
    """INLP: projects off the weights of one linear reader after another.

    The "ridge" reader is solved from moments, for all sites at once, for classes and
    for numbers; the "logistic" one, for classes, from rows. Both stop where the next
    reader finds next to nothing *in the rows of the fit*, or after ``rounds``.

    Args:
        reader: "ridge" or "logistic".
        rounds: Readers at most. Each removes as many dimensions as the concept has
            columns that are free (one for two classes).
        penalty: On the reader's weights: for "ridge" in units of the mean variance of
            the activations, for "logistic" on standardised activations, beside the
            mean cross-entropy.
        tolerance: Where to stop: for "ridge" the share of the concept's variance that
            is explained, for "logistic" how far accuracy is above the largest class.

    Source: Ravfogel et al. (2020), arXiv 2004.07667.
    """

    def __init__(
        self,
        reader: str = "ridge",
        rounds: int = 20,
        penalty: float = 1e-3,
        tolerance: float = 1e-2,
    ):
        self.reader = reader
        self.rounds = rounds
        self.penalty = penalty
        self.tolerance = tolerance

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> "IterativeNullspace":
        """Fit on (item, d) or (site, item, d) activations and the concept ``y``.

        Raises:
            RowsError: a parameter is out of range; a logistic reader of numbers.
        """
        self._check()
        if self.reader == "ridge":
            super().fit(X, y)
            return self
        tables, single = self._finite_tables(X, y)
        classes, codes = class_codes(y, tables.shape[1], None)
        member = torch.nn.functional.one_hot(codes, len(classes)).to(tables)
        bases = [self._logistic(table, member) for table in tables]
        ranks = torch.tensor([basis.shape[1] for basis in bases], device=tables.device)
        width = int(ranks.max())
        whole = [torch.nn.functional.pad(b, (0, width - b.shape[1])) for b in bases]
        self.eraser_ = orthogonal_projection(
            type(self).__name__, torch.stack(whole), ranks, tables.mean(1), single
        )
        return self

    def solve(self, moments: Moments) -> AffineEraser:
        """The eraser for what ``moments`` has gathered, with ridge readers.

        Raises:
            RowsError: a parameter is out of range, or the reader needs rows.
        """
        self._check()
        if self.reader != "ridge":
            raise RowsError(
                "a logistic reader cannot be fitted on moments",
                fix='Use fit(x, z), or reader="ridge"',
            )
        cov = moments.cov_xx
        cross = moments.cov_xz @ concept_whitening(moments.cov_zz)
        sites, d, free = cross.shape
        variance = cov.diagonal(dim1=1, dim2=2).mean(1)
        unit = torch.where(variance > 0, variance, 1.0)
        basis = cov.new_zeros(sites, d, 0)
        ranks = torch.zeros(sites, dtype=torch.int64, device=cov.device)
        going = torch.ones(sites, dtype=torch.bool, device=cov.device)
        eye = torch.eye(d, dtype=cov.dtype, device=cov.device)
        for _ in range(self.rounds):
            off = eye - basis @ basis.mT
            penal = (self.penalty * unit)[:, None, None] * eye
            coef = torch.linalg.solve(off @ cov @ off + penal, off @ cross)
            # Columns of the concept have variance one and are uncorrelated.
            explained = (coef * cross).sum((1, 2)) / free
            going &= explained > self.tolerance
            room = min(free, d - basis.shape[2])
            if not bool(going.any()) or room == 0:
                break
            fresh = _new_directions(basis, coef, room) * going[:, None, None]
            ranks += torch.where(going, (fresh.square().sum(1) > 0.5).sum(1), 0)
            basis = torch.cat([basis, fresh], 2)
        return orthogonal_projection(
            type(self).__name__, basis, ranks, moments.mean_x, moments.single_site
        )

    def _logistic(self, rows: Tensor, member: Tensor) -> Tensor:
        """(d, rank) orthonormal directions for the rows of one site."""
        rows = rows - rows.mean(0)
        d = rows.shape[1]
        basis = rows.new_zeros(d, 0)
        largest = float(member.mean(0).max())
        for _ in range(self.rounds):
            left = rows - (rows @ basis) @ basis.T
            scale = left.square().mean(0).sqrt()
            # Features already projected away are rounding and must not be blown up.
            real = scale > 1e-9 * scale.max()
            scale = torch.where(real, scale, torch.inf)
            reader = fit_logistic_probe(left / scale, member, self.penalty)
            room = min(member.shape[1] - 1, d - basis.shape[1])
            if reader.accuracy <= largest + self.tolerance or room == 0:
                break
            coef = reader.coef / scale[:, None]
            fresh = _new_directions(basis[None], coef[None], room)[0]
            basis = torch.cat([basis, fresh[:, fresh.square().sum(0) > 0.5]], 1)
        return basis

    def _check(self) -> None:
        if self.reader not in ("ridge", "logistic"):
            raise RowsError(
                "unknown reader",
                expected='"ridge" or "logistic"',
                got=repr(self.reader),
            )
        if self.rounds < 1 or not self.penalty > 0 or self.tolerance < 0:
            raise RowsError(
                "a parameter is out of range",
                expected="rounds from 1, penalty above 0, tolerance from 0",
                got=f"{self.rounds}, {self.penalty}, {self.tolerance}",
            )


def _new_directions(basis: Tensor, coef: Tensor, room: int) -> Tensor:
    """Orthonormal (site, d, room) directions of ``coef`` at right angles to ``basis``.

    Directions that ``coef`` does not have are zero.
    """
    off = coef - basis @ (basis.mT @ coef)
    new, sizes, _ = torch.linalg.svd(off, full_matrices=False)
    kept = (sizes > 1e-6 * sizes[:, :1]) & (sizes > 0)
    new = new * kept[:, None]
    # Once more: readers of what is nearly gone lie along the basis but for rounding.
    new = new - basis @ (basis.mT @ new)
    size = new.norm(dim=1, keepdim=True)
    new = torch.where(size > 0.5, new / size.clamp(min=0.5), 0.0)
    return new[..., :room]
