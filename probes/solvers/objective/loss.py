"""Logistic and softmax loss, one problem a row of a batch, in pieces the solver needs.

Shapes: scores are (problem, class, row); the class axis has length 1 for two classes,
where the score is that of the second class against the first. Weights already hold
the inverse penalty C, class weights, sample weights and the zeros of held-out rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """Weighted cross-entropy of a batch of problems.

    Attributes:
        target: (problem or 1, class, row), 0 or 1: one-hot, or membership of the
            second class where there are two.
        weight: (problem or 1, 1, row), >= 0.
    """

    target: Tensor
    weight: Tensor

    @property
    def binary(self) -> bool:
        """Whether one score decides between two classes."""
        return self.target.shape[1] == 1

    def select(self, problems: Tensor | slice) -> "Loss":
        """The problems ``problems`` (indices or a slice), sharing what is shared."""
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
        """Minus the derivative of the loss by the scores, same shape."""
        return torch.sub(self.target, probabilities, out=out).mul_(self.weight)

    def curvature(self, probabilities: Tensor, out: Tensor | None = None) -> Tensor:
        """Diagonal of the second derivative by the scores, same shape."""
        return torch.addcmul(
            probabilities, probabilities, probabilities, value=-1, out=out
        ).mul_(self.weight)

    def value(self, scores: Tensor) -> Tensor:
        """(problem,) weighted cross-entropy."""
        if self.binary:
            cross = torch.nn.functional.softplus(scores) - self.target * scores
        else:
            cross = torch.logsumexp(scores, 1, keepdim=True)
            cross = cross - (self.target * scores).sum(1, keepdim=True)
        return (cross * self.weight).sum((1, 2))


@dataclass(frozen=True)
class Curvature:
    """Second derivative of the loss minus a fixed diagonal, as an operator.

    Attributes:
        diagonal: (problem, class, row). For two classes the whole difference; for
            more the fixed diagonal, which is taken off.
        probabilities: (problem, class, row) or None for two classes.
        weight: as in ``Loss``; None for two classes.
    """

    diagonal: Tensor
    probabilities: Tensor | None = None
    weight: Tensor | None = None

    def select(self, problems: Tensor) -> "Curvature":
        """The problems ``problems`` (indices), sharing what is shared."""
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

    def add_to(
        self, start: Tensor, direction: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """``start`` + (second derivative - fixed diagonal) ``direction``."""
        if self.probabilities is None or self.weight is None:
            return torch.addcmul(start, self.diagonal, direction, out=out)
        flow = torch.mul(self.probabilities, direction, out=out)
        total = flow.sum(1, keepdim=True)
        flow.addcmul_(self.probabilities, total, value=-1).mul_(self.weight)
        return flow.addcmul_(self.diagonal, direction, value=-1).add_(start)


def center_classes(batch: Tensor) -> Tensor:
    """Take out, in place, what all classes share.

    Softmax does not feel a shift of all classes, so nothing holds it: rounding would
    grow along it without bound.
    """
    return batch.sub_(batch.mean(1, keepdim=True))


def excess_curvature(
    loss: Loss, probabilities: Tensor, fixed: Tensor, out: Tensor | None = None
) -> Curvature:
    """The loss's second derivative at ``probabilities`` minus ``fixed``.

    Args:
        loss: The batch.
        probabilities: (problem, class, row).
        fixed: (problem or 1, class or 1, row), the diagonal the preconditioner holds.
        out: Where to write the diagonal, for two classes.
    """
    if loss.binary:
        return Curvature(loss.curvature(probabilities, out).sub_(fixed))
    return Curvature(fixed, probabilities, loss.weight)
