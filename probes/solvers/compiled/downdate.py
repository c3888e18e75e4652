"""Starting points of folds that each leave a few rows out of one factor, compiled by numba.

With w the factor's weights and G the rows of a fold, the Q without G is
Q + Q_G (w_G^-1 - Q_GG)^-1 Q_G' (``probes.solvers.objective.factor``). The Newton step that removes
their gradient a_G from the optimum of all rows changes the scores by
-Q_G (I - w_G Q_GG)^-1 a_G. Only ``probes.solvers.compiled.dispatch`` imports this file.
"""

import numpy as np

from probes.solvers.compiled.math import compiled, compiled_entry


@compiled
def _inverse(system, size):
    """Invert the leading (size, size) block in place, by Gauss-Jordan without pivoting.

    The block must be positive definite; otherwise the result is NaN.
    """
    for step in range(size):
        pivot = system[step, step]
        inverse = 1 / pivot if pivot > 0 else np.nan
        system[step, step] = 1
        for h in range(size):
            system[step, h] *= inverse
        for g in range(size):
            if g == step:
                continue
            factor = system[g, step]
            system[g, step] = 0
            for h in range(size):
                system[g, h] -= factor * system[step, h]


def _start_folds(matrix, weight, alpha, scores, rows, core, dual, start):
    folds, width = rows.shape
    n = len(weight)
    system, coefficient = np.empty((width, width)), np.empty(width)
    present = np.empty(width, np.int64)
    for fold in range(folds):
        size = 0
        for g in range(width):
            if rows[fold, g] >= 0:
                present[size] = g
                size += 1
        for g in range(size):
            r = rows[fold, present[g]]
            for h in range(size):
                q = rows[fold, present[h]]
                system[g, h] = -np.sqrt(weight[r] * weight[q]) * matrix[r, q]
            system[g, g] += 1
        _inverse(system, size)
        core[fold] = 0
        for g in range(size):
            r, total = rows[fold, present[g]], 0.0
            for h in range(size):
                q = rows[fold, present[h]]
                across = system[g, h] * np.sqrt(weight[r])
                core[fold, present[g], present[h]] = across * np.sqrt(weight[q])
                total += across / np.sqrt(weight[q]) * alpha[q]
            coefficient[g] = -total
        for i in range(n):
            start[fold, i] = scores[i]
        for g in range(size):
            r, step = rows[fold, present[g]], coefficient[g]
            for i in range(n):
                start[fold, i] += step * matrix[r, i]
        for i in range(n):
            dual[fold, i] = alpha[i] + weight[i] * scores[i]
        for g in range(size):
            dual[fold, rows[fold, present[g]]] = 0


start_folds = compiled_entry(_start_folds)
"""Write the cores of all folds, and their starting dual values and scores.

Args:
    matrix: (n, n) float64 Q of all rows.
    weight: (n,) float64, w > 0.
    alpha: (n,) float64 negative gradient of the loss at the fit of all rows.
    scores: (n,) float64 of that fit.
    rows: (fold, g) rows that each fold leaves out, -1 where there is none.
    core: (fold, g, g) float64 output.
    dual: (fold, n) output.
    start: (fold, n) output, scores.
"""
