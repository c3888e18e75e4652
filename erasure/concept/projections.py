"""Orthogonal projections: off the class means, off the cross-covariance, at random."""

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from erasure.concept.affine import AffineEraser, orthogonal_projection
from erasure.concept.base import ConceptEraser, MomentEraser
from erasure.concept.moments import Moments
from erasure.inputs import RowsError
from evidence.seeds import torch_rng


class MeanDifference(MomentEraser):
    """Projects off the span of the differences between class means.

    Afterwards all classes have one mean, so no linear reader beats a constant on the
    rows of the fit, as after LEACE and with as many dimensions; but it moves the
    activations further. For a concept made of numbers the span is that of its
    covariances with the activations.

    Args:
        tolerance: Directions up to this share of the largest difference are none.

    Source: Belrose et al. (2023), arXiv 2306.03819, section 4, as the orthogonal
    alternative; Marks and Tegmark (2023), arXiv 2310.06824, for the direction.
    """

    def __init__(self, tolerance: float = 1e-8):
        self.tolerance = tolerance

    def solve(self, moments: Moments) -> AffineEraser:
        """The eraser for what ``moments`` has gathered."""
        spans = moments.cov_xz
        if moments.classes is not None:
            # The covariance with a class's column is its share times how far its mean
            # is from the mean of all. A class that never came has no mean.
            seen = moments.mean_z > 0
            spans = spans[..., seen] / moments.mean_z[seen]
        return _project_off_leading(
            "MeanDifference", spans, None, self.tolerance, moments
        )


class SpectralRemoval(MomentEraser):
    """SAL: projects off the first directions of covariance with the concept.

    With all of them (the default) the concept is gone for every linear reader. With
    fewer it is not: what the other directions tell stays.

    Args:
        rank: How many directions; None for all.
        tolerance: Directions up to this share of the largest are none.

    Source: Shao, Ziser and Cohen (2023), arXiv 2203.07893.
    """

    def __init__(self, rank: int | None = None, tolerance: float = 1e-8):
        self.rank = rank
        self.tolerance = tolerance

    def solve(self, moments: Moments) -> AffineEraser:
        """The eraser for what ``moments`` has gathered.

        Raises:
            RowsError: rank is below 1.
        """
        if self.rank is not None and self.rank < 1:
            raise RowsError("unknown rank", expected="1 or more", got=str(self.rank))
        return _project_off_leading(
            "SpectralRemoval", moments.cov_xz, self.rank, self.tolerance, moments
        )


class RandomProjection(ConceptEraser):
    """Projects off random directions: what removing so many dimensions does by itself.

    The control for every other eraser, with ``rank`` set to that one's ``rank_``.

    Args:
        rank: Dimensions, one number or one a site.
        seed: Of the directions.
    """

    def __init__(self, rank: int | tuple[int, ...] = 1, seed: int = 0):
        self.rank = rank
        self.seed = seed

    def fit(
        self, X: ArrayLike | Tensor, y: ArrayLike | Tensor | None = None
    ) -> "RandomProjection":
        """Take width and mean from (item, d) or (site, item, d); ``y`` is not used.

        Raises:
            RowsError: a rank is below 0 or above d, or there is not one a site.
        """
        tables, single = self._finite_tables(X, y)
        centre = tables.mean(1)
        sites, d = centre.shape
        ranks = [self.rank] * sites if isinstance(self.rank, int) else [*self.rank]
        if len(ranks) != sites or not all(0 <= rank <= d for rank in ranks):
            raise RowsError(
                "unknown rank",
                expected=f"0 to {d}, one number or {sites}",
                got=repr(self.rank),
            )
        rng = torch_rng(self.seed, "random projection")
        shape = (sites, d, max(ranks))
        drawn = torch.randn(shape, generator=rng, dtype=torch.float64)
        basis, _ = torch.linalg.qr(drawn.to(centre.device))
        self.eraser_ = orthogonal_projection(
            "RandomProjection",
            basis,
            torch.tensor(ranks, device=centre.device),
            centre,
            single,
        )
        return self

    def __sklearn_tags__(self):
        """That no concept is needed."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags


def _project_off_leading(
    method: str, spans: Tensor, most: int | None, tolerance: float, moments: Moments
) -> AffineEraser:
    """Project off the span of (site, d, k) columns, or the first directions of it."""
    basis, sizes, _ = torch.linalg.svd(spans, full_matrices=False)
    # Against the spread of the activations too: means that differ by rounding alone
    # have a largest difference as well.
    spread = moments.cov_xx.diagonal(dim1=1, dim2=2).sum(1).clamp(min=0).sqrt()
    kept = (sizes > tolerance * sizes[:, :1]) & (sizes > 1e-12 * spread[:, None])
    ranks = kept.sum(1)
    if most is not None:
        ranks = ranks.clamp(max=most)
    return orthogonal_projection(
        method, basis, ranks, moments.mean_x, moments.single_site
    )
