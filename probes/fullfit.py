"""One logistic fit on all its rows, by Newton steps in the rows' space.

The n x n system makes the number of features irrelevant once the Gram matrix is
there. Used for the fit whose factor a whole leave-group-out run shares, where a rough
optimum is enough, and to start single fits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.losses import Loss


@dataclass(frozen=True)
class RowFit:
    """A fit in the rows' space.

    Attributes:
        dual: (class, n), summing to 0 over rows; weights are dual @ X.
        scores: (class, n), K dual + intercept.
        intercept: (class,).
        weight: (n,) curvature of the loss at the scores, averaged over classes.
    """

    dual: Tensor
    scores: Tensor
    intercept: Tensor
    weight: Tensor


def row_fit(
    gram: Tensor, loss: Loss, *, tolerance: float = 1e-4, steps: int = 40
) -> RowFit:
    """Newton on all rows with positive weight, to a relative step of ``tolerance``.

    For more than two classes each class takes its Newton step with the others held,
    all at once (a bound on the curvature); that is a start, not an optimum.

    Args:
        gram: (n, n) float64 Gram of centred rows.
        loss: A single problem, weights > 0.
        tolerance: Stop when the step changes the scores by less, relatively.
        steps: At most so many.
    """
    classes, n = loss.target.shape[1:]
    scores = gram.new_zeros((1, classes, n))
    dual, intercept = torch.zeros_like(scores), gram.new_zeros(classes)
    value = loss.value(scores)
    penalty = gram.new_zeros(1)
    weight = loss.weight[0, 0]
    for _ in range(steps):
        probabilities = loss.probabilities(scores)
        pull = loss.pull(probabilities)
        weight = loss.curvature(probabilities).mean((0, 1))
        weight = weight.clamp(min=1e-10 * float(loss.weight.max()))
        root = weight.sqrt()
        system = gram * root
        system.mul_(root[:, None])
        system.diagonal().add_(1)
        lower = torch.linalg.cholesky(system)
        # Working responses and the vector of ones share one solve.
        sides = torch.cat([root * scores[0] + pull[0] / root, root[None]])
        solved = torch.cholesky_solve(sides.T, lower).T * root
        shift = solved[:-1].sum(1) / solved[-1].sum()
        aim = solved[:-1] - shift[:, None] * solved[-1]
        aim_scores = aim @ gram + shift[:, None]
        length = 1.0
        while True:
            new_dual = dual + length * (aim[None] - dual)
            new_scores = scores + length * (aim_scores[None] - scores)
            bias = intercept + length * (shift - intercept)
            new_penalty = 0.5 * (new_dual * (new_scores - bias[:, None])).sum((1, 2))
            new_value = loss.value(new_scores)
            if new_value + new_penalty <= value + penalty or length < 1e-3:
                break
            length *= 0.5
        change = float((new_scores - scores).abs().max())
        dual, scores, intercept = new_dual, new_scores, bias
        value, penalty = new_value, new_penalty
        if change <= tolerance * float(scores.abs().max()):
            break
    return RowFit(dual[0], scores[0], intercept, weight)
