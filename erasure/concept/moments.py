"""Means and covariances of activations and a concept, accumulated in chunks."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from erasure.inputs import concept_columns, site_tables
from evidence.arrays import ConceptKind, RowsError, check_finite, label_values

# Bytes of centered rows per piece: small enough to stay in a CPU's cache between writing
# and multiplying, large enough to keep a GPU busy.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}


class Moments:
    """First and second moments of activations at one or several sites and of a concept.

    ``update`` takes rows in chunks of any size. Every chunk is centered on its own mean before
    products are formed, and chunks are combined by the exact formula, so neither a large common
    offset nor the order or size of chunks costs precision.

    Args:
        classes: All possible classes of a concept of classes; by default those in the first chunk.
        precision: Type of the products of activations. Sums over chunks, means and covariances with
            the concept are always float64.
        kind: Whether the concept is "classes" or "numbers"; None for the rule of
            ``evidence.arrays``, applied to the first chunk.

    Attributes:
        count: Number of rows.
        single_site: Whether the rows came as (item, d), of one site.
        classes: (class,) sorted, or None for a numeric concept.
        mean_x: (site, d) float64.
        mean_z: (k,) float64; k is the number of classes (one column each) or numbers.

    Source: Chan, Golub and LeVeque (1979), for combining chunks.

    Examples:
        >>> moments = exhume.Moments(classes=np.unique(cities))
        >>> for part in np.array_split(np.arange(len(cities)), 3):
        ...     _ = moments.update(states.site("resid.1")[part], cities[part])
        >>> exhume.Leace().fit_moments(moments).eraser_
        AffineEraser(Leace, width 32, rank 7)
    """

    mean_x: Tensor
    mean_z: Tensor

    def __init__(
        self,
        classes: ArrayLike | None = None,
        precision: torch.dtype = torch.float64,
        kind: ConceptKind | None = None,
    ):
        if precision not in (torch.float32, torch.float64):
            raise RowsError(
                "unknown precision", expected="torch.float32 or torch.float64", got=str(precision)
            )
        if classes is not None and kind == "numbers":
            raise RowsError("a concept of numbers has no classes", fix="Leave out classes=")
        self.classes = None if classes is None else np.unique(label_values(classes))
        self.kind: ConceptKind | None = kind
        self.precision = precision
        self.count = 0
        self.single_site = False
        self._xx = self._xz = self._zz = torch.empty(0)

    def update(self, x: ArrayLike | Tensor, z: ArrayLike | Tensor) -> "Moments":
        """Add rows and return self.

        Args:
            x: (item, d), or (site, item, d) for several sites at once.
            z: (item,) classes or numbers, or (item, k) numbers.

        Raises:
            RowsError: Values are not finite, shapes do not fit each other or earlier chunks, or a
                class is unknown. Nothing is added then.
        """
        tables, single = site_tables(x)
        items = tables.shape[1]
        first = self.count == 0
        device = _accumulation_device(tables)
        # Later chunks are read as the first one was.
        kind = self.kind if first else "numbers" if self.classes is None else "classes"
        target, classes = concept_columns(z, items, self.classes, kind)
        target = target.to(device)
        if not first:
            self._check_compatible(tables, target, single, classes)
        new_z = target.mean(0)
        target = target - new_z
        new_x = _means(tables, device)
        if not bool(torch.isfinite(new_x).all()):
            check_finite(tables)
            raise RowsError("the activations are too large to be added up")
        if first:
            sites, _, d = tables.shape
            k = target.shape[1]
            placement = {"dtype": torch.float64, "device": device}
            self.single_site, self.classes = single, classes
            self.mean_x = torch.zeros(sites, d, **placement)
            self.mean_z = torch.zeros(k, **placement)
            self._xx = torch.zeros(sites, d, d, **placement)
            self._xz = torch.zeros(sites, d, k, **placement)
            self._zz = torch.zeros(k, k, **placement)
        self._add_scatter(tables, target, new_x)
        self._zz += target.T @ target
        self._combine_means(new_x, new_z, items)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Add the moments of other rows, for example from another machine.

        Raises:
            RowsError: The sites, widths or classes differ, or one of the two is empty.
        """
        for each in (self, other):
            each._check_not_empty()
        compatible = (
            self._xz.shape == other._xz.shape
            and self.single_site == other.single_site
            and _equal(self.classes, other.classes)
        )
        if not compatible:
            raise RowsError(
                "these moments are of different sites, widths or concepts",
                expected=self._describe(),
                got=other._describe(),
            )
        device = self.mean_x.device
        self._xx += other._xx.to(device)
        self._xz += other._xz.to(device)
        self._zz += other._zz.to(device)
        self._combine_means(other.mean_x.to(device), other.mean_z.to(device), other.count)
        return self

    @property
    def sites(self) -> int:
        """Number of sites."""
        return len(self.mean_x)

    @property
    def width(self) -> int:
        """Width d of the activations."""
        return self.mean_x.shape[1]

    @property
    def cov_xx(self) -> Tensor:
        """(site, d, d) covariance of the activations, over ``count`` rows."""
        self._check_not_empty()
        return self._xx / self.count

    @property
    def cov_xz(self) -> Tensor:
        """(site, d, k) covariance of activations and concept."""
        self._check_not_empty()
        return self._xz / self.count

    @property
    def cov_zz(self) -> Tensor:
        """(k, k) covariance of the concept."""
        self._check_not_empty()
        return self._zz / self.count

    def _add_scatter(self, tables: Tensor, target: Tensor, means: Tensor) -> None:
        """Add the products of the centered rows."""
        columns = target.T.contiguous()
        pieces = list(_pieces(tables, means.device))
        largest = tables[pieces[0]].shape
        # Allocate once: new pages for each piece would take 10 % of the time.
        centered = means.new_empty(largest)
        products = means.new_empty(largest[0], largest[2], largest[2], dtype=self.precision)
        for sites, rows in pieces:
            values = tables[sites, rows]
            # Copy, then subtract: a mixed-type subtraction takes three times as long.
            piece = centered[: len(values), : values.shape[1]].copy_(values)
            piece -= means[sites, None]
            self._xz[sites] += (columns[:, rows] @ piece).mT
            self._xx[sites] += _gram(piece.to(self.precision), products[: len(values)])

    def _combine_means(self, mean_x: Tensor, mean_z: Tensor, items: int) -> None:
        """Update the means and add the products of the difference between the parts' means."""
        total = self.count + items
        delta_x, delta_z = mean_x - self.mean_x, mean_z - self.mean_z
        if self.count:
            weight = self.count * items / total
            self._xx += weight * delta_x[:, :, None] * delta_x[:, None, :]
            self._xz += weight * delta_x[:, :, None] * delta_z
            self._zz += weight * delta_z[:, None] * delta_z
        self.mean_x += delta_x * (items / total)
        self.mean_z += delta_z * (items / total)
        self.count = total

    def _check_not_empty(self) -> None:
        if not self.count:
            raise RowsError("the moments are empty", fix="Call update(x, z) first")

    def _check_compatible(
        self, tables: Tensor, target: Tensor, single: bool, classes: NDArray | None
    ) -> None:
        got = (tables.shape[0], tables.shape[2], target.shape[1], single)
        before = (self.sites, self.width, len(self.mean_z), self.single_site)
        if got != before or (classes is None) != (self.classes is None):
            raise RowsError(
                "this chunk does not fit the earlier ones",
                expected=self._describe(),
                got=f"{got[0]} site(s) of width {got[1]} and a concept of {got[2]} "
                + ("columns" if classes is None else "classes"),
            )

    def _describe(self) -> str:
        kind = "columns" if self.classes is None else "classes"
        return (
            f"{self.sites} site(s) of width {self.width} and a concept of {len(self.mean_z)} {kind}"
        )


def _equal(one: NDArray | None, other: NDArray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _gram(rows: Tensor, out: Tensor) -> Tensor:
    """(site, d, d) Gram matrices of (site, item, d) columns, written to ``out``."""
    if rows.device.type != "cpu":
        return torch.matmul(rows.mT, rows, out=out)
    # NumPy detects that both factors are one matrix and computes half of the product.
    array = rows.numpy()
    np.matmul(array.mT, array, out=out.numpy())
    return out


def _accumulation_device(tables: Tensor) -> torch.device:
    """Device of the sums: that of the rows, or the CPU for devices without float64."""
    return torch.device("cpu") if tables.device.type == "mps" else tables.device


def _pieces(tables: Tensor, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Slices of sites and rows whose float64 copy stays within ``CHUNK_BYTES``."""
    sites, items, d = tables.shape
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (8 * d)
    # Products over many rows are fast, so fill pieces with rows first, then with sites.
    rows = max(1, min(items, max(budget, 256)))
    n_sites = max(1, budget // rows)
    for site in range(0, sites, n_sites):
        for start in range(0, items, rows):
            yield slice(site, site + n_sites), slice(start, start + rows)


def _means(tables: Tensor, device: torch.device) -> Tensor:
    """(site, d) float64 mean over items."""
    sites, items, d = tables.shape
    sums = torch.zeros(sites, d, dtype=torch.float64, device=device)
    for part, rows in _pieces(tables, device):
        sums[part] += tables[part, rows].to(sums).sum(1)
    return sums / items
