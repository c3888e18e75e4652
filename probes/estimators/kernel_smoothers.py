"""Classifiers whose held-out scores are linear in the labels: S y, with S independent of y.

Kernel ridge regression, nearest neighbors, class means and trees grown without labels give each
test row a weighted sum of the training rows' labels. The weights depend on the activations and the
folds only, so a thousand label permutations cost one product with S, and each equals the classifier
refitted on permuted labels.

    mean difference   direction between class means, in standardized columns
    network, 1 layer  arc-cosine kernel: an infinitely wide network with one layer of rectifiers;
                      its output layer is trained, its hidden weights are averaged over
    network, 2 layers the same with two layers
    rbf               kernel ridge, width from the median distance
    neighbours        mean of the nearest neighbors
    random ferns      mean within the cells of random axis-parallel cuts

Sources: arc-cosine kernels: Cho and Saul (2009), NeurIPS 22; as the limit of wide networks: Lee et
al. (2017), arXiv 1711.00165; ferns: Ozuysal et al. (2010), IEEE TPAMI 32:448, here voting by mean
as totally random trees do (Geurts et al. 2006, Machine Learning 63:3).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from evidence.arrays import as_tensor, check_finite
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
    x: ArrayLike | Tensor,
    folds: Folds,
    families: Sequence[str] = FAMILIES,
    *,
    penalty: float = PENALTY,
    seed: int = 0,
) -> Tensor:
    """Label-independent smoother matrices of every family at every site.

    Args:
        x: (site, row, d).
        folds: Training and test rows; each row is scored at most once.
        families: Names out of ``FAMILIES``.
        penalty: Ridge penalty, relative to the mean of the kernel's diagonal.
        seed: Seed of the ferns.

    Returns:
        (family, site, row, row) S, float64: ``S @ y`` with y in -1, 1 scores the rows, > 0 for the
        class of 1. Rows that no fold scores are 0.

    Raises:
        InputError: an unknown family, shapes that do not fit, or a penalty <= 0.
    """
    unknown = [name for name in families if name not in FAMILIES]
    if unknown:
        raise InputError(f"there is no family {unknown[0]!r}", expected=", ".join(FAMILIES))
    x = as_tensor(x)
    if x.ndim != 3 or x.shape[1] != folds.n_rows:
        raise InputError(
            "activations and folds have different numbers of rows",
            expected=f"(site, {folds.n_rows}, d)",
            got=str(tuple(x.shape)),
        )
    if not penalty > 0:
        raise InputError("penalty must be > 0", got=str(penalty))
    check_finite(x)
    sites, n, _ = x.shape
    out = x.new_zeros((len(families), sites, n, n))
    cells = _fern_cells(x, seed) if "random ferns" in families else None
    for train, test in zip(folds.train, folds.test, strict=True):
        train_rows = torch.from_numpy(np.flatnonzero(train)).to(x.device)
        test_rows = torch.from_numpy(np.flatnonzero(test)).to(x.device)
        if len(train_rows) < 2 or len(test_rows) == 0:
            continue
        gram = _standard_gram(x, train_rows)
        for family, name in enumerate(families):
            if name == "random ferns":
                assert cells is not None
                weights = _votes_in_cells(cells, train_rows, test_rows)
            elif name == "neighbours":
                weights = _votes_of_nearest(_distances(gram), train_rows, test_rows)
            else:
                kernel = _kernel(name, gram, train_rows)
                weights = _ridge(kernel, train_rows, test_rows, penalty, name)
            out[family][:, test_rows[:, None], train_rows] = weights
    max_deviation = (x - x.mean(1, keepdim=True)).abs().amax((1, 2))
    # Equal rows would differ by rounding and by their order only.
    out[:, max_deviation <= 1e-12 * x.abs().amax((1, 2))] = 0.0
    return out


def _standard_gram(x: Tensor, train_rows: Tensor) -> Tensor:
    """(site, row, row) inner products of rows standardized by the training rows.

    Divided by the number of columns that vary, so that a row's squared norm is about 1.
    """
    train = x[:, train_rows]
    center = train.mean(1, keepdim=True)
    scale = train.std(1, correction=0, keepdim=True)
    # A centered constant column is rounding, not a feature.
    varies = scale > 1e-12 * train.abs().amax(1, keepdim=True)
    z = torch.where(varies, (x - center) / torch.where(varies, scale, 1.0), 0.0)
    return z @ z.transpose(1, 2) / varies.sum(2, keepdim=True).clamp(min=1)


def _distances(gram: Tensor) -> Tensor:
    """Squared distances, (site, row, row)."""
    squared_norms = gram.diagonal(dim1=1, dim2=2)
    return (squared_norms[:, :, None] + squared_norms[:, None] - 2 * gram).clamp(min=0)


def _kernel(name: str, gram: Tensor, train_rows: Tensor) -> Tensor:
    if name == "mean difference":
        return gram
    if name == "rbf":
        distances = _distances(gram)
        train_distances = distances[:, train_rows[:, None], train_rows]
        upper = torch.triu_indices(len(train_rows), len(train_rows), 1)
        width = train_distances[:, upper[0], upper[1]].median(1).values.clamp(min=1e-300)
        return torch.exp(-distances / width[:, None, None])
    kernel = gram + 1.0  # the bias, as an input that is always 1
    for _ in range(1 if name == "network, 1 layer" else 2):
        kernel = _rectified(kernel)
    return kernel


def _rectified(kernel: Tensor) -> Tensor:
    """The kernel after one more infinitely wide layer of rectifiers."""
    norms = kernel.diagonal(dim1=1, dim2=2).clamp(min=1e-300).sqrt()
    scale = norms[:, :, None] * norms[:, None]
    cosine = (kernel / scale).clamp(-1, 1)
    angle = torch.arccos(cosine)
    return scale * (torch.sin(angle) + (math.pi - angle) * cosine) / math.pi


def _ridge(
    kernel: Tensor, train_rows: Tensor, test_rows: Tensor, penalty: float, name: str
) -> Tensor:
    """(site, test row, training row) weights of kernel ridge regression with an intercept."""
    inner = kernel[:, train_rows[:, None], train_rows]
    outer = kernel[:, test_rows[:, None], train_rows]
    mean = inner.mean(1, keepdim=True)
    outer = outer - mean - outer.mean(2, keepdim=True) + inner.mean((1, 2))[:, None, None]
    if name == "mean difference":
        return outer / len(train_rows)
    inner = inner - mean - mean.transpose(1, 2) + mean.mean(2, keepdim=True)
    diagonal = inner.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-300)
    eye = torch.eye(len(train_rows), dtype=kernel.dtype, device=kernel.device)
    regularized = inner + penalty * diagonal[:, None, None] * eye
    return torch.linalg.solve(regularized, outer.transpose(1, 2)).transpose(1, 2)


def _votes_of_nearest(distances: Tensor, train_rows: Tensor, test_rows: Tensor) -> Tensor:
    distances = distances[:, test_rows[:, None], train_rows]
    count = min(N_NEIGHBORS, max(1, len(train_rows) // 4))
    nearest = distances.topk(count, dim=2, largest=False).indices
    return torch.zeros_like(distances).scatter_(2, nearest, 1 / count)


def _fern_cells(x: Tensor, seed: int) -> Tensor:
    """(site, fern, row) cell of each row; thresholds are the values of random rows."""
    sites, n, width = x.shape
    rng = numpy_rng(seed, "ferns")
    column = torch.from_numpy(rng.integers(0, width, (N_FERNS, N_CUTS))).to(x.device)
    cut_rows = torch.from_numpy(rng.integers(0, n, (N_FERNS, N_CUTS))).to(x.device)
    cells = torch.zeros((sites, N_FERNS, n), dtype=torch.long, device=x.device)
    for cut in range(N_CUTS):
        values = x[:, :, column[:, cut]].transpose(1, 2)  # (site, fern, row)
        threshold = values.gather(2, cut_rows[None, :, cut, None].expand(sites, -1, 1))
        cells = 2 * cells + (values > threshold)
    return cells


def _votes_in_cells(cells: Tensor, train_rows: Tensor, test_rows: Tensor) -> Tensor:
    one_hot = torch.nn.functional.one_hot(cells, 2**N_CUTS).double()
    # (site, fern x cell, row)
    member = one_hot.permute(0, 2, 1, 3).flatten(2)
    test_member, train_member = member[:, test_rows], member[:, train_rows]
    share = train_member / train_member.sum(1, keepdim=True).clamp(min=1)
    return test_member @ share.transpose(1, 2) / cells.shape[1]
