"""Nonlinear Jacobi iteration for two classes, compiled by numba.

With dual values c, scores E = Q c and q the diagonal of Q, the score of row i is
E_i = q_i c_i + F_i, where F_i collects the other rows. At the optimum
c_i = a_i(E_i) + w_i E_i, with a the negative gradient of the loss. One iteration solves this
increasing scalar equation for every row with F fixed, at the cost of one product with Q.

If features outnumber rows, a row's leverage w q is close to 1 and coupling between rows is
weak: an iteration reduces the error by a factor of three to five, with a third of the
products that conjugate directions need. Nearly equal rows slow it down; problems that stall
are left to the Newton-CG of ``probes.solvers.compiled.newton_cg``.

The certificate needs no product: Q <= diag(w)^-1 in the Loewner order, so for the residual
r = a - c + w E, r'Qr <= sum r_i^2 / w_i. In the metric of the local Hessian the bound is
the sum of r_i^2 over the curvature.

Source: Ortega and Rheinboldt (1970), Iterative Solution of Nonlinear Equations in
Several Variables, section 7.4.
"""

import numpy as np

from probes.solvers.compiled.certificate import certify, write_excess
from probes.solvers.compiled.math import compiled, logistic
from probes.solvers.compiled.workspace import (
    BEST,
    CERT,
    DUE,
    INITIAL,
    LOCAL_CERT,
    NORM2,
    NORM2_RATIO,
    RAW_NORM2,
    RESIDUAL2,
    compact,
    load,
    multiply_q,
    replace_scores,
    write_dual,
    write_solution,
)

RESCORE_BELOW = 1e-3
"""Certificate below which products in the fast type change the scores by less than a tenth
of the accepted error. Scores are then recomputed once in the exact type."""
STALL_RATIO = 0.5
"""Stop a problem if two iterations leave more than this share of its certificate."""
MIN_ITERATIONS = 4
"""Iterations before ``STALL_RATIO`` applies."""
MAX_ROW_STEPS = 8
"""Most Newton steps on a row's scalar equation."""
LARGE_SCORE_STEP = 0.5
"""Change of a score above which one Newton step does not solve the row's equation."""
EPS = 1e-9
"""Added before powers are taken, to avoid slow denormal numbers."""
MAX_SCORE_STEP = 4.0
"""Largest change of a score in one Newton step; the sigmoid is flat beyond."""


@compiled
def _diagonals(count, problem, matrix, removed, core, diagonal):
    """(slot, n) diagonal of Q with rows left out."""
    n, width = matrix.shape[0], removed.shape[1]
    for k in range(count):
        p = problem[k]
        for i in range(n):
            diagonal[k, i] = matrix[i, i]
        for g in range(width):
            for h in range(width):
                r, q = max(removed[p, g], 0), max(removed[p, h], 0)
                across = core[p, g, h]
                for i in range(n):
                    diagonal[k, i] += across * matrix[r, i] * matrix[q, i]


@compiled
def _evaluate(count, problem, loss, fast_weights, removed, e, b, exact_row, prob, residual, state):
    """Residuals, the bound of their squared norm, and the squared norm of the parameters."""
    weight, target, fixed = loss
    n, dtype = e.shape[1], residual.dtype.type
    for k in range(count):
        p = problem[k]
        w, t, f = p % len(weight), p % len(target), p % len(fixed)
        for i in range(n):
            exact_row[i] = logistic(e[k, i])
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                exact_row[removed[p, g]] = 0
        for i in range(n):
            prob[k, i] = dtype(exact_row[i])
        for i in range(n):
            residual[k, i] = dtype(b[k, i] - exact_row[i] * weight[w, i])
        residual2 = dtype(0)
        for i in range(n):
            inverse = dtype(1) / max(fast_weights[1][f, i], dtype(1e-30))
            residual2 += residual[k, i] * residual[k, i] * inverse
        norm2, floor = e.dtype.type(0), e.dtype.type(0)
        for i in range(n):
            dual = target[t, i] * weight[w, i] - b[k, i] + fixed[f, i] * e[k, i]
            norm2 += dual * e[k, i]
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                r = removed[p, g]
                full = target[t, r] * weight[w, r] + fixed[f, r] * e[k, r]
                norm2 -= (full - b[k, r]) * e[k, r]
        for i in range(n):
            floor += fixed[f, i]
        state[k, RAW_NORM2], norm2 = norm2, max(norm2, 1e-6 * floor)
        state[k, RESIDUAL2], state[k, NORM2] = residual2, norm2
        state[k, CERT] = np.sqrt(residual2 / norm2)


@compiled
def _step(count, problem, fast_weights, removed, e, b, prob, residual, diagonal, fast_row, d_dual):
    """Write ``d_dual``: the change of each dual value that solves its row's equation."""
    weight, fixed = fast_weights
    n, dtype, exact_dtype = (e.shape[1], d_dual.dtype.type, e.dtype.type)
    one, max_step, eps = dtype(1), dtype(MAX_SCORE_STEP), dtype(EPS)
    for k in range(count):
        p = problem[k]
        w, f = p % len(weight), p % len(fixed)
        for i in range(n):
            weighted_prob = prob[k, i] * weight[w, i]
            excess = weighted_prob - weighted_prob * prob[k, i] - fixed[f, i]
            d_dual[k, i] = residual[k, i] / (one + excess * diagonal[k, i])
        # The 8-norm approximates the maximum, and a sum is vectorized.
        norm8 = dtype(0)
        for i in range(n):
            d_score = d_dual[k, i] * diagonal[k, i]
            d_score = d_score * d_score + eps
            norm8 += (d_score * d_score) * (d_score * d_score)
        is_large = norm8 > dtype(LARGE_SCORE_STEP**8)
        if is_large:
            for i in range(n):
                d_dual[k, i] = 0
            for _ in range(MAX_ROW_STEPS):
                for i in range(n):
                    fast_row[i] = logistic(dtype(e[k, i]) + d_dual[k, i] * diagonal[k, i])
                for i in range(n):
                    weighted_prob = fast_row[i] * weight[w, i]
                    excess = weighted_prob - weighted_prob * fast_row[i] - fixed[f, i]
                    row_residual = dtype(b[k, i]) - weighted_prob - d_dual[k, i]
                    row_residual += fixed[f, i] * d_dual[k, i] * diagonal[k, i]
                    fast_row[i] = row_residual / (one + excess * diagonal[k, i])
                norm8 = dtype(0)
                for i in range(n):
                    d_score = fast_row[i] * diagonal[k, i]
                    damping = max_step / max(abs(d_score), max_step)
                    d_dual[k, i] += damping * fast_row[i]
                    d_score = d_score * d_score + eps
                    norm8 += (d_score * d_score) * (d_score * d_score)
                if not norm8 > dtype(LARGE_SCORE_STEP**8):
                    break
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                d_dual[k, removed[p, g]] = 0
        for i in range(n):
            b[k, i] -= exact_dtype(d_dual[k, i])


@compiled
def _add_product(count, problem, fixed, removed, d_scores, e, b):
    """Update scores and offset after a product: ``d_scores`` = Q ``d_dual``."""
    n, exact_dtype = e.shape[1], e.dtype.type
    for k in range(count):
        f = problem[k] % len(fixed)
        for i in range(n):
            e[k, i] += exact_dtype(d_scores[k, i])
        for i in range(n):
            b[k, i] += fixed[f, i] * exact_dtype(d_scores[k, i])
        for g in range(removed.shape[1]):
            if removed[problem[k], g] >= 0:
                b[k, removed[problem[k], g]] = 0


@compiled
def solve_jacobi(
    start,
    count,
    loss,
    exact,
    fast,
    removal,
    dual,
    scores,
    certificate,
    workspace,
    max_iterations,
    limits,
):
    """Iterate until each problem is certified or stalls.

    Arguments as in ``probes.solvers.compiled.newton_cg``. ``dual``, ``scores`` and
    ``certificate`` (of all problems) are updated in place; scores must match the dual values
    at the start.

    Returns:
        The unsolved problems, and the numbers of fast and exact products.
    """
    q, core = exact
    fast_q, weight, fixed = fast
    removed, fast_core = removal
    blocks, exact_blocks, state, exact_row, gathered, fast_gathered, fast_row = workspace
    residual, d_scores, prob, d_dual, diagonal, excess = blocks[:6]
    e, b, dual_block, score_block = exact_blocks
    tol, accepted_tol = limits[0], limits[1]
    fast_weights, moved = (weight, fixed), (residual, d_scores, prob, d_dual, diagonal)
    problem, unsolved = np.arange(start, start + count), np.empty(count, np.int64)
    slots, chosen = np.arange(count), np.empty(count, np.int64)
    finished, improved = np.empty(count, np.int64), np.empty(count, np.int64)
    is_exact = np.full(count, fast_q.dtype == q.dtype)
    load(count, problem, loss, removed, dual, scores, e, b, state)
    _diagonals(count, problem, fast_q, removed, fast_core, diagonal)
    state[:count, BEST], state[:count, DUE] = np.inf, 0
    n_active, n_unsolved, iteration, n_fast, n_exact = count, 0, 0, 0, 0
    while n_active > 0:
        _evaluate(
            n_active, problem, loss, fast_weights, removed, e, b, exact_row, prob, residual, state
        )
        n_near, n_finished, n_improved = 0, 0, 0
        for k in range(n_active):
            if iteration == 0:
                state[k, INITIAL] = state[k, CERT]
            if state[k, CERT] <= (tol if is_exact[k] else RESCORE_BELOW):
                chosen[n_near] = k
                n_near += 1
        write_excess(n_near, chosen, problem, fast_weights, removed, prob, excess)
        certify(
            n_near,
            chosen,
            problem,
            fast,
            removed,
            fast_core,
            e,
            residual,
            excess,
            accepted_tol,
            state,
        )
        for k in chosen[:n_near]:
            # Rounding errors of scores weigh more in the local metric where the weights
            # are far above the curvature.
            is_safe = state[k, LOCAL_CERT] <= RESCORE_BELOW * state[k, NORM2_RATIO]
            is_exact[k] |= iteration == 0 and is_safe
            is_due = not is_exact[k] and (is_safe or state[k, CERT] <= tol)
            state[k, DUE] = 1 if is_due else 0
        for k in range(n_active):
            now = state[k, CERT]
            done = is_exact[k] and now <= tol and state[k, LOCAL_CERT] <= accepted_tol
            stop = done or iteration >= max_iterations or not now < np.inf
            if iteration % 2 == 0:
                stop |= iteration >= MIN_ITERATIONS and not now < STALL_RATIO * state[k, BEST]
                state[k, BEST] = now
            if stop:
                finished[n_finished] = k
                n_finished += 1
                # If the problem diverged, the next solver starts from the original point.
                if now <= state[k, INITIAL]:
                    improved[n_improved] = k
                    n_improved += 1
                certificate[problem[k]] = state[k, LOCAL_CERT] if done else np.inf
                if not done:
                    unsolved[n_unsolved] = problem[k]
                    n_unsolved += 1
        if n_finished > 0:
            write_solution(n_improved, improved, problem, loss, removed, e, b, dual, scores, state)
            n_active = compact(
                n_finished, finished, n_active, problem, state, is_exact, moved, (e, b)
            )
            if n_active == 0:
                break
        _step(
            n_active,
            problem,
            fast_weights,
            removed,
            e,
            b,
            prob,
            residual,
            diagonal,
            fast_row,
            d_dual,
        )
        multiply_q(d_dual, n_active, fast_q, d_scores, problem, removed, fast_core, fast_gathered)
        n_fast += n_active
        _add_product(n_active, problem, loss[2], removed, d_scores, e, b)
        n_due = 0
        for k in range(n_active):
            if state[k, DUE] > 0:
                state[k, DUE] = 0
                chosen[n_due] = k
                n_due += 1
        if n_due > 0:
            # Recompute scores that fast products have updated.
            write_dual(n_due, chosen, problem, loss, removed, b, e, dual_block, slots)
            problems = problem[chosen[:n_due]]
            multiply_q(dual_block, n_due, q, score_block, problems, removed, core, gathered)
            n_exact += n_due
            replace_scores(n_due, chosen, problem, score_block, loss[2], removed, e, b)
            for o in range(n_due):
                is_exact[chosen[o]] = True
        iteration += 1
    return unsolved[:n_unsolved], n_fast, n_exact
