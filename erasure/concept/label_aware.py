"""Erasure by those who know the label: what any eraser is measured against."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from erasure.concept.leace import concept_whitening
from erasure.concept.moments import Moments
from erasure.inputs import RowsError, class_codes, numeric_concept, site_tables
from evidence.storage.serialization import eraser_errors, read_eraser, write_eraser


@dataclass(frozen=True, eq=False, repr=False)
class OracleLeace:
    """Oracle LEACE: x -> x - coef (z - mean of z), the least-squares residual.

    Knowing each row's concept, it takes away just what the concept predicts. No eraser
    after which linear readers are at chance, with or without labels, moves the rows of
    the fit less. For measuring, not for use: the label goes in, and what comes out is
    no function of x.

    Attributes:
        coef: (d, k) or (site, d, k) float64.
        mean_z: (k,).
        classes: Sorted classes, or None for a concept made of numbers.
        rank_: Dimensions of the concept's span; one number a site.

    Source: Belrose et al. (2023), arXiv 2306.03819, section 5 on oracle erasure.
    """

    coef: Tensor
    mean_z: Tensor
    classes: NDArray | None
    rank_: int | tuple[int, ...]

    @classmethod
    def fit(cls, x: ArrayLike | Tensor, z: ArrayLike | Tensor) -> "OracleLeace":
        """Fit on (item, d) or (site, item, d) activations and the concept."""
        return cls.fit_moments(Moments().update(x, z))

    @classmethod
    def fit_moments(cls, moments: Moments) -> "OracleLeace":
        """Fit on what has been gathered chunk by chunk."""
        whiten = concept_whitening(moments.cov_zz)
        apart = moments.cov_xz @ whiten
        coef = apart @ whiten.T
        sizes = torch.linalg.svdvals(apart)
        ranks = ((sizes > 1e-8 * sizes[:, :1]) & (sizes > 0)).sum(1).tolist()
        single = moments.single_site
        return cls(
            coef[0] if single else coef,
            moments.mean_z,
            moments.classes,
            ranks[0] if single else tuple(ranks),
        )

    def transform(self, x, z: ArrayLike | Tensor):
        """Activations less what ``z``, each row's concept, predicts of them.

        Args:
            x: (item, d), or (site, item, d) if fitted so.
            z: As in ``fit``, one an item.

        Raises:
            RowsError: shapes do not fit, or there is a class that was not fitted.
        """
        tables, single = site_tables(x)
        sites = 1 if self.coef.ndim == 2 else len(self.coef)
        shape = (sites, tables.shape[1], self.coef.shape[-2])
        if tuple(tables.shape) != shape or single != (self.coef.ndim == 2):
            raise RowsError(
                "these activations do not fit the eraser",
                expected=str(shape[1:] if self.coef.ndim == 2 else shape),
                got=str(tuple(np.shape(x))),
            )
        if self.classes is None:
            target = numeric_concept(z, tables.shape[1])
        else:
            _, codes = class_codes(z, tables.shape[1], self.classes)
            target = torch.nn.functional.one_hot(codes, len(self.classes)).double()
        if target is None or target.shape[1] != len(self.mean_z):
            raise RowsError(
                "the concept is unlike the one fitted on",
                expected=f"{len(self.mean_z)} column(s) of floating-point numbers",
            )
        apart = (target.to(self.mean_z.device) - self.mean_z) @ self.coef.mT
        inside = torch.float32 if tables.dtype.itemsize < 4 else tables.dtype
        moved = tables.to(inside) - apart.to(dtype=inside, device=tables.device)
        moved = (moved[0] if single else moved).to(tables.dtype)
        return moved if isinstance(x, Tensor) else moved.numpy()

    def save(self, path: Path | str) -> None:
        """Write one safetensors file."""
        facts = {
            "classes": None if self.classes is None else self.classes.tolist(),
            "rank": self.rank_,
        }
        tensors = {"coef": self.coef, "mean_z": self.mean_z}
        write_eraser(path, type(self).__name__, tensors, facts)

    @classmethod
    def load(cls, path: Path | str) -> "OracleLeace":
        """Read what ``save`` wrote."""
        tensors, facts = read_eraser(path, cls.__name__)
        with eraser_errors(path):
            classes = None if facts["classes"] is None else np.array(facts["classes"])
            rank = facts["rank"]
            rank = rank if isinstance(rank, int) else tuple(rank)
            return cls(tensors["coef"], tensors["mean_z"], classes, rank)
