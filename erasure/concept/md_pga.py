"""MD-PGA: project out the k directions in which two classes differ most.

In standardized coordinates the symmetric matrix

    (mu_m - mu_c)(mu_m - mu_c)' + (Sigma_m - Sigma_c)

holds the differences of means and covariances between memorized and clean states. The k
eigenvectors of largest absolute eigenvalue are projected out; nothing is trained.

Source: arXiv 2605.01699 and its public code, where k is 2.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import save
from torch import Tensor

from evidence.arrays import RowsError, check_finite, float_tensor, member_labels
from evidence.errors import InputError
from evidence.storage.files import write_atomic
from evidence.storage.regular_files import as_path
from evidence.storage.serialization import eraser_errors, read_tensors


@dataclass(frozen=True, eq=False)
class MdPgaProjection:
    """The fitted projection of one or several sites.

    Attributes:
        center: (site, d) mean of the training rows.
        scale: (site, d) their standard deviation, 1 where it is 0.
        basis: (site, k, d) orthonormal, in standardized coordinates.
        share: (site, k) each direction's share of the sum of absolute eigenvalues.
    """

    center: Tensor
    scale: Tensor
    basis: Tensor
    share: Tensor

    @property
    def rank_(self) -> int:
        """Number of directions removed at each site."""
        return self.basis.shape[1]

    @overload
    def transform(self, x: Tensor, site: int | None = None) -> Tensor: ...
    @overload
    def transform(self, x: ArrayLike, site: int | None = None) -> NDArray: ...
    def transform(self, x, site=None):
        """Project the directions out of rows, in the rows' type.

        Args:
            x: (site, row, d), or (..., d) of one site.
            site: Index of that site.

        Raises:
            InputError: The sites or widths differ from those fitted.
        """
        if not isinstance(x, Tensor):
            return self.transform(float_tensor(x), site).numpy()
        sites, width = self.center.shape
        fits = x.shape[-1] == width and (site is not None or (x.ndim == 3 and len(x) == sites))
        if not fits:
            raise InputError(
                "the rows do not fit this projection",
                expected=f"({sites}, row, {width}), or (..., {width}) with its site",
                got=str(tuple(x.shape)),
            )
        if site is None:
            parts = [self.transform(rows, number) for number, rows in enumerate(x)]
            return torch.stack(parts)
        center, scale, basis = (
            part[site].to(x.device, torch.promote_types(x.dtype, torch.float32))
            for part in (self.center, self.scale, self.basis)
        )
        standard = (x.to(center.dtype) - center) / scale
        removed = (standard @ basis.T) @ basis
        return (x.to(center.dtype) - removed * scale).to(x.dtype)

    def save(self, path: Path) -> None:
        """Write to a safetensors file."""
        tensors = {
            "centre": self.center,
            "scale": self.scale,
            "basis": self.basis,
            "share": self.share,
        }
        write_atomic(path, save({name: t.contiguous() for name, t in tensors.items()}))

    @staticmethod
    def load(path: Path) -> "MdPgaProjection":
        """Read the projection that ``save`` wrote.

        Raises:
            InputError: The file does not exist or is not such a projection.
        """
        with eraser_errors(path):
            tensors = read_tensors(as_path(path, "the projection"))[1]
            return MdPgaProjection(center=tensors.pop("centre"), **tensors)


def fit_md_pga(
    states: ArrayLike | Tensor, labels: ArrayLike | Tensor, k: int = 2
) -> MdPgaProjection:
    """Fit MD-PGA at every site.

    Args:
        states: (site, row, d) array or tensor.
        labels: (row,), 1 for memorized and 0 for clean.
        k: Number of directions to remove, at most d.

    Raises:
        InputError: The shapes do not fit, a value is not finite, a class has fewer than two rows,
            or k is out of range.

    Examples:
        >>> x = states.values  # (site, row, d)
        >>> eraser = exhume.fit_md_pga(x, cities == "Lisbon", k=2)
        >>> eraser.transform(x).shape, eraser.rank_
        ((2, 76, 32), 2)
    """
    states = float_tensor(states)
    if states.ndim != 3:
        raise RowsError(
            "states and labels do not fit",
            expected="(site, row, d) and (row,)",
            got=f"{tuple(states.shape)}",
        )
    check_finite(states)
    codes = member_labels(labels, states.shape[1])
    counts = int((codes == 1).sum()), int((codes == 0).sum())
    member = torch.from_numpy(codes == 1).to(states.device)
    if min(counts) < 2:
        raise RowsError(
            "each class needs rows to have a covariance",
            expected="two or more labels of 1 and two or more of 0, nothing else",
            got=f"{counts[0]} and {counts[1]} of {len(member)}",
        )
    if not 1 <= k <= states.shape[2]:
        raise InputError("k cannot be used", expected=f"1 to {states.shape[2]}", got=str(k))
    x = states.double()
    center = x.mean(1)
    scale = x.std(1, correction=0)
    scale[scale == 0] = 1.0
    z = (x - center[:, None]) / scale[:, None]
    memorized, clean = z[:, member], z[:, ~member]
    mean_difference = memorized.mean(1) - clean.mean(1)
    matrix = (
        mean_difference[:, :, None] * mean_difference[:, None]
        + _covariance(memorized)
        - _covariance(clean)
    )
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(1, descending=True)
    chosen = order[:, :k]
    basis = torch.take_along_dim(vectors, chosen[:, None], 2).transpose(1, 2)
    sizes = values.abs().take_along_dim(chosen, 1)
    share = sizes / values.abs().sum(1, keepdim=True).clamp(min=1e-300)
    return MdPgaProjection(center, scale, basis.contiguous(), share)


def _covariance(rows: Tensor) -> Tensor:
    """(site, d, d) covariances."""
    rows = rows - rows.mean(1, keepdim=True)
    return rows.transpose(1, 2) @ rows / rows.shape[1]
