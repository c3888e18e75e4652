"""Points on the way to one logistic fit: scores, pulls and gradients to last digits.

A pull s (t - p) of a row that is told apart has no digits left where p is nearly t, and
scores that are small differences of large products have few. Here pulls are made of the
small probabilities alone, and scores and gradients are sums in twice the precision.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.solvers.newton.compensated import dot, two_sum
from probes.solvers.objective.loss import Loss


@dataclass(frozen=True)
class Problem:
    """What is fitted.

    Attributes:
        rows: (n, d) float64.
        target: (class or 1, n) 0 or 1.
        weight: (n,) > 0.
        class_basis: (class or 1, q) orthonormal: classes without what they share.
        row_basis: (d, r) orthonormal, spans the rows; None where that is all features.
        features: (n, r + 1) rows in that basis, and 1.
    """

    rows: Tensor
    target: Tensor
    weight: Tensor
    class_basis: Tensor
    row_basis: Tensor | None
    features: Tensor


@dataclass(frozen=True)
class Point:
    """A point, and the objective there.

    Attributes:
        weights: (class or 1, d).
        intercept: (class or 1,).
        scores: (class or 1, n).
        neg_gradient: (class or 1, n) minus the derivative of the loss by the scores.
        curvature_root: (n, class or 1, q): F with F'F the second derivative by free
            scores.
        squared_norm: Squared norm of the parameters in the metric of the Hessian.
        gradient: (q (r + 1),) gradient by the coordinates of ``table``.
        unreached_gradient: (q, d) gradient by weights that no row reaches.
    """

    weights: Tensor
    intercept: Tensor
    scores: Tensor
    neg_gradient: Tensor
    curvature_root: Tensor
    squared_norm: float
    gradient: Tensor
    unreached_gradient: Tensor


def make_problem(rows: Tensor, loss: Loss) -> Problem:
    """One problem on its rows.

    Args:
        rows: (n, d) float64 rows fitted.
        loss: Of these rows alone: one problem, weights > 0.
    """
    n, d = rows.shape
    target = loss.target[0]
    free = rows.new_ones(len(target), 1)
    if len(target) > 1:
        free = torch.linalg.qr(free, mode="complete").Q[:, 1:]
    basis, inside = None, rows
    if n < d:
        basis, upper = torch.linalg.qr(rows.T)
        inside = upper.T
    table = torch.cat([inside, rows.new_ones(n, 1)], 1)
    return Problem(rows, target, loss.weight[0, 0], free, basis, table)


def probabilities(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of each class, and that of all others, both to their last digits."""
    if len(scores) == 1:
        return torch.sigmoid(scores), torch.sigmoid(-scores)
    chance = torch.softmax(scores, 0)
    each = range(len(chance))
    rest = [torch.cat([chance[:k], chance[k + 1 :]]).sum(0) for k in each]
    return chance, torch.stack(rest)


def neg_gradients(problem: Problem, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the derivative of the loss by the scores, and what rounding took from it.

    Over classes the two together sum to zero.
    """
    chance, others = probabilities(scores)
    own = problem.target > 0
    if len(scores) == 1:
        small = problem.weight * torch.where(own, others, -chance)
        return small, torch.zeros_like(small)
    small = problem.weight * chance.masked_fill(own, 0.0)
    total, rest = torch.zeros_like(small[0]), torch.zeros_like(small[0])
    for each in small:
        total, lost = two_sum(total, each)
        rest = rest + lost
    return torch.where(own, total, -small), rest * own


def evaluate(problem: Problem, weights: Tensor, intercept: Tensor) -> Point:
    """The objective at (class or 1, d) weights and (class or 1,) intercept."""
    rows, scores = problem.rows, []
    for each, shift in zip(weights, intercept, strict=True):
        value, rest = dot(rows, each)
        value, lost = two_sum(value, shift)
        scores.append(value + (lost + rest))
    scores = torch.stack(scores)
    chance, others = probabilities(scores)
    if len(scores) == 1:
        roots = (problem.weight * chance * others).sqrt().T[:, :, None]
    else:
        # diag(p) - pp' = F'F with F = diag(p)^(1/2) - p^(1/2) p'.
        root = chance.sqrt().T
        roots = -root[:, :, None] * chance.T[:, None]
        roots.diagonal(dim1=1, dim2=2).copy_(root * others.T)
        roots = problem.weight.sqrt()[:, None, None] * (roots @ problem.class_basis)
    bent = torch.einsum("nkq,qn->nk", roots, problem.class_basis.T @ scores)
    size = float(weights.square().sum() + bent.square().sum())
    # Scores of a thousandth count as nothing: optima at zero have no scale.
    size = max(size, 1e-6 * float(roots.square().sum()), 1e-300)
    pull, rest = neg_gradients(problem, scores)
    sums = [dot(rows.T, each) for each in pull]
    steep = [
        (part - high) - low for part, (high, low) in zip(weights, sums, strict=True)
    ]
    steep = torch.stack(steep) - rest @ rows
    high, low = dot(pull, torch.ones_like(pull[0]))
    shift = -high - (low + rest.sum(1))
    steep, shift = problem.class_basis.T @ steep, problem.class_basis.T @ shift
    seen, beyond = steep, torch.zeros_like(steep)
    if problem.row_basis is not None:
        seen = steep @ problem.row_basis
        beyond = steep - seen @ problem.row_basis.T
        # Once more, as rounding of a steep gradient lies anywhere.
        beyond = beyond - beyond @ problem.row_basis @ problem.row_basis.T
    inside = torch.cat([seen, shift[:, None]], 1).flatten()
    return Point(weights, intercept, scores, pull, roots, size, inside, beyond)
