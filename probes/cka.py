"""Debiased linear CKA, one pair or all pairs of sites in one pass.

With K and L the Gram matrices of n centred rows, their diagonals set to 0,

    HSIC = [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)] / (n (n-3))

and CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)). HSIC ignores what centring takes
out, but float32 does not: an activation mean several times the spread leaves an error
of hundredths. So rows are centred and scaled first, and sums are kept in float64.

Source: Song et al. (2012), JMLR 13:1393; Kornblith et al. (2019), arXiv 1905.00414.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from probes.sweeps.site_source import SiteStore, open_source


def debiased_cka(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> float:
    """CKA of two representations of the same rows, in float64.

    Args:
        x: (row, d).
        y: (row, e).

    Raises:
        InputError: fewer than 4 rows, unequal rows, NaN, or constant rows.

    Examples:
        >>> x, noise = np.random.default_rng(0).standard_normal((2, 200, 5))
        >>> round(exhume.debiased_cka(x, 2 * x + 1), 6)
        1.0
        >>> abs(exhume.debiased_cka(x, noise)) < 0.1
        True
    """
    tables = [
        torch.as_tensor(
            part if isinstance(part, Tensor) else np.asarray(part), dtype=torch.float64
        )
        for part in (x, y)
    ]
    if tables[0].ndim != 2 or len(tables[0]) != len(tables[1]):
        raise InputError(
            "two (row, d) tables of the same rows are compared",
            got=f"{tuple(tables[0].shape)} and {tuple(tables[1].shape)}",
        )
    return float(_all_pairs(tables, torch.float64, 1 << 28, SILENT)[0, 1])


def cka_matrix(
    activations: ArrayLike | Tensor | SiteStore,
    *,
    precision: torch.dtype = torch.float32,
    memory: int = 1 << 28,
    device: str | None = None,
    progress: Progress = SILENT,
) -> NDArray[np.float64]:
    """CKA between all sites, (site, site).

    Args:
        activations: (site, row, d), or a store read site by site.
        precision: Of the Gram matrices; sums are float64 in any case.
        memory: Bytes for blocks of Gram rows beside the centred activations.
        device: Where to compute, such as "cuda"; where the activations are if None.
        progress: Shows blocks of rows.

    Examples:
        >>> exhume.cka_matrix(states).diagonal().round(6).tolist()
        [1.0, 1.0]
    """
    source = open_source(activations)
    tables = (source.read(name, device) for name in source.names)
    return _all_pairs(tables, precision, memory, progress)


def _all_pairs(
    tables: Iterable[Tensor], dtype: torch.dtype, memory: int, progress: Progress
) -> NDArray[np.float64]:
    ready, diagonals = [], []
    for index, table in enumerate(tables):
        if len(table) < 4:
            raise InputError(
                "debiased CKA needs four rows or more", got=str(len(table))
            )
        table = table - table.mean(0)
        lengths = torch.linalg.vector_norm(table, dim=1)
        norm = float(lengths.norm())
        if not np.isfinite(norm) or norm == 0:
            raise InputError(
                f"site {index} has equal rows or values that are not finite",
                fix="Leave that site out",
            )
        scale = len(table) ** 0.5 / norm
        ready.append(table.mul_(scale).to(dtype))
        diagonals.append((lengths * scale).square())
    n, sites = len(ready[0]), len(ready)
    # A block is some rows of every site's Gram matrix, right of the diagonal alone:
    # the shape in which products are quickest, as far as the memory goes.
    room = memory // (ready[0].element_size() * sites * 2)
    most = 256 if ready[0].device.type == "cpu" else n
    size = max(16, min(int(room**0.5), most, n))
    wide = max(size, min(room // size, 4 * size, n))
    starts = [(a, b) for a in range(0, n, size) for b in range(a, n, wide)]
    scratch = ready[0].new_empty(size * sites * wide)
    trace = torch.zeros(sites, sites, dtype=torch.float64, device=scratch.device)
    with progress.task("CKA blocks", len(starts)) as advance:
        for a, b in starts:
            rows, columns = min(size, n - a), min(wide, n - b)
            block = scratch[: rows * sites * columns].view(rows, sites, columns)
            for site, table in enumerate(ready):
                part = block[:, site]
                torch.mm(table[a : a + rows], table[b : b + columns].T, out=part)
            if a == b:
                block.transpose(0, 1).triu_(1)
            # One row of the matrices at a time is a sum short enough for float32.
            products = torch.bmm(block, block.transpose(1, 2))
            trace += 2 * products.sum(0, dtype=torch.float64)
            advance(1)
    # Rows of a centred Gram matrix add up to 0, so without its diagonal to minus that.
    sums = -torch.stack(diagonals)
    total = sums.sum(1)
    hsic = trace + torch.outer(total, total) / ((n - 1) * (n - 2))
    hsic = hsic - 2 * (sums @ sums.T) / (n - 2)
    scale = hsic.diagonal()
    if bool((scale <= 0).any()):
        raise InputError("a site has no variance beyond noise, so CKA is undefined")
    return (hsic / torch.outer(scale.sqrt(), scale.sqrt())).cpu().numpy()
