"""One logistic fit on all its rows, by Newton's method in row space (the dual problem).

Once the n x n Gram matrix is known, the number of features is irrelevant. The fit provides
the point at which a leave-group-out run builds its shared factor, and starting points of
single fits; an approximate optimum is enough for both.
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
    """An approximate fit in row space.

    Attributes:
        dual: (class, n), summing to 0 over rows; the probe's weights are dual @ X.
        scores: (class, n), K dual + intercept.
        intercept: (class,).
        weight: (n,) curvature of the loss at the scores.
    """

    dual: Tensor
    scores: Tensor
    intercept: Tensor
    weight: Tensor


def initial_fit(
    gram: Tensor, loss: Loss, *, tol: float = 0.1, steps: int = 40, compiled: bool = False
) -> InitialFit:
    """Newton's method on all rows, until a step changes the scores by less than ``tol``.

    Steps run in float32, or in float64 if a system is too stiff for it. The result is not an
    optimum, but its dual values, intercept and scores match to float64 accuracy.

    Args:
        gram: (n, n) float64 Gram matrix of centered rows.
        loss: A single two-class problem, weights > 0.
        tol: Relative change of the scores at which to stop.
        steps: Most steps.
        compiled: Whether to use ``probes.solvers.compiled.initial_fit``, which must be compiled
            first.

    Raises:
        LinAlgError: the Gram matrix is not finite or not positive semi-definite.
    """
    on_cpu = gram.device.type == "cpu"
    row_weight = loss.weight[0, 0]
    data = (gram, loss.target[0, 0], row_weight)
    solution = _compiled_newton(*data, tol, steps) if compiled and on_cpu else None
    for dtype in (torch.float32, torch.float64) if solution is None else ():
        arrays: list[Any] = [array.to(dtype) for array in data]
        if on_cpu:
            arrays = [array.numpy() for array in arrays]
        with np.errstate(all="ignore"):  # the result is checked for finite values
            solution = _newton(*arrays, tol=tol, steps=steps)
        if solution is not None:
            break
    if solution is None:
        raise LinAlgError("the Gram matrix is not positive semi-definite")
    dual, intercept = (torch.as_tensor(array).to(gram) for array in solution)
    dual -= dual.mean()
    scores = torch.mv(gram, dual).add_(intercept)
    prob = torch.sigmoid(scores)
    weight = (prob - prob.square()).mul_(row_weight)
    weight = weight.clamp_(min=1e-10 * float(row_weight.max()))
    return InitialFit(dual[None], scores[None], intercept[None], weight)


def _compiled_newton(
    gram: Tensor, target: Tensor, weight: Tensor, tol: float, steps: int
) -> tuple[Any, Any] | None:
    """As ``_newton`` in float32, by conjugate gradients; None if it did not converge."""
    from probes.solvers.compiled import initial_fit  # numba takes half a second to import

    arrays = [part.to(torch.float32).numpy() for part in (gram, target, weight)]
    matrix, labels, row_weight = arrays
    scores = (2 * labels - 1) * _initial_margin(np, matrix.diagonal() * row_weight)
    dual = np.zeros_like(scores)
    intercept, converged = initial_fit.fit(*arrays, scores, dual, tol, steps)
    return (dual, intercept) if converged else None


def _newton(
    gram: Any, target: Any, weight: Any, *, tol: float, steps: int
) -> tuple[Any, Any] | None:
    """(n,) dual values and the intercept; None if a factorization fails.

    Takes NumPy arrays, whose calls cost a fraction of torch's, or tensors.
    """
    xp = torch if isinstance(gram, Tensor) else np
    dual, intercept = xp.zeros_like(target), 0 * target[0]
    # The first step needs curvature and gradient only; scores need no dual values yet.
    scores = (2 * target - 1) * _initial_margin(xp, gram.diagonal() * weight)
    is_guess, zero_value = True, math.log(2) * float(weight.sum())
    min_curvature = 1e-7 * float(weight.max())
    value = math.inf
    for _ in range(steps):
        prob = 1 / (1 + xp.exp(-scores))
        neg_gradient = (target - prob) * weight
        root = xp.sqrt((prob * (1 - prob) * weight).clip(min=min_curvature))
        system = gram * root
        system *= root[:, None]
        system.reshape(-1)[:: len(target) + 1] += 1
        # Working responses and the vector of ones share one factorization.
        rhs = xp.stack([root * scores + neg_gradient / root, root], 1)
        solved = _solve(system, rhs)
        if solved is None:
            return None
        solved = solved.T * root
        new_intercept = solved[0].sum() / solved[1].sum()
        new_dual = solved[0] - new_intercept * solved[1]
        new_scores, penalty_intercept, step = (gram @ new_dual + new_intercept, new_intercept, 1.0)
        while True:
            log_loss = xp.log1p(xp.exp(-abs(new_scores))) + new_scores.clip(min=0)
            log_loss -= target * new_scores
            new_value = float(
                weight @ log_loss + 0.5 * (new_dual @ (new_scores - penalty_intercept))
            )
            if new_value <= value or step < 1e-2:
                break
            # Backtracking by halves.
            step *= 0.5
            new_dual = 0.5 * (dual + new_dual)
            new_scores, penalty_intercept = (
                0.5 * (scores + new_scores),
                0.5 * (intercept + penalty_intercept),
            )
        if is_guess and not new_value <= zero_value:
            scores, is_guess = xp.zeros_like(target), False
            continue
        is_guess = False
        largest_change = float(abs(new_scores - scores).max())
        dual, scores, intercept, value = (new_dual, new_scores, penalty_intercept, new_value)
        if largest_change <= tol * float(abs(scores).max()):
            break
    return dual, intercept


def _solve(system: Any, rhs: Any) -> Any:
    """Solve a positive definite system; None if Cholesky fails.

    NumPy arrays are solved by torch too, whose LAPACK takes half the time.
    """
    lower, info = torch.linalg.cholesky_ex(torch.as_tensor(system))
    if int(info) or not math.isfinite(float(lower[-1, -1])):
        return None
    solved = torch.cholesky_solve(torch.as_tensor(rhs), lower)
    return solved if isinstance(system, Tensor) else solved.numpy()


def _initial_margin(xp: Any, gain: Any) -> Any:
    """About 0.8 m, where m = gain sigmoid(-m) is the margin of a row fitted alone.

    Rows of one label support one another a little less than they hinder rows of the other. On
    activations this guess saved half of the Newton steps from zero.
    """
    level = xp.log1p(gain)
    return 0.8 * (level - xp.log1p(level) * level / (1 + level))
