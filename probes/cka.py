"""Debiased linear CKA, for one pair or all pairs of sites in one pass.

With K and L the Gram matrices of n centered rows, their diagonals set to 0,

    HSIC = [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)] / (n (n-3))

and CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)). HSIC does not depend on centering, but float32
does: an activation mean several times the spread leaves an error of hundredths. So rows are
centered and scaled first, and sums are kept in float64.

Sources: Song et al. (2012), JMLR 13:1393; Kornblith et al. (2019), arXiv 1905.00414.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence.arrays import as_tensor, check_finite
from evidence.errors import InputError
from evidence.progress import AUTO, SILENT, Progress, as_progress
from probes.sweeps.site_source import SiteStore, open_source


def debiased_cka(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> float:
    """CKA of two representations of the same rows, in float64.

    Args:
        x: (row, d).
        y: (row, e).

    Raises:
        InputError: fewer than 4 rows, unequal numbers of rows, NaN, or constant rows.

    Examples:
        >>> x, noise = np.random.default_rng(0).standard_normal((2, 200, 5))
        >>> round(exhume.debiased_cka(x, 2 * x + 1), 6)
        1.0
        >>> abs(exhume.debiased_cka(x, noise)) < 0.1
        True
    """
    tables = [as_tensor(table) for table in (x, y)]
    if any(t.ndim != 2 for t in tables) or len(tables[0]) != len(tables[1]):
        raise InputError(
            "CKA compares two (row, d) tables of the same rows",
            got=f"{tuple(tables[0].shape)} and {tuple(tables[1].shape)}",
        )
    for table in tables:
        check_finite(table)
    return float(_all_pairs(tables, torch.float64, 1 << 28, SILENT)[0, 1])


def cka_matrix(
    activations: ArrayLike | Tensor | SiteStore,
    *,
    precision: torch.dtype = torch.float32,
    memory: int = 1 << 28,
    device: str | None = None,
    progress: Progress = AUTO,
) -> NDArray[np.float64]:
    """CKA between all sites, (site, site).

    Args:
        activations: (site, row, d), or a store read site by site.
        precision: Type of the Gram matrices; sums are always float64.
        memory: Bytes for blocks of Gram rows, beside the centered activations.
        device: Where to compute, such as "cuda"; where the activations are if None.
        progress: One unit a block of rows.

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
    scaled, diagonals = [], []
    for site, table in enumerate(tables):
        if len(table) < 4:
            raise InputError("debiased CKA needs four rows or more", got=str(len(table)))
        table = table - table.mean(0)
        row_norms = torch.linalg.vector_norm(table, dim=1)
        norm = float(row_norms.norm())
        if not np.isfinite(norm) or norm == 0:
            raise InputError(
                f"site {site} has equal rows or values that are not finite",
                fix="Leave that site out",
            )
        self_hsic = len(table) ** 0.5 / norm
        scaled.append(table.mul_(self_hsic).to(dtype))
        diagonals.append((row_norms * self_hsic).square())
    n, sites = len(scaled[0]), len(scaled)
    # A block is some rows of every site's Gram matrix, on and right of the diagonal. Its shape
    # makes products fast within the memory budget.
    budget = memory // (scaled[0].element_size() * sites * 2)
    max_rows = 256 if scaled[0].device.type == "cpu" else n
    block_rows = max(16, min(int(budget**0.5), max_rows, n))
    block_columns = max(block_rows, min(budget // block_rows, 4 * block_rows, n))
    starts = [(a, b) for a in range(0, n, block_rows) for b in range(a, n, block_columns)]
    scratch = scaled[0].new_empty(block_rows * sites * block_columns)
    trace = torch.zeros(sites, sites, dtype=torch.float64, device=scratch.device)
    with as_progress(progress).task("CKA blocks", len(starts)) as advance:
        for a, b in starts:
            rows, columns = min(block_rows, n - a), min(block_columns, n - b)
            block = scratch[: rows * sites * columns].view(rows, sites, columns)
            for k, table in enumerate(scaled):
                part = block[:, k]
                torch.mm(table[a : a + rows], table[b : b + columns].T, out=part)
            if a == b:
                block.transpose(0, 1).triu_(1)
            # A sum over one row of the matrices is short enough for float32.
            products = torch.bmm(block, block.transpose(1, 2))
            trace += 2 * products.sum(0, dtype=torch.float64)
            advance(1)
    # Rows of a centered Gram matrix sum to 0; without the diagonal, to minus the diagonal.
    row_sums = -torch.stack(diagonals)
    total = row_sums.sum(1)
    hsic = trace + torch.outer(total, total) / ((n - 1) * (n - 2))
    hsic = hsic - 2 * (row_sums @ row_sums.T) / (n - 2)
    self_hsic = hsic.diagonal()
    if bool((self_hsic <= 0).any()):
        raise InputError("a site has no variance beyond noise, so CKA is undefined")
    return (hsic / torch.outer(self_hsic.sqrt(), self_hsic.sqrt())).cpu().numpy()
