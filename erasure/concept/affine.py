"""What a fitted eraser does to activations: one affine map a site, of low rank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erasure.inputs import RowsError, from_numpy
from evidence.storage.serialization import eraser_errors, read_eraser, write_eraser

Rows = TypeVar("Rows", Tensor, NDArray)


@dataclass(frozen=True, eq=False, repr=False)
class AffineEraser:
    """The map x -> x - left (right (x - centre)).

    Of one site, or of several with a leading site axis; a site whose rank is below the
    largest has zeros in its last places.

    Attributes:
        method: What made it, e.g. "Leace".
        left: (d, rank) or (site, d, rank) float64: what is subtracted.
        right: (rank, d) or (site, rank, d): what is read.
        centre: (d,) or (site, d): what is left where it is, as a rule the mean.
        ranks: () or (site,) integers.
    """

    method: str
    left: Tensor
    right: Tensor
    centre: Tensor
    ranks: Tensor

    def __post_init__(self) -> None:
        # Products round by how their factors lie in memory; written to a file and read
        # again they must not round differently.
        for name in ("left", "right", "centre"):
            object.__setattr__(self, name, getattr(self, name).contiguous())

    def __repr__(self) -> str:
        sites = "" if self.single_site else f"{len(self.left)} sites, "
        low, high = int(self.ranks.min()), int(self.ranks.max())
        rank = f"rank {high}" if low == high else f"ranks {low} to {high}"
        return f"AffineEraser({self.method}, {sites}width {self.width}, {rank})"

    @property
    def single_site(self) -> bool:
        """Whether it is of one site, without a site axis."""
        return self.left.ndim == 2

    @property
    def width(self) -> int:
        """Width d of the activations."""
        return self.left.shape[-2]

    @property
    def rank_(self) -> int | tuple[int, ...]:
        """Dimensions that are removed; one number a site where there are several."""
        return int(self.ranks) if self.single_site else tuple(self.ranks.tolist())

    @property
    def matrix(self) -> Tensor:
        """(d, d) or (site, d, d): the linear part P, applied as x @ P.T."""
        eye = torch.eye(self.width, dtype=self.left.dtype, device=self.left.device)
        return eye - self.left @ self.right

    @property
    def offset(self) -> Tensor:
        """(d,) or (site, d): the constant part, so that x becomes x @ P.T + offset."""
        return (self.left @ (self.right @ self.centre[..., None]))[..., 0]

    def transform(self, x: Rows) -> Rows:
        """Erase.

        Args:
            x: (..., d), or (site, ..., d) if there is a site axis. An array or tensor
                on any device; half precision is computed in float32.

        Returns:
            The same shape, type and device.

        Raises:
            RowsError: the shape does not fit.
        """
        if not isinstance(x, Tensor):
            return self.transform(from_numpy(np.asarray(x))).numpy()
        sites = None if self.single_site else len(self.left)
        fits = x.shape[-1:] == (self.width,)
        if not fits or (sites is not None and (x.ndim < 2 or len(x) != sites)):
            lead = "..." if sites is None else f"{sites}, ..."
            raise RowsError(
                "these activations do not fit the eraser",
                expected=f"shape ({lead}, {self.width})",
                got=str(tuple(x.shape)),
            )
        kind = x.dtype if x.is_floating_point() else torch.float64
        inside = torch.float32 if kind.itemsize < 4 else kind
        there = {"dtype": inside, "device": x.device}
        rows = x.to(inside).reshape(*self.left.shape[:-2], -1, self.width)
        # The centre first: a large common offset would cost digits in the product.
        apart = rows - self.centre.to(**there)[..., None, :]
        read = apart @ self.right.to(**there).mT
        return (rows - read @ self.left.to(**there).mT).reshape(x.shape).to(kind)

    def at(self, site: int) -> "AffineEraser":
        """The eraser of one site.

        Raises:
            RowsError: there is no such site.
        """
        if self.single_site or not -len(self.left) <= site < len(self.left):
            raise RowsError(
                "there is no such site",
                expected="an eraser of several sites"
                if self.single_site
                else f"{-len(self.left)} to {len(self.left) - 1}",
                got=str(site),
            )
        rank = int(self.ranks[site])
        return replace(
            self,
            left=self.left[site, :, :rank],
            right=self.right[site, :rank],
            centre=self.centre[site],
            ranks=self.ranks[site],
        )

    def edits(self, names: Sequence[str]) -> dict[str, Callable[[Tensor], Tensor]]:
        """Site name to function, for ``capture.network.hooks.patch`` on a live model.

        Args:
            names: A name for each site, in order; for one site, its name alone. An
                eraser of one site serves any number of names.

        Raises:
            RowsError: another number of names.
        """
        if self.single_site:
            return {name: self.transform for name in names}
        if len(names) != len(self.left) or len(set(names)) != len(names):
            raise RowsError(
                "the names do not fit the eraser",
                expected=f"{len(self.left)} different names, one a site",
                got=f"{len(names)}, {len(set(names))} of them different",
            )
        return {name: self.at(site).transform for site, name in enumerate(names)}

    def linear(self) -> "AffineEraser":
        """The same without its constant part, x -> x - left (right x).

        Classes become as inseparable; the common mean moves. For folding into maps
        that have no bias.
        """
        return replace(self, centre=torch.zeros_like(self.centre))

    def to(self, device: torch.device | str) -> "AffineEraser":
        """The same on a device that has float64; ``transform`` moves by itself."""
        moved = {
            name: getattr(self, name).to(device)
            for name in ("left", "right", "centre", "ranks")
        }
        return replace(self, **moved)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file.

        Raises:
            InputError: the place cannot be written.
        """
        tensors = {
            "left": self.left,
            "right": self.right,
            "centre": self.centre,
            "ranks": self.ranks,
        }
        write_eraser(path, type(self).__name__, tensors, {"method": self.method})

    @classmethod
    def load(cls, path: Path | str) -> "AffineEraser":
        """Read what ``save`` wrote.

        Raises:
            InputError: there is no such file, or it is something else.
        """
        tensors, facts = read_eraser(path, cls.__name__)
        with eraser_errors(path):
            return cls(method=facts["method"], **tensors)


def orthogonal_projection(
    method: str, basis: Tensor, ranks: Tensor, centre: Tensor, single_site: bool
) -> AffineEraser:
    """The orthogonal projection off a subspace, about a point.

    Args:
        method: What made it.
        basis: (site, d, r) orthonormal columns; those at or past a site's rank do not
            count.
        ranks: (site,) integers.
        centre: (site, d).
        single_site: Whether to drop the site axis, of length one.
    """
    counted = torch.arange(basis.shape[2], device=basis.device) < ranks[:, None]
    left = (basis * counted[:, None])[..., : int(ranks.max())]
    many = AffineEraser(method, left, left.mT, centre, ranks)
    return many.at(0) if single_site else many
