"""Evaluate one logistic fit to nearly full float64 accuracy: scores and gradients.

The gradient s (t - p) of a well-separated row has no digits left where p is nearly t, and
scores that are small differences of large products have few. Here gradients are computed from
the small probabilities alone, and scores and gradients are sums in doubled precision.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.solvers.newton.compensated import dot, two_sum
from probes.solvers.objective.loss import Loss


@dataclass(frozen=True)
class Problem:
    """One fit.

    Attributes:
        rows: (n, d) float64.
        target: (class or 1, n) 0 or 1.
        weight: (n,) > 0.
        class_basis: (class or 1, q) orthonormal basis of the classes, their mean excluded.
        row_basis: (d, r) orthonormal basis of the rows' span; None if that is all features.
        features: (n, r + 1) rows in that basis, and a column of ones.
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
        neg_gradient: (class or 1, n) of the loss by the scores.
        curvature_root: (n, class or 1, q) F, with F'F the second derivative by the scores in
            ``class_basis``.
        squared_norm: Of the parameters in the metric of the Hessian.
        gradient: (q (r + 1),) by the coordinates of ``features``.
        unreached_gradient: (q, d) by weights orthogonal to all rows.
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
    basis, reduced = None, rows
    if n < d:
        basis, r = torch.linalg.qr(rows.T)
        reduced = r.T
    table = torch.cat([reduced, rows.new_ones(n, 1)], 1)
    return Problem(rows, target, loss.weight[0, 0], free, basis, table)


def probabilities(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of each class and of all others, both to full relative accuracy."""
    if len(scores) == 1:
        return torch.sigmoid(scores), torch.sigmoid(-scores)
    prob = torch.softmax(scores, 0)
    classes = range(len(prob))
    others = [torch.cat([prob[:k], prob[k + 1 :]]).sum(0) for k in classes]
    return prob, torch.stack(others)


def neg_gradients(problem: Problem, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Negative gradient of the loss by the scores, and its rounding error.

    The two together sum to zero over classes.
    """
    prob, others = probabilities(scores)
    is_target = problem.target > 0
    if len(scores) == 1:
        parts = problem.weight * torch.where(is_target, others, -prob)
        return parts, torch.zeros_like(parts)
    parts = problem.weight * prob.masked_fill(is_target, 0.0)
    total, error = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for part in parts:
        total, rounding = two_sum(total, part)
        error = error + rounding
    return torch.where(is_target, total, -parts), error * is_target


def evaluate(problem: Problem, weights: Tensor, intercept: Tensor) -> Point:
    """The objective at (class or 1, d) weights and (class or 1,) intercept."""
    rows, scores = problem.rows, []
    for row_weights, intercept_part in zip(weights, intercept, strict=True):
        value, error = dot(rows, row_weights)
        value, rounding = two_sum(value, intercept_part)
        scores.append(value + (rounding + error))
    scores = torch.stack(scores)
    prob, others = probabilities(scores)
    if len(scores) == 1:
        roots = (problem.weight * prob * others).sqrt().T[:, :, None]
    else:
        # diag(p) - pp' = F'F with F = diag(p)^(1/2) - p^(1/2) p'.
        prob_root = prob.sqrt().T
        roots = -prob_root[:, :, None] * prob.T[:, None]
        roots.diagonal(dim1=1, dim2=2).copy_(prob_root * others.T)
        roots = problem.weight.sqrt()[:, None, None] * (roots @ problem.class_basis)
    rooted_scores = torch.einsum("nkq,qn->nk", roots, problem.class_basis.T @ scores)
    norm2 = float(weights.square().sum() + rooted_scores.square().sum())
    # Floor the norm: at an optimum of zero the relative certificate is undefined.
    norm2 = max(norm2, 1e-6 * float(roots.square().sum()), 1e-300)
    neg_gradient, error = neg_gradients(problem, scores)
    products = [dot(rows.T, row_weights) for row_weights in neg_gradient]
    weight_gradient = [
        (part - high) - low for part, (high, low) in zip(weights, products, strict=True)
    ]
    weight_gradient = torch.stack(weight_gradient) - error @ rows
    high, low = dot(neg_gradient, torch.ones_like(neg_gradient[0]))
    intercept_part = -high - (low + error.sum(1))
    weight_gradient, intercept_part = (
        problem.class_basis.T @ weight_gradient,
        problem.class_basis.T @ intercept_part,
    )
    reached, unreached = weight_gradient, torch.zeros_like(weight_gradient)
    if problem.row_basis is not None:
        reached = weight_gradient @ problem.row_basis
        unreached = weight_gradient - reached @ problem.row_basis.T
        # Project twice: rounding of a large gradient is not orthogonal to the rows.
        unreached = unreached - unreached @ problem.row_basis @ problem.row_basis.T
    gradient = torch.cat([reached, intercept_part[:, None]], 1).flatten()
    return Point(weights, intercept, scores, neg_gradient, roots, norm2, gradient, unreached)
