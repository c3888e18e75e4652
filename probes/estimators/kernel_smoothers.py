"""Readers whose held-out scores are linear in the labels: S y, with S free of labels.

A kernel ridge, neighbours, class means or trees grown without labels give each test row
a weighted sum of the training rows' labels. The weights depend on the states and the
folds alone, so a thousand permutations cost one product with S, and each is exactly the
reader fitted again on permuted labels.

    mean difference   the direction between class means, in standardised columns
    network, 1 layer  an infinitely wide network with one layer of rectifiers; the
                      readout is trained, its hidden weights are averaged over
    network, 2 layers the same with two
    rbf               kernel ridge, width from the median distance
    neighbours        votes of the nearest
    random ferns      votes within the cells of random axis-parallel cuts

Sources: arc-cosine kernels: Cho and Saul (2009), NeurIPS 22; as the limit of wide
networks: Lee et al. (2017), arXiv 1711.00165; ferns: Ozuysal et al. (2010), IEEE TPAMI
32:448, here voting by mean as totally random trees do (Geurts et al. 2006, Machine
Learning 63:3).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evidence.errors import InputError
from evidence.seeds import numpy_rng
from probes.splits.folds import Folds

FAMILIES = (
    "mean difference",
    "network, 1 layer",
    "network, 2 layers",
    "rbf",
    "neighbours",
    "random ferns",
)
PENALTY = 0.1
N_NEIGHBORS = 10
N_FERNS, N_CUTS = 200, 3


def smoother_matrices(
    x: Tensor,
    folds: Folds,
    families: Sequence[str] = FAMILIES,
    *,
    penalty: float = PENALTY,
    seed: int = 0,
) -> Tensor:
    """Label-free weights of every family at every site.

    Args:
        x: (site, row, d).
        folds: Who is left out together; each row is scored at most once.
        families: Names out of ``FAMILIES``.
        penalty: Of kernel ridges, relative to the mean of the kernel's diagonal.
        seed: Of the ferns.

    Returns:
        (family, site, row, row) S, float64: ``S @ y`` with y in -1, 1 scores the rows,
        > 0 for the class of 1. Rows that no fold scores are 0.

    Raises:
        InputError: an unknown family, shapes that do not fit, or a penalty <= 0.
    """
    unknown = [name for name in families if name not in FAMILIES]
    if unknown:
        raise InputError(
            f"there is no family {unknown[0]!r}", expected=", ".join(FAMILIES)
        )
    if x.ndim != 3 or x.shape[1] != folds.n_rows:
        raise InputError(
            "states and folds do not fit",
            expected=f"(site, {folds.n_rows}, d)",
            got=str(tuple(x.shape)),
        )
    if not penalty > 0:
        raise InputError("penalty must be > 0", got=str(penalty))
    x = x.double()
    sites, n, _ = x.shape
    out = x.new_zeros((len(families), sites, n, n))
    cells = _fern_cells(x, seed) if "random ferns" in families else None
    for train, test in zip(folds.train, folds.test, strict=True):
        fit = torch.from_numpy(np.flatnonzero(train)).to(x.device)
        score = torch.from_numpy(np.flatnonzero(test)).to(x.device)
        if len(fit) < 2 or len(score) == 0:
            continue
        gram = _standard_gram(x, fit)
        for place, name in enumerate(families):
            if name == "random ferns":
                assert cells is not None
                weights = _votes_in_cells(cells, fit, score)
            elif name == "neighbours":
                weights = _votes_of_nearest(_distances(gram), fit, score)
            else:
                kernel = _kernel(name, gram, fit)
                weights = _ridge(kernel, fit, score, penalty, name)
            out[place][:, score[:, None], fit] = weights
    spread = (x - x.mean(1, keepdim=True)).abs().amax((1, 2))
    # Equal rows are told apart by rounding and by the order they came in.
    out[:, spread <= 1e-12 * x.abs().amax((1, 2))] = 0.0
    return out


def _standard_gram(x: Tensor, fit: Tensor) -> Tensor:
    """(site, row, row) inner products of rows standardised by the training rows.

    Divided by the number of columns that vary, so that a row's square is about 1.
    """
    inside = x[:, fit]
    centre = inside.mean(1, keepdim=True)
    scale = inside.std(1, correction=0, keepdim=True)
    # What centring leaves of a constant column is rounding, not a feature.
    varies = scale > 1e-12 * inside.abs().amax(1, keepdim=True)
    z = torch.where(varies, (x - centre) / torch.where(varies, scale, 1.0), 0.0)
    return z @ z.transpose(1, 2) / varies.sum(2, keepdim=True).clamp(min=1)


def _distances(gram: Tensor) -> Tensor:
    """Squared distances, (site, row, row)."""
    size = gram.diagonal(dim1=1, dim2=2)
    return (size[:, :, None] + size[:, None] - 2 * gram).clamp(min=0)


def _kernel(name: str, gram: Tensor, fit: Tensor) -> Tensor:
    if name == "mean difference":
        return gram
    if name == "rbf":
        far = _distances(gram)
        inside = far[:, fit[:, None], fit]
        upper = torch.triu_indices(len(fit), len(fit), 1)
        width = inside[:, upper[0], upper[1]].median(1).values.clamp(min=1e-300)
        return torch.exp(-far / width[:, None, None])
    kernel = gram + 1.0  # the bias, as one more input that is always 1
    for _ in range(1 if name == "network, 1 layer" else 2):
        kernel = _rectified(kernel)
    return kernel


def _rectified(kernel: Tensor) -> Tensor:
    """The kernel after one more infinitely wide layer of rectifiers."""
    size = kernel.diagonal(dim1=1, dim2=2).clamp(min=1e-300).sqrt()
    scale = size[:, :, None] * size[:, None]
    cosine = (kernel / scale).clamp(-1, 1)
    angle = torch.arccos(cosine)
    return scale * (torch.sin(angle) + (math.pi - angle) * cosine) / math.pi


def _ridge(
    kernel: Tensor, fit: Tensor, score: Tensor, penalty: float, name: str
) -> Tensor:
    """(site, test row, training row) weights of a kernel ridge with an intercept."""
    inner = kernel[:, fit[:, None], fit]
    outer = kernel[:, score[:, None], fit]
    mean = inner.mean(1, keepdim=True)
    outer = (
        outer - mean - outer.mean(2, keepdim=True) + inner.mean((1, 2))[:, None, None]
    )
    if name == "mean difference":
        return outer / len(fit)
    inner = inner - mean - mean.transpose(1, 2) + mean.mean(2, keepdim=True)
    diagonal = inner.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-300)
    eye = torch.eye(len(fit), dtype=kernel.dtype, device=kernel.device)
    solid = inner + penalty * diagonal[:, None, None] * eye
    return torch.linalg.solve(solid, outer.transpose(1, 2)).transpose(1, 2)


def _votes_of_nearest(far: Tensor, fit: Tensor, score: Tensor) -> Tensor:
    far = far[:, score[:, None], fit]
    count = min(N_NEIGHBORS, max(1, len(fit) // 4))
    nearest = far.topk(count, dim=2, largest=False).indices
    return torch.zeros_like(far).scatter_(2, nearest, 1 / count)


def _fern_cells(x: Tensor, seed: int) -> Tensor:
    """(site, fern, row) the cell each row falls into; cuts go through drawn rows."""
    sites, n, width = x.shape
    rng = numpy_rng(seed, "ferns")
    column = torch.from_numpy(rng.integers(0, width, (N_FERNS, N_CUTS))).to(x.device)
    drawn = torch.from_numpy(rng.integers(0, n, (N_FERNS, N_CUTS))).to(x.device)
    cells = torch.zeros((sites, N_FERNS, n), dtype=torch.long, device=x.device)
    for cut in range(N_CUTS):
        values = x[:, :, column[:, cut]].transpose(1, 2)  # (site, fern, row)
        bound = values.gather(2, drawn[None, :, cut, None].expand(sites, -1, 1))
        cells = 2 * cells + (values > bound)
    return cells


def _votes_in_cells(cells: Tensor, fit: Tensor, score: Tensor) -> Tensor:
    inside = torch.nn.functional.one_hot(cells, 2**N_CUTS).double()
    # (site, fern x cell, row): votes of the training rows that share a cell.
    member = inside.permute(0, 2, 1, 3).flatten(2)
    mine, theirs = member[:, score], member[:, fit]
    share = theirs / theirs.sum(1, keepdim=True).clamp(min=1)
    return mine @ share.transpose(1, 2) / cells.shape[1]
