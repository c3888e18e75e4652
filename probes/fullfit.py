"""One logistic fit on all its rows, by Newton steps in the rows' space.

The n x n system makes the number of features irrelevant once the Gram matrix is
there. Used for the fit whose factor a whole leave-group-out run shares, where a rough
optimum is enough, and to start single fits.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.errors import InputError
from probes.losses import Loss


@dataclass(frozen=True)
class RowFit:
    """A fit in the rows' space.

    Attributes:
        dual: (class, n), summing to 0 over rows; weights are dual @ X.
        scores: (class, n), K dual + intercept.
        intercept: (class,).
        weight: (n,) curvature of the loss at the scores.
    """

    dual: Tensor
    scores: Tensor
    intercept: Tensor
    weight: Tensor


def row_fit(
    gram: Tensor, loss: Loss, *, tolerance: float = 0.1, steps: int = 40
) -> RowFit:
    """Newton on all rows, to a relative step of ``tolerance``.

    Steps run in float32, or float64 where a system is too stiff for it. The answer is
    the start of exact fits and the place of their factor, not an optimum; its dual
    values, intercept and scores fit each other to float64.

    Args:
        gram: (n, n) float64 Gram of centred rows.
        loss: A single two-class problem, weights > 0.
        tolerance: Stop when the step changes the scores by less, relatively.
        steps: At most so many.
    """
    found = _steps(gram.float(), loss.to(torch.float32), tolerance, steps)
    if found is None:
        found = _steps(gram, loss, tolerance, steps)
    if found is None:
        raise InputError("the Gram matrix is not positive semi-definite")
    dual, intercept = found[0].double(), found[1].double()
    dual = dual - dual.mean()
    scores = dual @ gram + intercept
    chance = loss.probabilities(scores[None, None])
    weight = loss.curvature(chance)[0, 0]
    weight = weight.clamp(min=1e-10 * float(loss.weight.max()))
    return RowFit(dual[None], scores[None], intercept[None], weight)


def _steps(
    gram: Tensor, loss: Loss, tolerance: float, steps: int
) -> tuple[Tensor, Tensor] | None:
    """(n,) dual values and the intercept; None where a factorisation fails."""
    goal, base = loss.target[0, 0], loss.weight[0, 0]
    dual, intercept = torch.zeros_like(goal), goal.new_zeros(())
    # A step needs curvature and pull alone, not scores that belong to dual values.
    scores = (2 * goal - 1) * _margin(gram.diagonal() * base)
    guessed, nothing = True, math.log(2) * float(base.sum())
    least = 1e-7 * float(base.max())
    value = torch.inf
    for _ in range(steps):
        chance = torch.sigmoid(scores)
        pull = (goal - chance) * base
        root = (chance * (1 - chance) * base).clamp(min=least).sqrt()
        system = gram * root
        system.mul_(root[:, None])
        system.diagonal().add_(1)
        lower, info = torch.linalg.cholesky_ex(system)
        if int(info) or not bool(torch.isfinite(lower[-1, -1])):
            return None
        # Working responses and the vector of ones share one solve.
        sides = torch.stack([root * scores + pull / root, root], 1)
        solved = torch.cholesky_solve(sides, lower) * root[:, None]
        shift = solved[:, 0].sum() / solved[:, 1].sum()
        aim = solved[:, 0] - shift * solved[:, 1]
        aim_scores = gram @ aim + shift
        length = 1.0
        while True:
            new_dual = torch.lerp(dual, aim, length)
            new_scores = torch.lerp(scores, aim_scores, length)
            bias = torch.lerp(intercept, shift, length)
            cross = torch.nn.functional.softplus(new_scores) - goal * new_scores
            new_value = float(base @ cross + 0.5 * (new_dual @ (new_scores - bias)))
            if new_value <= value or length < 1e-2:
                break
            length *= 0.5
        if guessed and not new_value <= nothing:
            scores, guessed = torch.zeros_like(goal), False
            continue
        guessed = False
        change = float((new_scores - scores).abs().max())
        dual, scores, intercept, value = new_dual, new_scores, bias, new_value
        if change <= tolerance * float(scores.abs().max()):
            break
    return dual, intercept


def _margin(gain: Tensor) -> Tensor:
    """Four fifths of the margin m = gain sigmoid(-m) of a row on its own, roughly.

    Rows that share a label help one another a little less than they hinder those of
    the other: on activations that saved half of the Newton steps from zero.
    """
    level = torch.log1p(gain)
    return 0.8 * (level - torch.log1p(level) * level / (1 + level))
