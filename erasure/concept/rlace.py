"""R-LACE: the projection against which the best linear reader does worst."""

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from erasure.concept.adversary import LogisticProbe, fit_logistic_probe
from erasure.concept.affine import orthogonal_projection
from erasure.concept.base import ConceptEraser
from erasure.inputs import RowsError, class_codes


class RelaxedAdversarial(ConceptEraser):
    """R-LACE: an orthogonal projection of given rank, found as a game with a reader.

    The reader, a logistic regression, lowers its loss on the projected rows; the
    projection, relaxed to symmetric matrices with eigenvalues from 0 to 1 and trace
    ``rank``, raises it. Every few steps the relaxed matrix is made a projection (its
    first eigenvectors), a new reader is fitted to the end on what is left, and the
    projection with the highest such loss is kept. For classes; a closed form of the
    same game for numbers is ``SpectralRemoval``.

    The game is not convex: unlike LEACE nothing is promised, and ``loss_`` says how
    far it came (the entropy of the classes is the most there is).

    Args:
        rank: Dimensions to remove.
        steps: Moves of the projection.
        rate: Size of the moves; the rows have unit variance on average.
        penalty: On the reader's weights, beside the mean cross-entropy.
        every: Steps between trials with a new reader.

    Fitted:
        loss_: (site,) mean cross-entropy of the last reader, in nats.

    Source: Ravfogel et al. (2022), arXiv 2201.12091.
    """

    def __init__(
        self,
        rank: int = 1,
        steps: int = 200,
        rate: float = 1.0,
        penalty: float = 1e-3,
        every: int = 20,
    ):
        self.rank = rank
        self.steps = steps
        self.rate = rate
        self.penalty = penalty
        self.every = every

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> "RelaxedAdversarial":
        """Fit on (item, d) or (site, item, d) activations and classes ``y``.

        Raises:
            RowsError: a parameter is out of range.
        """
        tables, single = self._finite_tables(X, y)
        d = tables.shape[2]
        if not 1 <= self.rank <= d or min(self.steps, self.every) < 1 or self.rate <= 0:
            raise RowsError(
                "a parameter is out of range",
                expected=f"rank from 1 to {d}, steps and every from 1, rate above 0",
                got=f"{self.rank}, {self.steps}, {self.every}, {self.rate}",
            )
        classes, codes = class_codes(y, tables.shape[1], None)
        member = torch.nn.functional.one_hot(codes, len(classes)).to(tables)
        centre = tables.mean(1)
        found = [
            self._solve_game(table - mean, member)
            for table, mean in zip(tables, centre, strict=True)
        ]
        basis = torch.stack([each[0] for each in found])
        self.loss_ = torch.tensor([each[1] for each in found])
        ranks = torch.full((len(found),), basis.shape[2], device=basis.device)
        self.eraser_ = orthogonal_projection(
            type(self).__name__, basis, ranks, centre, single
        )
        return self

    def _solve_game(self, rows: Tensor, member: Tensor) -> tuple[Tensor, float]:
        """(d, rank) directions and the loss of the best reader after them."""
        # With fewer rows than features the game is played in the span of the rows.
        left, sizes, axes = torch.linalg.svd(rows, full_matrices=False)
        real = sizes > 1e-12 * sizes[0]
        if int(real.sum()) < self.rank:
            raise RowsError(
                "the rows span fewer dimensions than are to be removed",
                expected=f"{self.rank} or more",
                got=str(int(real.sum())),
            )
        axes = axes[real]
        inner = left[:, real] * sizes[real]
        inner = inner / inner.square().mean().sqrt()
        span = inner.shape[1]
        eye = torch.eye(span, dtype=inner.dtype, device=inner.device)
        removed = eye * (self.rank / span)
        best, best_loss = eye[:, : self.rank], -1.0
        reader: LogisticProbe | None = None
        for step in range(self.steps):
            kept = inner - inner @ removed
            reader = fit_logistic_probe(kept, member, self.penalty, reader, steps=10)
            slope = (
                inner.T @ reader.residuals(kept, member) @ reader.coef.T / len(inner)
            )
            # Removing more of a direction changes the loss by minus this; a matrix
            # that must stay symmetric moves along the symmetric part.
            move = -(slope + slope.T) / 2
            size = move.norm()
            if size > 0:
                move = move / size * self.rate / (1 + step) ** 0.5
            removed = project_to_fantope(removed + move, self.rank)
            if (step + 1) % self.every == 0 or step + 1 == self.steps:
                hard = torch.linalg.eigh(removed)[1][:, -self.rank :]
                kept = inner - (inner @ hard) @ hard.T
                loss = fit_logistic_probe(kept, member, self.penalty).loss
                if loss > best_loss:
                    best, best_loss = hard, loss
        return axes.T @ best, best_loss


def project_to_fantope(matrix: Tensor, rank: int) -> Tensor:
    """The nearest symmetric matrix with eigenvalues from 0 to 1 and trace ``rank``.

    The eigenvectors stay; eigenvalues all move by one number and are clipped, and the
    number is found by halving.
    """
    sizes, axes = torch.linalg.eigh(matrix)
    low, high = sizes[0] - 1, sizes[-1]
    for _ in range(100):
        middle = (low + high) / 2
        if (sizes - middle).clamp(0, 1).sum() > rank:
            low = middle
        else:
            high = middle
    return (axes * (sizes - (low + high) / 2).clamp(0, 1)) @ axes.T
