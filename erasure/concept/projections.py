"""Orthogonal projections: off class means, covariance with the concept, random directions."""

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from erasure.concept.affine import AffineEraser, orthogonal_projection
from erasure.concept.base import ConceptEraser, MomentEraser
from erasure.concept.moments import Moments
from evidence.arrays import ConceptKind, RowsError
from evidence.seeds import torch_rng


class MeanDifference(MomentEraser):
    """Project out the span of the differences between class means.

    Afterwards all classes have the same mean, so no linear probe beats a constant on the training
    rows, as after LEACE and with as many dimensions, but the activations change more. For a numeric
    concept the span is that of its covariances with the activations.

    Args:
        tolerance: Directions up to this share of the largest difference are treated as zero.
        kind: "classes" or "numbers", how the concept is read; None for the rule of
            ``evidence.arrays``.

    Source: Belrose et al. (2023), arXiv 2306.03819, section 4, as the orthogonal alternative; Marks
    and Tegmark (2023), arXiv 2310.06824, for the direction.

    Examples:
        >>> x = states.site("resid.1")
        >>> exhume.MeanDifference().fit(x, cities == "Lisbon").rank_
        1
    """

    def __init__(self, tolerance: float = 1e-8, kind: ConceptKind | None = None):
        self.tolerance = tolerance
        self.kind = kind

    def solve(self, moments: Moments) -> AffineEraser:
        """Solve for the eraser given the moments."""
        spans = moments.cov_xz
        if moments.classes is not None:
            # The covariance with a class's column is the class's share times its mean's
            # distance from the overall mean. A class without rows has no mean.
            present = moments.mean_z > 0
            spans = spans[..., present] / moments.mean_z[present]
        return _project_off_leading("MeanDifference", spans, None, self.tolerance, moments)


class SpectralRemoval(MomentEraser):
    """SAL (spectral attribute removal): project out the leading directions of covariance.

    With all directions (the default) no linear probe finds the concept. With fewer, the information
    in the other directions remains.

    Args:
        rank: Number of directions; None for all.
        tolerance: Directions up to this share of the largest are treated as zero.
        kind: "classes" or "numbers", how the concept is read; None for the rule of
            ``evidence.arrays``.

    Source: Shao, Ziser and Cohen (2023), arXiv 2203.07893.

    Examples:
        >>> x = states.site("resid.1")
        >>> exhume.SpectralRemoval(rank=2).fit(x, cities).eraser_
        AffineEraser(SpectralRemoval, width 32, rank 2)
    """

    def __init__(
        self, rank: int | None = None, tolerance: float = 1e-8, kind: ConceptKind | None = None
    ):
        self.rank = rank
        self.tolerance = tolerance
        self.kind = kind

    def solve(self, moments: Moments) -> AffineEraser:
        """Solve for the eraser given the moments.

        Raises:
            RowsError: The rank is below 1.
        """
        if self.rank is not None and self.rank < 1:
            raise RowsError("unknown rank", expected="1 or more", got=str(self.rank))
        return _project_off_leading(
            "SpectralRemoval", moments.cov_xz, self.rank, self.tolerance, moments
        )


class RandomProjection(ConceptEraser):
    """Project out random directions: the control for removing as many dimensions.

    Set ``rank`` to the ``rank_`` of the eraser to be compared.

    Args:
        rank: Number of directions, one number or one per site.
        seed: Seed of the directions.

    Examples:
        >>> x = states.site("resid.1")
        >>> exhume.RandomProjection(rank=7, seed=1).fit(x).rank_
        7
    """

    def __init__(self, rank: int | tuple[int, ...] = 1, seed: int = 0):
        self.rank = rank
        self.seed = seed

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor | None = None) -> "RandomProjection":
        """Fit the mean on (item, d) or (site, item, d) activations; ``y`` is not used.

        Raises:
            RowsError: A rank is below 0 or above d, or the number of ranks differs.
        """
        tables, single = self._finite_tables(X, y)
        center = tables.mean(1)
        sites, d = center.shape
        ranks = [self.rank] * sites if isinstance(self.rank, int) else [*self.rank]
        if len(ranks) != sites or not all(0 <= rank <= d for rank in ranks):
            raise RowsError(
                "unknown rank", expected=f"0 to {d}, one number or {sites}", got=repr(self.rank)
            )
        rng = torch_rng(self.seed, "random projection")
        shape = (sites, d, max(ranks))
        gaussian = torch.randn(shape, generator=rng, dtype=torch.float64)
        basis, _ = torch.linalg.qr(gaussian.to(center.device))
        self.eraser_ = orthogonal_projection(
            "RandomProjection", basis, torch.tensor(ranks, device=center.device), center, single
        )
        return self

    def __sklearn_tags__(self):
        """Tell scikit-learn that no concept is required."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags


def _project_off_leading(
    method: str, spans: Tensor, max_rank: int | None, tolerance: float, moments: Moments
) -> AffineEraser:
    """Project out the leading directions of the span of (site, d, k) columns."""
    basis, singular_values, _ = torch.linalg.svd(spans, full_matrices=False)
    # Compare with the spread of the activations too: even if the means differ by rounding
    # alone, one difference is the largest.
    spread = moments.cov_xx.diagonal(dim1=1, dim2=2).sum(1).clamp(min=0).sqrt()
    significant = (singular_values > tolerance * singular_values[:, :1]) & (
        singular_values > 1e-12 * spread[:, None]
    )
    ranks = significant.sum(1)
    if max_rank is not None:
        ranks = ranks.clamp(max=max_rank)
    return orthogonal_projection(method, basis, ranks, moments.mean_x, moments.single_site)
