"""Where folds start that each take a few rows out of one factor, compiled by numba.

With w the factor's weights and G the rows of a fold, Q without G is
Q + Q_G (w_G^-1 - Q_GG)^-1 Q_G' (``probes.solvers.objective.factor``), and the step of
Newton's that takes their pull a_G out of the optimum of all rows moves scores by
-Q_G (I - w_G Q_GG)^-1 a_G. Nothing but ``probes.solvers.compiled.dispatch`` imports
this file.
"""

import numpy as np

from probes.solvers.compiled.math import compiled


@compiled
def _inverse(system, size):
    """Invert the first ``size`` rows and columns, positive definite, in place.

    Without a pivot: of a system that is not definite NaN are left.
    """
    for step in range(size):
        lead = system[step, step]
        over = 1 / lead if lead > 0 else np.nan
        system[step, step] = 1
        for h in range(size):
            system[step, h] *= over
        for g in range(size):
            if g == step:
                continue
            part = system[g, step]
            system[g, step] = 0
            for h in range(size):
                system[g, h] -= part * system[step, h]


def _start_folds(matrix, weight, alpha, scores, rows, core, dual, start):
    folds, width = rows.shape
    n = len(weight)
    system, push = np.empty((width, width)), np.empty(width)
    taken = np.empty(width, np.int64)
    for fold in range(folds):
        size = 0
        for g in range(width):
            if rows[fold, g] >= 0:
                taken[size] = g
                size += 1
        for g in range(size):
            r = rows[fold, taken[g]]
            for h in range(size):
                q = rows[fold, taken[h]]
                system[g, h] = -np.sqrt(weight[r] * weight[q]) * matrix[r, q]
            system[g, g] += 1
        _inverse(system, size)
        core[fold] = 0
        for g in range(size):
            r, total = rows[fold, taken[g]], 0.0
            for h in range(size):
                q = rows[fold, taken[h]]
                across = system[g, h] * np.sqrt(weight[r])
                core[fold, taken[g], taken[h]] = across * np.sqrt(weight[q])
                total += across / np.sqrt(weight[q]) * alpha[q]
            push[g] = -total
        for i in range(n):
            start[fold, i] = scores[i]
        for g in range(size):
            r, part = rows[fold, taken[g]], push[g]
            for i in range(n):
                start[fold, i] += part * matrix[r, i]
        for i in range(n):
            dual[fold, i] = alpha[i] + weight[i] * scores[i]
        for g in range(size):
            dual[fold, rows[fold, taken[g]]] = 0


start_folds = compiled(_start_folds, cache=True)
"""Write the cores of all folds, and dual values and scores where they start.

Args:
    matrix: (n, n) float64 Q of all rows.
    weight: (n,) float64, w > 0.
    alpha: (n,) float64 pull of each row at the fit of all rows.
    scores: (n,) float64 of that fit.
    rows: (fold, g) rows that each fold takes out, -1 where there is none.
    core: (fold, g, g) float64 to write to.
    dual: (fold, n) to write to.
    start: (fold, n) scores, to write to.
"""
