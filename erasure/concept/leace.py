"""LEACE: least-squares concept erasure in closed form."""

import torch
from torch import Tensor

from erasure.concept.affine import AffineEraser
from erasure.concept.base import MomentEraser
from erasure.concept.moments import Moments
from evidence.arrays import ConceptKind, RowsError

# A squared pivot of the Cholesky factor of the correlation matrix is the share of a
# feature's variance that the earlier features do not explain. Rounding leaves about
# d * 2e-16 for a dependent feature. Below this bound an eigendecomposition is used.
MIN_PIVOT = 1e-8


class Leace(MomentEraser):
    """Least-squares concept erasure (LEACE).

    Of all affine maps after which no linear classifier or regression with a convex loss beats a
    constant on the training rows, it changes these rows least, in every norm given by an inner
    product. All sites are solved together.

    With W a whitening of x and u the left singular vectors of W cov(x, z), the map is x - W^-1 u u'
    W (x - mean). ``W^-1 u`` is computed from cov(x, z) itself, so that the covariance with z is
    removed whatever the rounding errors in W.

    Args:
        tolerance: Canonical correlations up to this are kept. They have no unit: scaling the
            activations or recoding the concept changes nothing.
        shrinkage: Share from 0 to 1 by which the covariance of x is shrunk towards a multiple of
            the identity, or "oas" for the oracle approximating share. The concept is still removed
            exactly, but the change is no longer minimal on the training rows; with few rows it is
            smaller on other rows.
        kind: "classes" or "numbers", how the concept is read; None for the rule of
            ``evidence.arrays``.

    If the rows do not span the space (fewer than d + 1 rows, or dependent features), directions
    without variance are unchanged, as in the paper.

    Source: Belrose et al. (2023), arXiv 2306.03819, theorems 4.2 and 4.3; Chen et al. (2010), arXiv
    0907.4698, equation 23, for "oas".

    Examples:
        >>> x = states.site("resid.1")
        >>> eraser = exhume.Leace().fit(x, cities)
        >>> eraser.rank_
        7
        >>> erased = eraser.transform(x)
        >>> means = np.array([erased[cities == city].mean(0) for city in np.unique(cities)])
        >>> bool(np.allclose(means, means.mean(0), atol=1e-4))
        True
    """

    def __init__(
        self, tolerance: float = 1e-8, shrinkage: float | str = 0.0, kind: ConceptKind | None = None
    ):
        self.tolerance = tolerance
        self.shrinkage = shrinkage
        self.kind = kind

    def solve(self, moments: Moments) -> AffineEraser:
        """Solve for the eraser given the moments.

        Raises:
            RowsError: A parameter is out of range, or the moments are empty.
        """
        if not 0 <= self.tolerance < 1:
            raise RowsError(
                "the tolerance is out of range",
                expected="0 or more, and below 1",
                got=repr(self.tolerance),
            )
        cov = shrink_covariance(moments.cov_xx, moments.count, self.shrinkage)
        cross = moments.cov_xz @ concept_whitening(moments.cov_zz)
        eps = torch.finfo(moments.precision).eps
        whitened, right_of = _whitened(cov, cross, eps * moments.width)
        u, correlations, vt = torch.linalg.svd(whitened, full_matrices=False)
        significant = correlations > self.tolerance
        ranks = significant.sum(1)
        max_rank = int(ranks.max())
        # Singular values are sorted, so each site keeps its first ones.
        significant = significant[:, :max_rank]
        inverse = torch.where(significant, 1 / correlations[:, :max_rank], 0.0)
        left = cross @ vt[:, :max_rank].mT * inverse[:, None]
        right = right_of(u[..., :max_rank] * significant[:, None]).mT
        eraser = AffineEraser("Leace", left, right, moments.mean_x, ranks)
        return eraser.at(0) if moments.single_site else eraser


def shrink_covariance(cov: Tensor, count: int, share: float | str) -> Tensor:
    """Shrink the (site, d, d) covariance towards its mean variance times the identity.

    Raises:
        RowsError: ``share`` is neither in [0, 1] nor "oas".
    """
    d = cov.shape[-1]
    mean = cov.diagonal(dim1=1, dim2=2).mean(1)
    if share == "oas":
        square = cov.square().sum((1, 2))
        numerator = (1 - 2 / d) * square + (d * mean) ** 2
        denominator = (count + 1 - 2 / d) * (square - d * mean**2)
        rho = torch.where(denominator > 0, numerator / denominator, 1.0).clamp(max=1.0)
    elif isinstance(share, str) or not 0 <= share <= 1:
        raise RowsError(
            "unknown shrinkage", expected='a share from 0 to 1, or "oas"', got=repr(share)
        )
    elif share == 0:
        return cov
    else:
        rho = torch.full_like(mean, share)
    shrunk = (1 - rho)[:, None, None] * cov
    shrunk.diagonal(dim1=1, dim2=2).add_((rho * mean)[:, None])
    return shrunk


def concept_whitening(cov_zz: Tensor) -> Tensor:
    """(k, r) map to r uncorrelated concept columns of variance one.

    Dependent columns (the last class's, given the others) drop out.

    Raises:
        RowsError: The concept does not vary.
    """
    std = cov_zz.diagonal().clamp(min=0).sqrt()
    varies = std > 0
    if not bool(varies.any()):
        raise RowsError("the concept is the same in every row")
    inverse_std = torch.where(varies, 1 / std, 0.0)
    eigenvalues, axes = torch.linalg.eigh(inverse_std[:, None] * cov_zz * inverse_std)
    significant = eigenvalues > 1e-10 * eigenvalues[-1]
    return inverse_std[:, None] * axes[:, significant] / eigenvalues[significant].sqrt()


def _whitened(cov: Tensor, cross: Tensor, cut: float):
    """``W @ cross`` for a whitening W at each site, and the map from u to ``W' u``.

    Args:
        cov: (site, d, d).
        cross: (site, d, r).
        cut: Relative size of the eigenvalues treated as zero.
    """
    scale = cov.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    inverse_std = torch.where(scale > 0, 1 / scale, 0.0)
    factor, failed = torch.linalg.cholesky_ex(inverse_std[:, :, None] * cov * inverse_std[:, None])
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    well_conditioned = (failed == 0) & (pivots > MIN_PIVOT).all(1)
    if bool(well_conditioned.all()):
        column = inverse_std[..., None]
        whitened = _solve(factor, column * cross)
        return whitened, lambda u: column * _solve(factor.mT, u, upper=True)
    root = torch.empty_like(cov)
    direct = well_conditioned.nonzero()[:, 0]
    if len(direct):
        eye = torch.eye(cov.shape[1], dtype=cov.dtype, device=cov.device)
        inverse = _solve(factor[direct], eye.expand(len(direct), -1, -1))
        root[direct] = inverse * inverse_std[direct, None]
    degenerate = (~well_conditioned).nonzero()[:, 0]
    eigenvalues, axes = torch.linalg.eigh(cov[degenerate])
    significant = (eigenvalues > cut * eigenvalues[:, -1:]) & (eigenvalues > 0)
    inverse = torch.where(significant, eigenvalues.clamp(min=0).rsqrt(), 0.0)
    root[degenerate] = inverse[:, :, None] * axes.mT
    return root @ cross, lambda u: root.mT @ u


def _solve(factor: Tensor, columns: Tensor, upper: bool = False) -> Tensor:
    return torch.linalg.solve_triangular(factor, columns, upper=upper)
