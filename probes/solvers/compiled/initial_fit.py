"""Newton-CG for one logistic fit on all rows, compiled by numba.

``probes.solvers.newton.initial_fit`` factorizes the system in each Newton step; here
conjugate gradients solve it. A product with the Gram matrix of few rows costs less than a
hundredth of its Cholesky factor, and early steps need not be solved accurately. With s the
square roots of the curvatures, u = alpha / s, and P the projection orthogonal to s (alpha
sums to 0, because the intercept is free), a step solves P (I + s K s) P u = P s z for the
working responses z. Only ``probes.solvers.newton.initial_fit`` imports this file.
"""

import math

import numpy as np

from probes.solvers.compiled.math import compiled, compiled_entry, logistic

MAX_CG_STEPS = 60
"""Most products in a Newton step."""
FORCING = 0.03
"""Relative residual to which each Newton system is solved."""


@compiled
def _value(target, weight, dual, scores, intercept):
    """Penalized loss."""
    total = 0.0
    for i in range(len(target)):
        score = float(scores[i])
        log_loss = math.log1p(math.exp(-abs(score))) + max(score, 0.0)
        total += weight[i] * (log_loss - target[i] * score)
    for i in range(len(target)):
        total += 0.5 * dual[i] * (scores[i] - intercept)
    return total


@compiled
def _project_out(vector, root, root2):
    """Project ``vector`` orthogonally to ``root``; return its squared norm."""
    dtype = vector.dtype.type
    overlap, norm2 = dtype(0), dtype(0)
    for i in range(len(vector)):
        overlap += vector[i] * root[i]
    overlap /= root2
    for i in range(len(vector)):
        vector[i] -= overlap * root[i]
    for i in range(len(vector)):
        norm2 += vector[i] * vector[i]
    return norm2


@compiled
def _apply(gram, root, vector, scaled, hess_vector):
    """``hess_vector`` = (I + s K s) ``vector``."""
    for i in range(len(root)):
        scaled[i] = root[i] * vector[i]
    np.dot(gram, scaled, hess_vector)
    for i in range(len(root)):
        hess_vector[i] = vector[i] + root[i] * hess_vector[i]


@compiled
def _solve(gram, root, root2, rhs, solution, workspace):
    """Conjugate gradients, starting from ``solution``; return whether they converged."""
    residual, direction, scaled, hess_direction = workspace
    n, dtype = len(root), gram.dtype.type
    _apply(gram, root, solution, scaled, hess_direction)
    for i in range(n):
        residual[i] = rhs[i] - hess_direction[i]
    residual2 = _project_out(residual, root, root2)
    goal2 = dtype(FORCING * FORCING) * residual2
    for i in range(n):
        direction[i] = residual[i]
    for _ in range(MAX_CG_STEPS):
        _apply(gram, root, direction, scaled, hess_direction)
        _project_out(hess_direction, root, root2)
        quadratic_form = dtype(0)
        for i in range(n):
            quadratic_form += direction[i] * hess_direction[i]
        if not quadratic_form > 0:
            return False
        step = residual2 / quadratic_form
        for i in range(n):
            solution[i] += step * direction[i]
        new_residual2 = dtype(0)
        for i in range(n):
            residual[i] -= step * hess_direction[i]
            new_residual2 += residual[i] * residual[i]
        if new_residual2 <= goal2:
            return True
        rate = new_residual2 / residual2
        for i in range(n):
            direction[i] = residual[i] + rate * direction[i]
        residual2 = new_residual2
    return False


def _fit(gram, target, weight, scores, dual, tol, max_steps):
    """Fit one problem; return the intercept and whether the fit converged.

    Args:
        gram: (n, n).
        target: (n,) 0 or 1.
        weight: (n,) > 0.
        scores: (n,) initial guess; updated.
        dual: (n,) zeros; updated.
        tol: See ``probes.solvers.newton.initial_fit.initial_fit``.
        max_steps: Most Newton steps.
    """
    n, dtype = len(target), gram.dtype.type
    root, rhs, solution = (np.empty_like(target), np.empty_like(target), np.zeros_like(target))
    new_scores, new_dual = np.empty_like(target), np.empty_like(target)
    workspace = (
        np.empty_like(target),
        np.empty_like(target),
        np.empty_like(target),
        np.empty_like(target),
    )
    min_curvature, zero_value, max_weight = dtype(0), 0.0, dtype(0)
    for i in range(n):
        zero_value += math.log(2.0) * weight[i]
        max_weight = max(max_weight, weight[i])
    min_curvature = dtype(1e-7) * max_weight
    value, intercept, is_guess = np.inf, dtype(0), True
    for _ in range(max_steps):
        root2 = dtype(0)
        for i in range(n):
            prob = logistic(scores[i])
            curvature = max(prob * (1 - prob) * weight[i], min_curvature)
            root[i] = np.sqrt(curvature)
            rhs[i] = root[i] * scores[i] + (target[i] - prob) * weight[i] / root[i]
            root2 += curvature
        for i in range(n):
            solution[i] = dual[i] / root[i]
        solved = _solve(gram, root, root2, rhs, solution, workspace)
        for i in range(n):
            new_dual[i] = root[i] * solution[i]
        np.dot(gram, new_dual, new_scores)
        new_intercept = dtype(0)
        for i in range(n):
            new_intercept += root[i] * (rhs[i] - solution[i] - root[i] * new_scores[i])
        new_intercept /= root2
        for i in range(n):
            new_scores[i] += new_intercept
        step = 1.0
        while True:
            new_value = _value(target, weight, new_dual, new_scores, new_intercept)
            if new_value <= value or step < 1e-2:
                break
            # Backtracking by halves.
            step *= 0.5
            for i in range(n):
                new_dual[i] = dtype(0.5) * (dual[i] + new_dual[i])
            for i in range(n):
                new_scores[i] = dtype(0.5) * (scores[i] + new_scores[i])
            new_intercept = dtype(0.5) * (intercept + new_intercept)
        if is_guess and not new_value <= zero_value:
            scores[:], is_guess = 0, False
            continue
        is_guess = False
        largest_change, largest = dtype(0), dtype(0)
        for i in range(n):
            largest_change = max(largest_change, abs(new_scores[i] - scores[i]))
            largest = max(largest, abs(new_scores[i]))
        for i in range(n):
            scores[i], dual[i] = new_scores[i], new_dual[i]
        intercept, value = new_intercept, new_value
        if largest_change <= tol * largest:
            return intercept, solved
    return intercept, False


fit = compiled_entry(_fit)
