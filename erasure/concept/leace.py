"""Least-squares concept erasure: the smallest change that no linear reader survives."""

import torch
from torch import Tensor

from erasure.concept.affine import AffineEraser
from erasure.concept.base import MomentEraser
from erasure.concept.moments import Moments
from erasure.inputs import RowsError

# A squared pivot of the correlation matrix is the share of a feature that the others
# do not explain. Rounding leaves about d times 2e-16 of a feature that is none; well
# above that the triangular factor has done, below it eigenvalues decide.
MIN_PIVOT = 1e-8


class Leace(MomentEraser):
    """Least-squares concept erasure.

    Of all affine maps after which no linear classifier or regression with any convex
    loss beats a constant, on the rows it was fitted on, the one that moves these rows
    least, in every norm given by an inner product. All sites are solved together.

    Writing W for a whitening of x and u for the left singular vectors of
    W cov(x, z), the map is x - W^-1 u u' W (x - mean). ``W^-1 u`` is taken from
    cov(x, z) itself, so that nothing is left of it whatever the errors in W.

    Args:
        tolerance: Canonical correlations up to this are left alone. A correlation has
            no unit: scaling the activations or recoding the concept changes nothing.
        shrinkage: How far the covariance of x is drawn towards a multiple of the
            identity: a share from 0 to 1, or "oas" for the share that suits the
            number of rows. The concept is as absent then, and the change no longer the
            least on the rows of the fit; with few rows it is smaller on others.

    Where the rows do not span the space (fewer than d + 1 of them, or dependent
    features), directions without variance are left as they are, as in the paper.

    Source: Belrose et al. (2023), arXiv 2306.03819, theorems 4.2 and 4.3; Chen et al.
    (2010), arXiv 0907.4698, equation 23, for "oas".
    """

    def __init__(self, tolerance: float = 1e-8, shrinkage: float | str = 0.0):
        self.tolerance = tolerance
        self.shrinkage = shrinkage

    def solve(self, moments: Moments) -> AffineEraser:
        """The eraser for what ``moments`` has gathered.

        Raises:
            RowsError: a parameter is out of range, or nothing was gathered.
        """
        if not 0 <= self.tolerance < 1:
            raise RowsError(
                "unknown tolerance",
                expected="a correlation from 0 to below 1",
                got=repr(self.tolerance),
            )
        cov = shrink_covariance(moments.cov_xx, moments.count, self.shrinkage)
        cross = moments.cov_xz @ concept_whitening(moments.cov_zz)
        eps = torch.finfo(moments.precision).eps
        inner, right_of = _whitened(cov, cross, eps * moments.width)
        u, correlations, vt = torch.linalg.svd(inner, full_matrices=False)
        kept = correlations > self.tolerance
        ranks = kept.sum(1)
        most = int(ranks.max())
        kept, size = kept[:, :most], correlations[:, :most]
        # Singular values come in falling order, so a site's first ones are its kept.
        inverse = torch.where(kept, 1 / size, 0.0)
        left = cross @ vt[:, :most].mT * inverse[:, None]
        right = right_of(u[..., :most] * kept[:, None]).mT
        many = AffineEraser("Leace", left, right, moments.mean_x, ranks)
        return many.at(0) if moments.single_site else many


def shrink_covariance(cov: Tensor, count: int, share: float | str) -> Tensor:
    """The (site, d, d) covariance drawn towards its mean variance times the identity.

    Raises:
        RowsError: ``share`` is neither from 0 to 1 nor "oas".
    """
    d = cov.shape[-1]
    mean = cov.diagonal(dim1=1, dim2=2).mean(1)
    if share == "oas":
        square = cov.square().sum((1, 2))
        top = (1 - 2 / d) * square + (d * mean) ** 2
        bottom = (count + 1 - 2 / d) * (square - d * mean**2)
        rho = torch.where(bottom > 0, top / bottom, 1.0).clamp(max=1.0)
    elif isinstance(share, str) or not 0 <= share <= 1:
        raise RowsError(
            "unknown shrinkage",
            expected='a share from 0 to 1, or "oas"',
            got=repr(share),
        )
    elif share == 0:
        return cov
    else:
        rho = torch.full_like(mean, share)
    grown = (1 - rho)[:, None, None] * cov
    grown.diagonal(dim1=1, dim2=2).add_((rho * mean)[:, None])
    return grown


def concept_whitening(cov_zz: Tensor) -> Tensor:
    """(k, r) map after which the concept has r uncorrelated columns of variance one.

    Columns that depend on others (one class's, given all the rest) drop out.

    Raises:
        RowsError: the concept does not vary.
    """
    spread = cov_zz.diagonal().clamp(min=0).sqrt()
    varies = spread > 0
    if not bool(varies.any()):
        raise RowsError("the concept is the same in every row")
    unit = torch.where(varies, 1 / spread, 0.0)
    sizes, axes = torch.linalg.eigh(unit[:, None] * cov_zz * unit)
    kept = sizes > 1e-10 * sizes[-1]
    return unit[:, None] * axes[:, kept] / sizes[kept].sqrt()


def _whitened(cov: Tensor, cross: Tensor, cut: float):
    """``W @ cross`` for a whitening W at each site, and the map from u to ``W' u``.

    Args:
        cov: (site, d, d).
        cross: (site, d, r).
        cut: Eigenvalues up to this share of the largest are none.
    """
    scale = cov.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    unit = torch.where(scale > 0, 1 / scale, 0.0)
    factor, fault = torch.linalg.cholesky_ex(unit[:, :, None] * cov * unit[:, None])
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    sound = (fault == 0) & (pivots > MIN_PIVOT).all(1)
    if bool(sound.all()):
        inner = _solve(factor, unit[..., None] * cross)
        return inner, lambda u: unit[..., None] * _solve(factor.mT, u, upper=True)
    root = torch.empty_like(cov)
    some = sound.nonzero()[:, 0]
    if len(some):
        eye = torch.eye(cov.shape[1], dtype=cov.dtype, device=cov.device)
        inverse = _solve(factor[some], eye.expand(len(some), -1, -1))
        root[some] = inverse * unit[some, None]
    rest = (~sound).nonzero()[:, 0]
    sizes, axes = torch.linalg.eigh(cov[rest])
    kept = (sizes > cut * sizes[:, -1:]) & (sizes > 0)
    inverse = torch.where(kept, sizes.clamp(min=0).rsqrt(), 0.0)
    root[rest] = inverse[:, :, None] * axes.mT
    return root @ cross, lambda u: root.mT @ u


def _solve(factor: Tensor, columns: Tensor, upper: bool = False) -> Tensor:
    return torch.linalg.solve_triangular(factor, columns, upper=upper)
