"""The result of fitting an eraser: one affine map of low rank per site."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evidence.arrays import RowsError, float_tensor
from evidence.storage.serialization import eraser_errors, read_eraser, write_eraser

Rows = TypeVar("Rows", Tensor, NDArray)


@dataclass(frozen=True, eq=False, repr=False)
class AffineEraser:
    """The map x -> x - left (right (x - center)).

    For one site, or for several with a leading site axis. A site whose rank is below the largest is
    padded with zeros.

    Attributes:
        method: Name of the eraser it comes from, e.g. "Leace".
        left: (d, rank) or (site, d, rank) float64, the subtracted directions.
        right: (rank, d) or (site, rank, d), the detecting directions.
        center: (d,) or (site, d), the fixed point, usually the mean.
        ranks: () or (site,) integers.

    Examples:
        >>> eraser = exhume.Leace().fit(states.site("resid.1"), cities == "Lisbon").eraser_
        >>> eraser
        AffineEraser(Leace, width 32, rank 1)
        >>> with exhume.patch(model, eraser.edits(["resid.1"])):
        ...     scores = exhume.score_answers(model, rows)
        >>> eraser.save("leace.safetensors")
        >>> torch.equal(exhume.AffineEraser.load("leace.safetensors").matrix, eraser.matrix)
        True
    """

    method: str
    left: Tensor
    right: Tensor
    center: Tensor
    ranks: Tensor

    def __post_init__(self) -> None:
        # Rounding of products depends on the memory layout of the factors, which must be
        # the same after saving and loading.
        for name in ("left", "right", "center"):
            object.__setattr__(self, name, getattr(self, name).contiguous())

    def __repr__(self) -> str:
        sites = "" if self.single_site else f"{len(self.left)} sites, "
        low, high = int(self.ranks.min()), int(self.ranks.max())
        rank = f"rank {high}" if low == high else f"ranks {low} to {high}"
        return f"AffineEraser({self.method}, {sites}width {self.width}, {rank})"

    @property
    def single_site(self) -> bool:
        """Whether the eraser is of one site, without a site axis."""
        return self.left.ndim == 2

    @property
    def width(self) -> int:
        """Width d of the activations."""
        return self.left.shape[-2]

    @property
    def rank_(self) -> int | tuple[int, ...]:
        """Number of removed dimensions; one per site if there are several."""
        return int(self.ranks) if self.single_site else tuple(self.ranks.tolist())

    @property
    def matrix(self) -> Tensor:
        """(d, d) or (site, d, d) linear part P, applied as x @ P.T."""
        eye = torch.eye(self.width, dtype=self.left.dtype, device=self.left.device)
        return eye - self.left @ self.right

    @property
    def offset(self) -> Tensor:
        """(d,) or (site, d) constant part: x becomes x @ P.T + offset."""
        return (self.left @ (self.right @ self.center[..., None]))[..., 0]

    def transform(self, x: Rows) -> Rows:
        """Erase the concept from activations.

        Args:
            x: (..., d), or (site, ..., d) if there is a site axis; an array or a tensor on any
                device. Half precision is computed in float32.

        Returns:
            The same shape, type and device.

        Raises:
            RowsError: The shape does not fit.
        """
        if not isinstance(x, Tensor):
            rows = np.asarray(x)
            return self.transform(float_tensor(rows)).numpy()
        sites = None if self.single_site else len(self.left)
        fits = x.shape[-1:] == (self.width,)
        if not fits or (sites is not None and (x.ndim < 2 or len(x) != sites)):
            lead = "..." if sites is None else f"{sites}, ..."
            raise RowsError(
                "these activations do not fit the eraser",
                expected=f"shape ({lead}, {self.width})",
                got=str(tuple(x.shape)),
            )
        dtype = x.dtype if x.is_floating_point() else torch.float64
        compute_dtype = torch.float32 if dtype.itemsize < 4 else dtype
        placement = {"dtype": compute_dtype, "device": x.device}
        rows = x.to(compute_dtype).reshape(*self.left.shape[:-2], -1, self.width)
        # Center first: a large common offset would cost precision in the product.
        centered = rows - self.center.to(**placement)[..., None, :]
        detected = centered @ self.right.to(**placement).mT
        return (rows - detected @ self.left.to(**placement).mT).reshape(x.shape).to(dtype)

    def at(self, site: int) -> "AffineEraser":
        """The eraser of one site.

        Raises:
            RowsError: There is no such site.
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
            center=self.center[site],
            ranks=self.ranks[site],
        )

    def edits(self, names: Sequence[str]) -> dict[str, Callable[[Tensor], Tensor]]:
        """Site name to edit function, for ``capture.network.hooks.patch``.

        Args:
            names: One name per site, in order. An eraser of one site serves any number of names.

        Raises:
            RowsError: The number of names differs.
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
        """The same map without its constant part, x -> x - left (right x).

        Classes are equally inseparable afterwards, but the common mean moves. For folding into maps
        without bias.
        """
        return replace(self, center=torch.zeros_like(self.center))

    def to(self, device: torch.device | str) -> "AffineEraser":
        """A copy on another device with float64 support; ``transform`` needs no such copy."""
        tensors = {
            name: getattr(self, name).to(device) for name in ("left", "right", "center", "ranks")
        }
        return replace(self, **tensors)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file.

        Raises:
            InputError: The path cannot be written.
        """
        tensors = {
            "left": self.left,
            "right": self.right,
            "centre": self.center,
            "ranks": self.ranks,
        }
        write_eraser(path, type(self).__name__, tensors, {"method": self.method})

    @classmethod
    def load(cls, path: Path | str) -> "AffineEraser":
        """Read the eraser that ``save`` wrote.

        Raises:
            InputError: The file does not exist or is not such an eraser.
        """
        tensors, facts = read_eraser(path, cls.__name__)
        with eraser_errors(path):
            return cls(method=facts["method"], center=tensors.pop("centre"), **tensors)


def orthogonal_projection(
    method: str, basis: Tensor, ranks: Tensor, center: Tensor, single_site: bool
) -> AffineEraser:
    """The orthogonal projection that removes a subspace, about a point.

    Args:
        method: Name of the eraser it comes from.
        basis: (site, d, r) orthonormal columns; columns at or beyond a site's rank are ignored.
        ranks: (site,) integers.
        center: (site, d).
        single_site: Whether to drop the site axis, of length one.
    """
    within_rank = torch.arange(basis.shape[2], device=basis.device) < ranks[:, None]
    left = (basis * within_rank[:, None])[..., : int(ranks.max())]
    eraser = AffineEraser(method, left, left.mT, center, ranks)
    return eraser.at(0) if single_site else eraser
