"""MD-PGA: project out the k directions in which two classes differ most.

In standardised coordinates the symmetric matrix

    (mu_m - mu_c)(mu_m - mu_c)' + (Sigma_m - Sigma_c)

holds the difference of means and of covariances between memorised and clean states.
Its k eigenvectors of largest absolute eigenvalue are projected out; nothing is trained.

Source: arXiv 2605.01699 and its public code, where k is 2.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from evidence.errors import InputError
from evidence.storage.files import write_atomic
from evidence.storage.regular_files import as_path
from evidence.storage.serialization import eraser_errors, read_tensors


@dataclass(frozen=True, eq=False)
class MdPgaProjection:
    """The eraser of one or several sites.

    Attributes:
        centre: (site, d) mean of the rows fitted on.
        scale: (site, d) their standard deviation, 1 where it is 0.
        basis: (site, k, d) orthonormal, in standardised coordinates.
        share: (site, k) each direction's share of the sum of absolute eigenvalues.
    """

    centre: Tensor
    scale: Tensor
    basis: Tensor
    share: Tensor

    @property
    def rank_(self) -> int:
        """Directions removed at each site."""
        return self.basis.shape[1]

    def transform(self, x: Tensor, site: int | None = None) -> Tensor:
        """Rows without those directions, in the type they came in.

        Args:
            x: (site, row, d); with ``site`` any (..., d) at that one.
            site: Number of the site ``x`` is from.

        Raises:
            InputError: sites or widths differ from those fitted on.
        """
        sites, width = self.centre.shape
        good = x.shape[-1] == width and (
            site is not None or (x.ndim == 3 and len(x) == sites)
        )
        if not good:
            raise InputError(
                "the rows do not go with this projection",
                expected=f"({sites}, row, {width}), or (..., {width}) with its site",
                got=str(tuple(x.shape)),
            )
        if site is None:
            parts = [self.transform(rows, place) for place, rows in enumerate(x)]
            return torch.stack(parts)
        centre, scale, basis = (
            part[site].to(x.device, torch.promote_types(x.dtype, torch.float32))
            for part in (self.centre, self.scale, self.basis)
        )
        standard = (x.to(centre.dtype) - centre) / scale
        gone = (standard @ basis.T) @ basis
        return (x.to(centre.dtype) - gone * scale).to(x.dtype)

    def save(self, path: Path) -> None:
        """Write to a safetensors file."""
        write_atomic(
            path,
            save(
                {
                    name: getattr(self, name).contiguous()
                    for name in ("centre", "scale", "basis", "share")
                }
            ),
        )

    @staticmethod
    def load(path: Path) -> "MdPgaProjection":
        """Read what ``save`` wrote.

        Raises:
            InputError: there is no such file, or it is something else.
        """
        with eraser_errors(path):
            return MdPgaProjection(**read_tensors(as_path(path, "the projection"))[1])


def fit_md_pga(states: Tensor, labels: Tensor, k: int = 2) -> MdPgaProjection:
    """Fit MD-PGA at every site.

    Args:
        states: (site, row, d).
        labels: (row,), 1 for memorised and 0 for clean.
        k: Directions to remove, at most d.

    Raises:
        InputError: shapes that do not fit, fewer than two rows of a class, or k out
            of range.
    """
    if states.ndim != 3 or labels.shape != states.shape[1:2]:
        raise InputError(
            "states and labels do not fit",
            expected="(site, row, d) and (row,)",
            got=f"{tuple(states.shape)} and {tuple(labels.shape)}",
        )
    member = labels.to(states.device) == 1
    counts = int(member.sum()), int((labels == 0).sum())
    if min(counts) < 2 or sum(counts) != len(labels):
        raise InputError(
            "each class needs rows to have a covariance",
            expected="two or more labels of 1 and two or more of 0, nothing else",
            got=f"{counts[0]} and {counts[1]} of {len(labels)}",
        )
    if not 1 <= k <= states.shape[2]:
        raise InputError(
            "k cannot be used", expected=f"1 to {states.shape[2]}", got=str(k)
        )
    x = states.double()
    centre = x.mean(1)
    scale = x.std(1, correction=0)
    scale[scale == 0] = 1.0
    z = (x - centre[:, None]) / scale[:, None]
    ours, theirs = z[:, member], z[:, ~member]
    gap = ours.mean(1) - theirs.mean(1)
    matrix = gap[:, :, None] * gap[:, None] + _covariance(ours) - _covariance(theirs)
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(1, descending=True)
    chosen = order[:, :k]
    basis = torch.take_along_dim(vectors, chosen[:, None], 2).transpose(1, 2)
    size = values.abs().take_along_dim(chosen, 1)
    share = size / values.abs().sum(1, keepdim=True).clamp(min=1e-300)
    return MdPgaProjection(centre, scale, basis.contiguous(), share)


def _covariance(rows: Tensor) -> Tensor:
    """(site, d, d)."""
    rows = rows - rows.mean(1, keepdim=True)
    return rows.transpose(1, 2) @ rows / rows.shape[1]
