"""Debiased linear CKA, one pair or all pairs of sites in one pass.

With K and L the Gram matrices of n centred rows, their diagonals set to 0,

    HSIC = [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)] / (n (n-3))

and CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)). HSIC ignores what centring takes
out, but float32 does not: an activation mean several times the spread leaves an error
of hundredths. So rows are centred and scaled first, and sums are kept in float64.

Source: Song et al. (2012), JMLR 13:1393; Kornblith et al. (2019), arXiv 1905.00414.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from probes.sources import SiteStore, open_source


def debiased_cka(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> float:
    """CKA of two representations of the same rows, in float64.

    Args:
        x: (row, d).
        y: (row, e).

    Raises:
        InputError: fewer than 4 rows, unequal rows, NaN, or constant rows.
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
    """
    source = open_source(activations)
    tables = [source.read(name, device) for name in source.names]
    return _all_pairs(tables, precision, memory, progress)


def _all_pairs(
    tables: list[Tensor], dtype: torch.dtype, memory: int, progress: Progress
) -> NDArray[np.float64]:
    n, sites = len(tables[0]), len(tables)
    if n < 4:
        raise InputError("debiased CKA needs four rows or more", got=str(n))
    ready = []
    for index, table in enumerate(tables):
        table = table - table.mean(0)
        norm = float(table.norm())
        if not np.isfinite(norm) or norm == 0:
            raise InputError(
                f"site {index} has equal rows or values that are not finite",
                fix="Leave that site out",
            )
        ready.append((table * (n**0.5 / norm)).to(dtype))
    item = 4 if dtype == torch.float32 else 8
    # A block of rows of every site's Gram matrix, upper triangle of blocks only.
    size = int((memory / (item * sites * 2)) ** 0.5)
    most = 256 if ready[0].device.type == "cpu" else n  # what a cache holds
    size = max(16, min(size, most, n))
    exact = {"dtype": torch.float64, "device": ready[0].device}
    sums = torch.zeros(sites, n, **exact)
    trace = torch.zeros(sites, sites, **exact)
    starts = range(0, n, size)
    blocks = [(a, b) for a in starts for b in starts if b >= a]
    scratch = ready[0].new_empty(sites * size * size)
    with progress.task("CKA blocks", len(blocks)) as advance:
        for a, b in blocks:
            rows, columns = min(size, n - a), min(size, n - b)
            block = scratch[: sites * rows * columns].view(sites, rows, columns)
            for site, table in enumerate(ready):
                torch.mm(table[a : a + rows], table[b : b + columns].T, out=block[site])
            if a == b:
                block.diagonal(dim1=1, dim2=2).zero_()
            flat = block.view(sites, -1)
            trace += (1 if a == b else 2) * _products(flat)
            # Short sums: the block's own type is enough, what they add up to is not.
            sums[:, a : a + rows] += block.sum(2)
            if a != b:
                sums[:, b : b + columns] += block.sum(1)
            advance(1)
    total = sums.sum(1)
    hsic = trace + torch.outer(total, total) / ((n - 1) * (n - 2))
    hsic = hsic - 2 * (sums @ sums.T) / (n - 2)
    scale = hsic.diagonal()
    if bool((scale <= 0).any()):
        raise InputError("a site has no variance beyond noise, so CKA is undefined")
    return (hsic / torch.outer(scale.sqrt(), scale.sqrt())).cpu().numpy()


def _products(flat: Tensor, chunk: int = 8192) -> Tensor:
    """(site, site) float64 inner products of rows, summed in short float32 runs."""
    out = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat.device)
    for start in range(0, flat.shape[1], chunk):
        part = flat[:, start : start + chunk]
        out += (part @ part.T).double()
    return out
