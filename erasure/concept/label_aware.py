"""Oracle LEACE: erasure with known labels, a lower bound for erasers without them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from erasure.concept.leace import concept_whitening
from erasure.concept.moments import Moments
from erasure.inputs import class_codes, concept_columns, site_tables
from evidence.arrays import ConceptKind, RowsError, check_finite
from evidence.storage.serialization import eraser_errors, read_eraser, write_eraser


@dataclass(frozen=True, eq=False, repr=False)
class OracleLeace:
    """Oracle LEACE: x -> x - coef (z - mean of z), the least-squares residual.

    Given each row's concept, it removes exactly the part of x that the concept predicts linearly.
    No eraser that leaves linear probes at chance, with or without labels, changes the training rows
    less. It is for measurement only: the result is not a function of x.

    Attributes:
        coef: (d, k) or (site, d, k) float64.
        mean_z: (k,).
        classes: Sorted classes, or None for a numeric concept.
        rank_: Dimensions of the concept's span; one per site.

    Source: Belrose et al. (2023), arXiv 2306.03819, section 5 on oracle erasure.

    Examples:
        >>> x = states.site("resid.1")
        >>> eraser = exhume.OracleLeace.fit(x, cities)
        >>> moved = np.square(eraser.transform(x, cities) - x).sum()
        >>> bool(moved <= np.square(exhume.Leace().fit(x, cities).transform(x) - x).sum() * 1.001)
        True
    """

    coef: Tensor
    mean_z: Tensor
    classes: NDArray | None
    rank_: int | tuple[int, ...]

    @classmethod
    def fit(
        cls, x: ArrayLike | Tensor, z: ArrayLike | Tensor, kind: ConceptKind | None = None
    ) -> "OracleLeace":
        """Fit on (item, d) or (site, item, d) activations and the concept, read as in ``Leace``."""
        return cls.fit_moments(Moments(kind=kind).update(x, z))

    @classmethod
    def fit_moments(cls, moments: Moments) -> "OracleLeace":
        """Fit on moments accumulated in chunks."""
        whiten = concept_whitening(moments.cov_zz)
        whitened_cross = moments.cov_xz @ whiten
        coef = whitened_cross @ whiten.T
        singular_values = torch.linalg.svdvals(whitened_cross)
        ranks = (
            ((singular_values > 1e-8 * singular_values[:, :1]) & (singular_values > 0))
            .sum(1)
            .tolist()
        )
        single = moments.single_site
        return cls(
            coef[0] if single else coef,
            moments.mean_z,
            moments.classes,
            ranks[0] if single else tuple(ranks),
        )

    def transform(self, x, z: ArrayLike | Tensor):
        """Activations minus their linear prediction from the concept.

        Args:
            x: (item, d), or (site, item, d) if fitted so.
            z: The concept of each item, as in ``fit``.

        Raises:
            RowsError: The shapes do not fit, or a class was not fitted.
        """
        tables, single = site_tables(x)
        sites = 1 if self.coef.ndim == 2 else len(self.coef)
        shape = (sites, tables.shape[1], self.coef.shape[-2])
        if tuple(tables.shape) != shape or single != (self.coef.ndim == 2):
            raise RowsError(
                "these activations do not fit the eraser",
                expected=str(shape[1:] if self.coef.ndim == 2 else shape),
                got=str(tuple(tables[0].shape if single else tables.shape)),
            )
        check_finite(tables)
        kind = "numbers" if self.classes is None else "classes"
        target, _ = concept_columns(z, tables.shape[1], self.classes, kind)
        if target.shape[1] != len(self.mean_z):
            raise RowsError(
                "the concept differs from the fitted one",
                expected=f"{len(self.mean_z)} column(s) of floating-point numbers",
                got=f"{target.shape[1]}",
            )
        prediction = (target.to(self.mean_z.device) - self.mean_z) @ self.coef.mT
        compute_dtype = torch.float32 if tables.dtype.itemsize < 4 else tables.dtype
        residual = tables.to(compute_dtype) - prediction.to(
            dtype=compute_dtype, device=tables.device
        )
        residual = (residual[0] if single else residual).to(tables.dtype)
        return residual if isinstance(x, Tensor) else residual.numpy()

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


@dataclass(frozen=True, eq=False, repr=False)
class QuadraticLeace:
    """QLEACE: move every class by optimal transport to one common Gaussian.

    On the training rows all classes then have the same mean and covariance, so no quadratic probe
    beats a constant either. Like ``OracleLeace`` it needs each row's class and is for measurement
    only. The change is minimal if the classes are Gaussian.

    Attributes:
        maps: (class, d, d) or (site, class, d, d) symmetric float64.
        means: (class, d) or (site, class, d).
        center: (d,) or (site, d), the mean of all rows.
        classes: Sorted classes.
        rank_: Number of changed dimensions; one per site.

    Source: Belrose et al. (2023), arXiv 2306.03819, appendix on quadratic erasure; Alvarez-Esteban
    et al. (2016), arXiv 1511.05355, for the barycenter.

    Examples:
        >>> x = np.random.default_rng(0).standard_normal((60, 3))
        >>> z = np.arange(60) % 2
        >>> x[z == 1] *= 2.0  # equal means, unequal spread
        >>> erased = exhume.QuadraticLeace.fit(x, z).transform(x, z)
        >>> np.allclose(np.cov(erased[z == 0].T), np.cov(erased[z == 1].T))
        True
    """

    maps: Tensor
    means: Tensor
    center: Tensor
    classes: NDArray
    rank_: int | tuple[int, ...]

    @classmethod
    def fit(cls, x: ArrayLike | Tensor, z: ArrayLike | Tensor) -> "QuadraticLeace":
        """Fit on (item, d) or (site, item, d) activations and classes.

        Raises:
            RowsError: A class spans fewer dimensions than all classes together (usually because it
                has fewer than d + 1 rows), so no map can give it the common covariance.
        """
        tables, single = site_tables(x)
        check_finite(tables)
        classes, codes = class_codes(z, tables.shape[1], None)
        codes = codes.to(tables.device)
        per_site = [_transport_maps(table.double(), codes, classes) for table in tables]
        maps, means, center = (torch.stack(part) for part in zip(*per_site, strict=True))
        eye = torch.eye(tables.shape[2], dtype=maps.dtype, device=maps.device)
        ranks = torch.linalg.matrix_rank(maps - eye).amax(1).tolist()
        if single:
            return cls(maps[0], means[0], center[0], classes, ranks[0])
        return cls(maps, means, center, classes, tuple(ranks))

    def transform(self, x, z: ArrayLike | Tensor):
        """Move every row according to its class.

        Args:
            x: (item, d), or (site, item, d) if fitted so.
            z: (item,) classes.

        Raises:
            RowsError: The shapes do not fit, or a class was not fitted.
        """
        tables, single = site_tables(x)
        single_site = self.maps.ndim == 3
        sites, d = (1 if single_site else len(self.maps)), self.maps.shape[-1]
        if single != single_site or (tables.shape[0], tables.shape[2]) != (sites, d):
            raise RowsError(
                "these activations do not fit the eraser",
                expected=f"(item, {d})" if single_site else f"({sites}, item, {d})",
                got=str(tuple(tables[0].shape if single else tables.shape)),
            )
        check_finite(tables)
        _, codes = class_codes(z, tables.shape[1], self.classes)
        compute_dtype = torch.float32 if tables.dtype.itemsize < 4 else tables.dtype
        placement = {"dtype": compute_dtype, "device": tables.device}
        maps = self.maps.to(**placement).reshape(sites, -1, d, d)
        means = self.means.to(**placement).reshape(sites, -1, d)
        center = self.center.to(**placement).reshape(sites, d)
        moved = tables.to(compute_dtype, copy=True)
        for code in range(len(self.classes)):
            rows_of_class = (codes == code).to(tables.device)
            centered = moved[:, rows_of_class] - means[:, code, None]
            moved[:, rows_of_class] = centered @ maps[:, code].mT + center[:, None]
        moved = (moved[0] if single else moved).to(tables.dtype)
        return moved if isinstance(x, Tensor) else moved.numpy()

    def save(self, path: Path | str) -> None:
        """Write one safetensors file."""
        tensors = {"maps": self.maps, "means": self.means, "centre": self.center}
        facts = {"classes": self.classes.tolist(), "rank": self.rank_}
        write_eraser(path, type(self).__name__, tensors, facts)

    @classmethod
    def load(cls, path: Path | str) -> "QuadraticLeace":
        """Read what ``save`` wrote."""
        tensors, facts = read_eraser(path, cls.__name__)
        with eraser_errors(path):
            rank = facts["rank"]
            rank = rank if isinstance(rank, int) else tuple(rank)
            return cls(
                center=tensors.pop("centre"),
                classes=np.array(facts["classes"]),
                rank_=rank,
                **tensors,
            )


def _transport_maps(rows: Tensor, codes: Tensor, classes: NDArray) -> tuple[Tensor, Tensor, Tensor]:
    """Maps (class, d, d), means (class, d) and the overall mean (d,) of one site."""
    center = rows.mean(0)
    groups = [rows[codes == code] for code in range(len(classes))]
    means = torch.stack([group.mean(0) for group in groups])
    shares = torch.tensor([len(group) / len(rows) for group in groups]).to(rows)
    covs = torch.stack([group.T.cov(correction=0).reshape(2 * [len(center)]) for group in groups])
    # Work in the span of the within-class variation; outside it only the means differ.
    eigenvalues, axes = torch.linalg.eigh((shares[:, None, None] * covs).sum(0))
    axes = axes[:, eigenvalues > 1e-12 * len(eigenvalues) * eigenvalues[-1].clamp(min=1e-300)]
    covs_in_span = axes.T @ covs @ axes
    span = axes.shape[1]
    eigenvalues_by_class = torch.linalg.eigvalsh(covs_in_span)
    for code in range(len(classes) if span else 0):
        if not eigenvalues_by_class[code, 0] > 1e-10 * eigenvalues_by_class[code, -1]:
            raise RowsError(
                f"class {classes.tolist()[code]!r} varies in fewer dimensions than the others",
                expected=f"{span} dimensions, so {span + 1} rows or more",
                got=f"{len(groups[code])} rows",
                fix="Project onto fewer dimensions first, or give more rows",
            )
    goal = _barycenter(covs_in_span, shares) if span else covs_in_span[0]
    maps = torch.eye(len(center)).to(rows).repeat(len(classes), 1, 1)
    if span:
        root, inverse = _matrix_sqrt(covs_in_span)
        sqrt_product, _ = _matrix_sqrt(root @ goal @ root)
        change = inverse @ sqrt_product @ inverse - torch.eye(span).to(rows)
        maps = maps + axes @ change @ axes.T
    return maps, means, center


def _barycenter(covs: Tensor, shares: Tensor, max_iter: int = 500) -> Tensor:
    """Covariance of the Gaussian with the least mean transport cost, by fixed-point iteration.

    If the iteration has not converged, the change is a little larger, but all classes still get the
    same covariance.
    """
    barycenter = (shares[:, None, None] * covs).sum(0)
    for _ in range(max_iter):
        root, inverse = _matrix_sqrt(barycenter)
        means = (shares[:, None, None] * _matrix_sqrt(root @ covs @ root)[0]).sum(0)
        new = inverse @ means @ means @ inverse
        new = (new + new.T) / 2
        change, barycenter = (new - barycenter).norm() / barycenter.norm(), new
        if change < 1e-12:
            break
    return barycenter


def _matrix_sqrt(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its inverse, of one or several positive matrices."""
    eigenvalues, axes = torch.linalg.eigh((matrix + matrix.mT) / 2)
    eigenvalues = eigenvalues.clamp(min=0).sqrt()
    inverse = torch.where(eigenvalues > 0, 1 / eigenvalues, 0.0)
    return (axes * eigenvalues[..., None, :]) @ axes.mT, (axes * inverse[..., None, :]) @ axes.mT
