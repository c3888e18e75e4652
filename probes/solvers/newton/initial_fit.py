"""One logistic fit on all its rows, by Newton steps in the rows' space.

The n x n system makes the number of features irrelevant once the Gram matrix is
there. Used for the fit whose factor a whole leave-group-out run shares, where a rough
optimum is enough, and to start single fits.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # pyright: ignore

from probes.solvers.objective.loss import Loss


@dataclass(frozen=True)
class InitialFit:
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


def initial_fit(
    gram: Tensor,
    loss: Loss,
    *,
    tol: float = 0.1,
    steps: int = 40,
    compiled: bool = False,
) -> InitialFit:
    """Newton on all rows, to a relative step of ``tol``.

    Steps run in float32, or float64 where a system is too stiff for it. The answer is
    the start of exact fits and the place of their factor, not an optimum; its dual
    values, intercept and scores fit each other to float64.

    Args:
        gram: (n, n) float64 Gram of centred rows.
        loss: A single two-class problem, weights > 0.
        tol: Stop when the step changes the scores by less, relatively.
        steps: At most so many.
        compiled: Whether ``probes.solvers.compiled.initial_fit`` may be used, which
            costs its compilation.

    Raises:
        LinAlgError: the Gram matrix overflowed, or is no Gram matrix.
    """
    on_cpu = gram.device.type == "cpu"
    base = loss.weight[0, 0]
    given = (gram, loss.target[0, 0], base)
    found = _compiled_newton(*given, tol, steps) if compiled and on_cpu else None
    for dtype in (torch.float32, torch.float64) if found is None else ():
        arrays: list[Any] = [part.to(dtype) for part in given]
        if on_cpu:
            arrays = [part.numpy() for part in arrays]
        with np.errstate(all="ignore"):  # what is not finite is seen at its end
            found = _newton(*arrays, tolerance=tol, steps=steps)
        if found is not None:
            break
    if found is None:
        raise LinAlgError("the Gram matrix is not positive semi-definite")
    dual, intercept = (torch.as_tensor(part).to(gram) for part in found)
    dual -= dual.mean()
    scores = torch.mv(gram, dual).add_(intercept)
    chance = torch.sigmoid(scores)
    weight = (chance - chance.square()).mul_(base)
    weight = weight.clamp_(min=1e-10 * float(base.max()))
    return InitialFit(dual[None], scores[None], intercept[None], weight)


def _compiled_newton(
    gram: Tensor, goal: Tensor, base: Tensor, tolerance: float, steps: int
) -> tuple[Any, Any] | None:
    """As ``_steps`` in float32, without a factor; None where that did not come near."""
    from probes.solvers.compiled import (
        initial_fit,  # numba takes half a second to import
    )

    arrays = [part.to(torch.float32).numpy() for part in (gram, goal, base)]
    matrix, wanted, weight = arrays
    scores = (2 * wanted - 1) * _initial_margin(np, matrix.diagonal() * weight)
    dual = np.zeros_like(scores)
    intercept, near = initial_fit.fit(*arrays, scores, dual, tolerance, steps)
    return (dual, intercept) if near else None


def _newton(
    gram: Any, goal: Any, base: Any, *, tolerance: float, steps: int
) -> tuple[Any, Any] | None:
    """(n,) dual values and the intercept; None where a factorisation fails.

    Arrays of NumPy, whose calls cost a fraction of torch's, or tensors.
    """
    xp = torch if isinstance(gram, Tensor) else np
    dual, intercept = xp.zeros_like(goal), 0 * goal[0]
    # A step needs curvature and pull alone, not scores that belong to dual values.
    scores = (2 * goal - 1) * _initial_margin(xp, gram.diagonal() * base)
    guessed, nothing = True, math.log(2) * float(base.sum())
    least = 1e-7 * float(base.max())
    value = math.inf
    for _ in range(steps):
        chance = 1 / (1 + xp.exp(-scores))
        pull = (goal - chance) * base
        root = xp.sqrt((chance * (1 - chance) * base).clip(min=least))
        system = gram * root
        system *= root[:, None]
        system.reshape(-1)[:: len(goal) + 1] += 1
        # Working responses and the vector of ones share one solve.
        sides = xp.stack([root * scores + pull / root, root], 1)
        solved = _solve(system, sides)
        if solved is None:
            return None
        solved = solved.T * root
        shift = solved[0].sum() / solved[1].sum()
        new_dual = solved[0] - shift * solved[1]
        new_scores, bias, length = gram @ new_dual + shift, shift, 1.0
        while True:
            cross = xp.log1p(xp.exp(-abs(new_scores))) + new_scores.clip(min=0)
            cross -= goal * new_scores
            new_value = float(base @ cross + 0.5 * (new_dual @ (new_scores - bias)))
            if new_value <= value or length < 1e-2:
                break
            # Half of the way is enough to do better, or half of that.
            length *= 0.5
            new_dual = 0.5 * (dual + new_dual)
            new_scores, bias = 0.5 * (scores + new_scores), 0.5 * (intercept + bias)
        if guessed and not new_value <= nothing:
            scores, guessed = xp.zeros_like(goal), False
            continue
        guessed = False
        change = float(abs(new_scores - scores).max())
        dual, scores, intercept, value = new_dual, new_scores, bias, new_value
        if change <= tolerance * float(abs(scores).max()):
            break
    return dual, intercept


def _solve(system: Any, sides: Any) -> Any:
    """``system``, which is positive definite, solved for ``sides``; None if it fails.

    By torch for arrays of NumPy too, as its LAPACK takes half of the time.
    """
    lower, info = torch.linalg.cholesky_ex(torch.as_tensor(system))
    if int(info) or not math.isfinite(float(lower[-1, -1])):
        return None
    solved = torch.cholesky_solve(torch.as_tensor(sides), lower)
    return solved if isinstance(system, Tensor) else solved.numpy()


def _initial_margin(xp: Any, gain: Any) -> Any:
    """Four fifths of the margin m = gain sigmoid(-m) of a row on its own, roughly.

    Rows that share a label help one another a little less than they hinder those of
    the other: on activations that saved half of the Newton steps from zero.
    """
    level = xp.log1p(gain)
    return 0.8 * (level - xp.log1p(level) * level / (1 + level))
