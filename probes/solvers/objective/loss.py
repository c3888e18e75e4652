"""Logistic and softmax loss of a batch of problems, in the pieces that solvers need.

Scores are (problem, class, row). The class axis has length 1 for two classes; the score is then
that of the second class against the first. Weights include the inverse penalty C, class weights,
sample weights and zeros for held-out rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """Weighted cross-entropy of a batch of problems.

    Attributes:
        target: (problem or 1, class, row), one-hot; for two classes 1 for the second.
        weight: (problem or 1, 1, row), >= 0.
    """

    target: Tensor
    weight: Tensor

    @property
    def binary(self) -> bool:
        """Whether there are two classes."""
        return self.target.shape[1] == 1

    def select(self, problems: Tensor | slice) -> "Loss":
        """The given problems (indices or a slice); shared arrays stay shared."""
        return Loss(
            self.target[problems] if len(self.target) > 1 else self.target,
            self.weight[problems] if len(self.weight) > 1 else self.weight,
        )

    def to(self, dtype: torch.dtype) -> "Loss":
        """The same loss in another floating type."""
        return Loss(self.target.to(dtype), self.weight.to(dtype))

    def probabilities(self, scores: Tensor, out: Tensor | None = None) -> Tensor:
        """Probability of each class given ``scores``, same shape."""
        if self.binary:
            return torch.sigmoid(scores, out=out)
        return torch.softmax(scores, 1, out=out)

    def neg_gradient(self, probabilities: Tensor, out: Tensor | None = None) -> Tensor:
        """Negative gradient of the loss by the scores, s (t - p), same shape."""
        return torch.sub(self.target, probabilities, out=out).mul_(self.weight)

    def curvature(self, probabilities: Tensor, out: Tensor | None = None) -> Tensor:
        """Diagonal of the second derivative by the scores, same shape."""
        return torch.addcmul(probabilities, probabilities, probabilities, value=-1, out=out).mul_(
            self.weight
        )

    def value(self, scores: Tensor) -> Tensor:
        """(problem,) weighted cross-entropy."""
        if self.binary:
            log_loss = torch.nn.functional.softplus(scores) - self.target * scores
        else:
            log_loss = torch.logsumexp(scores, 1, keepdim=True)
            log_loss = log_loss - (self.target * scores).sum(1, keepdim=True)
        return (log_loss * self.weight).sum((1, 2))


@dataclass(frozen=True)
class Curvature:
    """Second derivative of the loss minus a fixed diagonal, as an operator.

    Attributes:
        diagonal: (problem, class, row). For two classes the whole difference; for more classes the
            fixed diagonal to subtract.
        probabilities: (problem, class, row); None for two classes.
        weight: As in ``Loss``; None for two classes.
    """

    diagonal: Tensor
    probabilities: Tensor | None = None
    weight: Tensor | None = None

    def select(self, problems: Tensor) -> "Curvature":
        """The given problems (indices); shared arrays stay shared."""
        return self._map(lambda part: part[problems] if len(part) > 1 else part)

    def to(self, dtype: torch.dtype) -> "Curvature":
        """The same operator in another floating type."""
        return self._map(lambda part: part.to(dtype))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Curvature":
        return Curvature(
            change(self.diagonal),
            None if self.probabilities is None else change(self.probabilities),
            None if self.weight is None else change(self.weight),
        )

    def add_to(self, start: Tensor, direction: Tensor, out: Tensor | None = None) -> Tensor:
        """``start`` + (second derivative - fixed diagonal) ``direction``."""
        if self.probabilities is None or self.weight is None:
            return torch.addcmul(start, self.diagonal, direction, out=out)
        product = torch.mul(self.probabilities, direction, out=out)
        total = product.sum(1, keepdim=True)
        product.addcmul_(self.probabilities, total, value=-1).mul_(self.weight)
        return product.addcmul_(self.diagonal, direction, value=-1).add_(start)


def center_classes(batch: Tensor) -> Tensor:
    """Subtract the mean over classes, in place.

    The softmax does not depend on it, so nothing bounds it: rounding errors would accumulate.
    """
    return batch.sub_(batch.mean(1, keepdim=True))


def excess_curvature(
    loss: Loss, probabilities: Tensor, fixed: Tensor, out: Tensor | None = None
) -> Curvature:
    """Second derivative of the loss at ``probabilities`` minus ``fixed``.

    Args:
        loss: The objective.
        probabilities: (problem, class, row).
        fixed: (problem or 1, class or 1, row), the diagonal that the factor holds.
        out: Output for the diagonal, for two classes.
    """
    if loss.binary:
        return Curvature(loss.curvature(probabilities, out).sub_(fixed))
    return Curvature(fixed, probabilities, loss.weight)
