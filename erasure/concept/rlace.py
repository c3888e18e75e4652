"""R-LACE: the orthogonal projection after which the best linear probe does worst."""

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from erasure.concept.adversary import LogisticProbe, fit_logistic_probe
from erasure.concept.affine import orthogonal_projection
from erasure.concept.base import ConceptEraser
from erasure.inputs import class_codes
from evidence.arrays import RowsError


class RelaxedAdversarial(ConceptEraser):
    """R-LACE: an orthogonal projection of given rank from a minimax game with a probe.

    The probe, a logistic regression, minimizes its loss on the projected rows; the projection,
    relaxed to symmetric matrices with eigenvalues in [0, 1] and trace ``rank``, maximizes it. Every
    few steps the relaxed matrix is rounded to a projection (its leading eigenvectors), a new probe
    is fitted to convergence, and the projection with the highest probe loss is kept. For classes;
    ``SpectralRemoval`` is a closed form of the same game for numeric concepts.

    The game is not convex, so unlike LEACE nothing is guaranteed. ``loss_`` tells how far it got;
    its maximum is the entropy of the classes.

    Args:
        rank: Number of removed dimensions.
        steps: Number of projection updates.
        lr: Step size; the rows have unit variance on average.
        penalty: L2 penalty on the probe's weights, added to the mean cross-entropy.
        eval_every: Steps between evaluations with a new probe.

    Fitted:
        loss_: (site,) mean cross-entropy of the last probe, in nats.

    Source: Ravfogel et al. (2022), arXiv 2201.12091.

    Examples:
        >>> x = states.site("resid.1")
        >>> exhume.RelaxedAdversarial(rank=1, steps=20).fit(x, cities == "Lisbon").rank_
        1
    """

    def __init__(
        self,
        rank: int = 1,
        steps: int = 200,
        lr: float = 1.0,
        penalty: float = 1e-3,
        eval_every: int = 20,
    ):
        self.rank = rank
        self.steps = steps
        self.lr = lr
        self.penalty = penalty
        self.eval_every = eval_every

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> "RelaxedAdversarial":
        """Fit on (item, d) or (site, item, d) activations and classes ``y``.

        Raises:
            RowsError: A parameter is out of range.
        """
        tables, single = self._finite_tables(X, y)
        d = tables.shape[2]
        if not 1 <= self.rank <= d or min(self.steps, self.eval_every) < 1 or self.lr <= 0:
            raise RowsError(
                "a parameter is out of range",
                expected=f"rank from 1 to {d}, steps and eval_every from 1, lr above 0",
                got=f"{self.rank}, {self.steps}, {self.eval_every}, {self.lr}",
            )
        classes, codes = class_codes(y, tables.shape[1], None)
        one_hot = torch.nn.functional.one_hot(codes, len(classes)).to(tables)
        center = tables.mean(1)
        results = [
            self._solve_game(table - mean, one_hot)
            for table, mean in zip(tables, center, strict=True)
        ]
        basis = torch.stack([result[0] for result in results])
        self.loss_ = torch.tensor([result[1] for result in results])
        ranks = torch.full((len(results),), basis.shape[2], device=basis.device)
        self.eraser_ = orthogonal_projection(type(self).__name__, basis, ranks, center, single)
        return self

    def _solve_game(self, rows: Tensor, one_hot: Tensor) -> tuple[Tensor, float]:
        """(d, rank) directions and the loss of the best probe after them."""
        # Work in the span of the rows, which may have fewer dimensions than the features.
        u, singular_values, axes = torch.linalg.svd(rows, full_matrices=False)
        nonzero = singular_values > 1e-12 * singular_values[0]
        if int(nonzero.sum()) < self.rank:
            raise RowsError(
                "the rows span fewer dimensions than are to be removed",
                expected=f"{self.rank} or more",
                got=str(int(nonzero.sum())),
            )
        axes = axes[nonzero]
        reduced = u[:, nonzero] * singular_values[nonzero]
        reduced = reduced / reduced.square().mean().sqrt()
        span = reduced.shape[1]
        eye = torch.eye(span, dtype=reduced.dtype, device=reduced.device)
        removed = eye * (self.rank / span)
        best, best_loss = eye[:, : self.rank], -1.0
        probe: LogisticProbe | None = None
        for step in range(self.steps):
            projected = reduced - reduced @ removed
            probe = fit_logistic_probe(projected, one_hot, self.penalty, probe, steps=10)
            gradient = reduced.T @ probe.residuals(projected, one_hot) @ probe.coef.T / len(reduced)
            # The gradient of the loss by the projection is minus this; take its symmetric
            # part, as the matrix must stay symmetric.
            update = -(gradient + gradient.T) / 2
            size = update.norm()
            if size > 0:
                update = update / size * self.lr / (1 + step) ** 0.5
            removed = project_to_fantope(removed + update, self.rank)
            if (step + 1) % self.eval_every == 0 or step + 1 == self.steps:
                projection = torch.linalg.eigh(removed)[1][:, -self.rank :]
                projected = reduced - (reduced @ projection) @ projection.T
                loss = fit_logistic_probe(projected, one_hot, self.penalty).loss
                if loss > best_loss:
                    best, best_loss = projection, loss
        return axes.T @ best, best_loss


def project_to_fantope(matrix: Tensor, rank: int) -> Tensor:
    """The nearest symmetric matrix with eigenvalues in [0, 1] and trace ``rank``.

    The eigenvectors are unchanged; all eigenvalues are shifted by one number, found by bisection,
    and clipped.
    """
    eigenvalues, axes = torch.linalg.eigh(matrix)
    low, high = eigenvalues[0] - 1, eigenvalues[-1]
    for _ in range(100):
        middle = (low + high) / 2
        if (eigenvalues - middle).clamp(0, 1).sum() > rank:
            low = middle
        else:
            high = middle
    return (axes * (eigenvalues - (low + high) / 2).clamp(0, 1)) @ axes.T
