"""Nonlinear Jacobi iteration for several classes, compiled by numba.

The iteration of ``probes.solvers.compiled.jacobi``, with one equation system a row. The classes
of a row are coupled only by its softmax: the curvature S = s (diag(p) - p p') is diagonal
minus rank one, and so is the system (1 - (w - S) q) d = r for the change d of the row's dual
values, where q holds the diagonals of the classes' factors (Sherman-Morrison).

S x = r has the solution x = r / (s p) if r sums to 0 over classes. In the metric of the local
Hessian the squared gradient is therefore at most the sum of r^2 / (s p): a certificate without
a linear system.

The softmax does not depend on the mean over classes. It is subtracted from the scores and
from alpha = c - w E at the end, which keeps E = Q c. Only
``probes.solvers.compiled.dispatch`` imports this file.
"""

import numpy as np

from probes.solvers.compiled.jacobi import (
    MAX_SCORE_STEP,
    MIN_ITERATIONS,
    RESCORE_BELOW,
    STALL_RATIO,
)
from probes.solvers.compiled.math import compiled, compiled_entry, exponential, source_hash


@compiled
def _products(count, problem, block, matrices, product, removed, core, gathered):
    """(class, slot, n) ``product`` = Q ``block`` class by class, with rows left out."""
    classes, _, n = block.shape
    width = removed.shape[1]
    for c in range(classes):
        m = c % len(matrices)
        np.dot(block[c, :count], matrices[m], product[c, :count])
        for k in range(count):
            p = problem[k]
            for g in range(width):
                gathered[g] = product[c, k, max(removed[p, g], 0)]
            for g in range(width):
                r, coefficient = max(removed[p, g], 0), gathered.dtype.type(0)
                for h in range(width):
                    coefficient += gathered[h] * core[p, m, h, g]
                for i in range(n):
                    product[c, k, i] += coefficient * matrices[m, r, i]


@compiled
def _diagonals(count, matrices, removed, core, diagonal):
    """(problem, m, n) diagonals of the factors, with rows left out."""
    n, width = matrices.shape[1], removed.shape[1]
    for p in range(count):
        for m in range(len(matrices)):
            for i in range(n):
                diagonal[p, m, i] = matrices[m, i, i]
            for g in range(width):
                for h in range(width):
                    r, q = max(removed[p, g], 0), max(removed[p, h], 0)
                    across = core[p, m, g, h]
                    for i in range(n):
                        both = matrices[m, r, i] * matrices[m, q, i]
                        diagonal[p, m, i] += across * both


@compiled
def _softmax(scores, prob, top, total):
    """(class, n) probabilities of one problem."""
    classes, n = scores.shape
    for i in range(n):
        top[i] = scores[0, i]
    for c in range(1, classes):
        for i in range(n):
            top[i] = max(top[i], scores[c, i])
    for i in range(n):
        total[i] = 0
    for c in range(classes):
        for i in range(n):
            part = exponential(scores[c, i] - top[i])
            prob[c, i] = part
            total[i] += part
    for i in range(n):
        total[i] = 1 / total[i]
    for c in range(classes):
        for i in range(n):
            prob[c, i] *= total[i]


@compiled
def _evaluate(scores, dual, target, weight, fixed, fast_fixed, prob, residual, top, total):
    """Residual of one problem and its two squared bounds; writes ``prob`` too."""
    classes, n = scores.shape
    dtype = residual.dtype.type
    _softmax(scores, prob, top, total)
    for i in range(n):
        total[i] = 0
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            neg_gradient = (target[c, i] - prob[c, i]) * weight[i]
            left = neg_gradient - dual[c, i] + fixed[m, i] * scores[c, i]
            residual[c, i] = dtype(left)
            total[i] += left
    for i in range(n):
        total[i] /= classes
    residual2, local_residual2 = dtype(0), dtype(0)
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            left = residual[c, i] - dtype(total[i])
            residual[c, i] = left
            residual2 += left * left / max(fast_fixed[m, i], dtype(1e-30))
        for i in range(n):
            weighted_prob = dtype(prob[c, i] * weight[i])
            local_residual2 += residual[c, i] * residual[c, i] / max(weighted_prob, dtype(1e-30))
    return residual2, local_residual2


@compiled
def _class_means(scores, dual, fixed, mean, alpha):
    """(n,) means over classes of one problem's scores and of its alpha."""
    classes, n = scores.shape
    for i in range(n):
        mean[i], alpha[i] = 0, 0
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            mean[i] += scores[c, i]
        for i in range(n):
            alpha[i] += dual[c, i] - fixed[m, i] * scores[c, i]
    for i in range(n):
        mean[i] /= classes
    for i in range(n):
        alpha[i] /= classes


@compiled
def _squared_norms(scores, dual, weight, fixed, prob, mean, alpha):
    """Squared norms of one problem's parameters, class means subtracted.

    In the factor's metric and in that of the local Hessian.
    """
    classes, n = scores.shape
    _class_means(scores, dual, fixed, mean, alpha)
    norm2, local_norm2, floor, curvature_sum = 0.0, 0.0, 0.0, 0.0
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            centered_alpha = dual[c, i] - fixed[m, i] * scores[c, i] - alpha[i]
            score = scores[c, i] - mean[i]
            norm2 += (centered_alpha + fixed[m, i] * score) * score
            local_norm2 += (centered_alpha + weight[i] * prob[c, i] * score) * score
        for i in range(n):
            floor += fixed[m, i]
            curvature_sum += weight[i] * prob[c, i] * (1 - prob[c, i])
    for i in range(n):
        alpha[i] = 0
    for c in range(classes):
        for i in range(n):
            alpha[i] += prob[c, i] * (scores[c, i] - mean[i])
    for i in range(n):
        local_norm2 -= weight[i] * alpha[i] * alpha[i]
    # Floor the norm: at an optimum of zero the relative certificate is undefined.
    return max(norm2, 1e-6 * floor / classes), max(local_norm2, 1e-6 * curvature_sum)


@compiled
def _step(weight, fixed, diagonal, prob, residual, d_dual, slot, workspace):
    """Write the change of one problem's dual values to ``d_dual[:, slot]``."""
    classes, n = residual.shape
    dtype = residual.dtype.type
    shift, overlap, damping, solved_prob = workspace
    for i in range(n):
        shift[i], overlap[i], damping[i] = 0, 0, 0
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            p = dtype(prob[c, i])
            weighted_prob = p * weight[i]
            q_ii = diagonal[m, i]
            inverse = dtype(1) / (dtype(1) + (weighted_prob - fixed[m, i]) * q_ii)
            solved_residual = residual[c, i] * inverse
            residual[c, i] = solved_residual
            solved_prob[c, i] = p * inverse
            shift[i] += weighted_prob * q_ii * solved_residual
            overlap[i] += weighted_prob * q_ii * solved_prob[c, i]
    for i in range(n):
        shift[i] = shift[i] / (dtype(1) - overlap[i]) * weight[i]
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            change = residual[c, i] + solved_prob[c, i] * shift[i]
            d_dual[c, slot, i] = change
            damping[i] = max(damping[i], abs(change * diagonal[m, i]))
    for i in range(n):
        damping[i] = dtype(MAX_SCORE_STEP) / max(damping[i], dtype(MAX_SCORE_STEP))
    for c in range(classes):
        for i in range(n):
            d_dual[c, slot, i] *= damping[i]


@compiled
def _center(scores, dual, fixed, mean, alpha):
    """Subtract class means from the scores and alpha of one problem, in place."""
    classes, n = scores.shape
    _class_means(scores, dual, fixed, mean, alpha)
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            dual[c, i] -= alpha[i] + fixed[m, i] * mean[i]
        for i in range(n):
            scores[c, i] -= mean[i]


def _solve_jacobi(
    loss, exact, fast, removed, cores, dual, scores, certificate, max_iterations, tol, accepted_tol
):
    """Iterate in place until each problem is certified or stalls.

    Args:
        loss: (1 or problem, class, n) targets, (1 or problem, n) weights and (1 or
            problem, m, n) weights of the factors, 0 on rows left out; float64.
        exact: (m, n, n) Q, float64.
        fast: Q and the weights in the type of most products.
        removed: (problem, g) rows left out, -1 where there is none.
        cores: (problem, m, g, g) their core, in both types.
        dual: (problem, class, n) starting values, updated.
        scores: (problem, class, n) matching scores, updated.
        certificate: (problem,) output, infinite for unsolved problems.
        max_iterations: Most iterations.
        tol: Certificate to reach in the factor's metric.
        accepted_tol: Certificate to reach in the metric of the local Hessian.

    Returns:
        The numbers of fast and exact products.
    """
    target, weight, fixed = loss
    fast_q, fast_weight, fast_fixed = fast
    core, fast_core = cores
    problems, classes, n = scores.shape
    fast_dtype, exact_dtype = fast_q.dtype, scores.dtype
    prob, solved_prob = (np.empty((classes, n), exact_dtype), np.empty((classes, n), fast_dtype))
    residual = np.empty((classes, n), fast_dtype)
    d_dual = np.empty((classes, problems, n), fast_dtype)
    d_scores = np.empty((classes, problems, n), fast_dtype)
    # Scores are recomputed for up to 8 problems at a time.
    dual_block = np.empty((classes, 8, n), exact_dtype)
    score_block = np.empty((classes, 8, n), exact_dtype)
    diagonal = np.empty((problems, len(fast_q), n), fast_dtype)
    _diagonals(problems, fast_q, removed, fast_core, diagonal)
    top, total = np.empty(n, exact_dtype), np.empty(n, exact_dtype)
    workspace = (
        np.empty(n, fast_dtype),
        np.empty(n, fast_dtype),
        np.empty(n, fast_dtype),
        solved_prob,
    )
    width = removed.shape[1]
    gathered, fast_gathered = np.empty(width, exact_dtype), np.empty(width, fast_dtype)
    problem, n_active, n_fast, n_exact = np.arange(problems), problems, 0, 0
    norm2, local_norm2 = np.empty(problems), np.empty(problems)
    best = np.full(problems, np.inf)
    is_exact, due = np.zeros(problems, np.bool_), np.empty(problems, np.int64)
    iteration = 0
    while n_active > 0:
        n_kept, n_due = 0, 0
        for k in range(n_active):
            p = problem[k]
            t, w, f = p % len(target), p % len(weight), p % len(fixed)
            residual2, local_residual2 = _evaluate(
                scores[p],
                dual[p],
                target[t],
                weight[w],
                fixed[f],
                fast_fixed[f],
                prob,
                residual,
                top,
                total,
            )
            if iteration <= 1 or residual2 <= tol**2 * norm2[p]:
                norm2[p], local_norm2[p] = _squared_norms(
                    scores[p], dual[p], weight[w], fixed[f], prob, top, total
                )
            now, local = (np.sqrt(residual2 / norm2[p]), np.sqrt(local_residual2 / local_norm2[p]))
            # See ``probes.solvers.compiled.jacobi``.
            is_safe = max(now, local) <= RESCORE_BELOW * min(local_norm2[p] / norm2[p], 1.0)
            if iteration == 0:
                is_exact[p] = fast_dtype == exact_dtype or is_safe
            done = is_exact[p] and now <= tol and local <= accepted_tol
            stop = done or iteration >= max_iterations or not now < np.inf
            if iteration % 2 == 0:
                stop |= iteration >= MIN_ITERATIONS and not now < STALL_RATIO * best[p]
                best[p] = now
            if stop:
                certificate[p] = max(now, local) if done else np.inf
                _center(scores[p], dual[p], fixed[f], top, total)
                continue
            if not is_exact[p] and (is_safe or now <= tol):
                due[n_due] = p
                n_due += 1
            _step(
                fast_weight[w],
                fast_fixed[f],
                diagonal[p],
                prob,
                residual,
                d_dual,
                n_kept,
                workspace,
            )
            problem[n_kept] = p
            n_kept += 1
        n_active = n_kept
        _products(n_active, problem, d_dual, fast_q, d_scores, removed, fast_core, fast_gathered)
        n_fast += n_active
        for k in range(n_active):
            p = problem[k]
            for c in range(classes):
                for i in range(n):
                    dual[p, c, i] += d_dual[c, k, i]
                for i in range(n):
                    scores[p, c, i] += d_scores[c, k, i]
        # Recompute scores that fast products have updated.
        for begin in range(0, n_due, 8):
            recomputed = due[begin : min(begin + 8, n_due)]
            for o in range(len(recomputed)):
                for c in range(classes):
                    for i in range(n):
                        dual_block[c, o, i] = dual[recomputed[o], c, i]
            _products(
                len(recomputed), recomputed, dual_block, exact, score_block, removed, core, gathered
            )
            n_exact += len(recomputed)
            for o in range(len(recomputed)):
                is_exact[recomputed[o]] = True
                for c in range(classes):
                    for i in range(n):
                        scores[recomputed[o], c, i] = score_block[c, o, i]
        iteration += 1
    return n_fast * classes, n_exact * classes


_run = compiled(_solve_jacobi)


def _compile():
    """Compile the solver; its copy on disk is valid for the sources of this folder only."""
    sources = source_hash()

    def solve_jacobi(
        loss,
        exact,
        fast,
        removed,
        cores,
        dual,
        scores,
        certificate,
        max_iterations,
        tol,
        accepted_tol,
    ):
        _ = sources  # part of the cache key: numba checks the date of this file only
        return _run(
            loss,
            exact,
            fast,
            removed,
            cores,
            dual,
            scores,
            certificate,
            max_iterations,
            tol,
            accepted_tol,
        )

    return compiled_entry(solve_jacobi)


solve_jacobi = _compile()
