"""Quadratic erasure: one mean and one covariance for every class, given the label."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from erasure.inputs import RowsError, class_codes, site_tables
from evidence.storage.serialization import eraser_errors, read_eraser, write_eraser


@dataclass(frozen=True, eq=False, repr=False)
class QuadraticLeace:
    """QLEACE: moves every class by optimal transport to one Gaussian between them.

    On the rows of the fit all classes then have the same mean and covariance, so no
    quadratic reader beats a constant either. Like ``OracleLeace`` it needs each row's
    class: a measure of what second moments tell, not an eraser for use. Classes need
    not be Gaussian for that; the change is the least there is when they are.

    Attributes:
        maps: (class, d, d) or (site, class, d, d) symmetric float64.
        means: (class, d) or (site, class, d).
        centre: (d,) or (site, d), the mean of all rows.
        classes: Sorted classes.
        rank_: Dimensions that are moved; one number a site.

    Source: Belrose et al. (2023), arXiv 2306.03819, appendix on quadratic erasure;
    Alvarez-Esteban et al. (2016), arXiv 1511.05355, for the barycenter.
    """

    maps: Tensor
    means: Tensor
    centre: Tensor
    classes: NDArray
    rank_: int | tuple[int, ...]

    @classmethod
    def fit(cls, x: ArrayLike | Tensor, z: ArrayLike | Tensor) -> "QuadraticLeace":
        """Fit on (item, d) or (site, item, d) activations and classes.

        Raises:
            RowsError: a class spans fewer dimensions than all of them together (as a
                rule it has fewer than d + 1 rows): no map can give it their covariance.
        """
        tables, single = site_tables(x)
        classes, codes = class_codes(z, tables.shape[1], None)
        codes = codes.to(tables.device)
        found = [_transport_maps(table.double(), codes, classes) for table in tables]
        maps, means, centre = (torch.stack(part) for part in zip(*found, strict=True))
        eye = torch.eye(tables.shape[2], dtype=maps.dtype, device=maps.device)
        ranks = torch.linalg.matrix_rank(maps - eye).amax(1).tolist()
        if single:
            return cls(maps[0], means[0], centre[0], classes, ranks[0])
        return cls(maps, means, centre, classes, tuple(ranks))

    def transform(self, x, z: ArrayLike | Tensor):
        """Rows moved according to their class.

        Args:
            x: (item, d), or (site, item, d) if fitted so.
            z: (item,) classes.

        Raises:
            RowsError: shapes do not fit, or there is a class that was not fitted.
        """
        tables, single = site_tables(x)
        alone = self.maps.ndim == 3
        sites, d = (1 if alone else len(self.maps)), self.maps.shape[-1]
        if single != alone or (tables.shape[0], tables.shape[2]) != (sites, d):
            raise RowsError(
                "these activations do not fit the eraser",
                expected=f"(item, {d})" if alone else f"({sites}, item, {d})",
                got=str(tuple(np.shape(x))),
            )
        _, codes = class_codes(z, tables.shape[1], self.classes)
        inside = torch.float32 if tables.dtype.itemsize < 4 else tables.dtype
        there = {"dtype": inside, "device": tables.device}
        maps = self.maps.to(**there).reshape(sites, -1, d, d)
        means = self.means.to(**there).reshape(sites, -1, d)
        centre = self.centre.to(**there).reshape(sites, d)
        moved = tables.to(inside, copy=True)
        for code in range(len(self.classes)):
            here = (codes == code).to(tables.device)
            apart = moved[:, here] - means[:, code, None]
            moved[:, here] = apart @ maps[:, code].mT + centre[:, None]
        moved = (moved[0] if single else moved).to(tables.dtype)
        return moved if isinstance(x, Tensor) else moved.numpy()

    def save(self, path: Path | str) -> None:
        """Write one safetensors file."""
        tensors = {"maps": self.maps, "means": self.means, "centre": self.centre}
        facts = {"classes": self.classes.tolist(), "rank": self.rank_}
        write_eraser(path, type(self).__name__, tensors, facts)

    @classmethod
    def load(cls, path: Path | str) -> "QuadraticLeace":
        """Read what ``save`` wrote."""
        tensors, facts = read_eraser(path, cls.__name__)
        with eraser_errors(path):
            rank = facts["rank"]
            rank = rank if isinstance(rank, int) else tuple(rank)
            return cls(**tensors, classes=np.array(facts["classes"]), rank_=rank)


def _transport_maps(
    rows: Tensor, codes: Tensor, classes: NDArray
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps (class, d, d), means (class, d) and the mean of all (d,) of one site."""
    centre = rows.mean(0)
    if not bool(torch.isfinite(centre).all()):
        raise RowsError("there are NaN or infinite activations")
    groups = [rows[codes == code] for code in range(len(classes))]
    means = torch.stack([group.mean(0) for group in groups])
    shares = torch.tensor([len(group) / len(rows) for group in groups]).to(rows)
    covs = torch.stack(
        [group.T.cov(correction=0).reshape(2 * [len(centre)]) for group in groups]
    )
    # Within the span of all the classes' own variation; beyond it nothing is moved
    # but the means.
    sizes, axes = torch.linalg.eigh((shares[:, None, None] * covs).sum(0))
    axes = axes[:, sizes > 1e-12 * len(sizes) * sizes[-1].clamp(min=1e-300)]
    inner = axes.T @ covs @ axes
    span = axes.shape[1]
    least = torch.linalg.eigvalsh(inner)
    for code in range(len(classes) if span else 0):
        if not least[code, 0] > 1e-10 * least[code, -1]:
            raise RowsError(
                f"class {classes.tolist()[code]!r} varies in fewer dimensions than "
                "the others",
                expected=f"{span} dimensions, so {span + 1} rows or more",
                got=f"{len(groups[code])} rows",
                fix="Project onto fewer dimensions first, or give more rows",
            )
    goal = _barycenter(inner, shares) if span else inner[0]
    maps = torch.eye(len(centre)).to(rows).repeat(len(classes), 1, 1)
    if span:
        root, inverse = _matrix_sqrt(inner)
        middle, _ = _matrix_sqrt(root @ goal @ root)
        moved = inverse @ middle @ inverse - torch.eye(span).to(rows)
        maps = maps + axes @ moved @ axes.T
    return maps, means, centre


def _barycenter(covs: Tensor, shares: Tensor, max_iter: int = 500) -> Tensor:
    """The Gaussian's covariance with the least mean transport cost to all.

    A goal that has not quite settled costs a little more change, no guardedness: every
    class is given whatever covariance this is.
    """
    goal = (shares[:, None, None] * covs).sum(0)
    for _ in range(max_iter):
        root, inverse = _matrix_sqrt(goal)
        means = (shares[:, None, None] * _matrix_sqrt(root @ covs @ root)[0]).sum(0)
        new = inverse @ means @ means @ inverse
        new = (new + new.T) / 2
        moved, goal = (new - goal).norm() / goal.norm(), new
        if moved < 1e-12:
            break
    return goal


def _matrix_sqrt(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its inverse, of one or several positive matrices."""
    sizes, axes = torch.linalg.eigh((matrix + matrix.mT) / 2)
    sizes = sizes.clamp(min=0).sqrt()
    inverse = torch.where(sizes > 0, 1 / sizes, 0.0)
    return (axes * sizes[..., None, :]) @ axes.mT, (
        axes * inverse[..., None, :]
    ) @ axes.mT
