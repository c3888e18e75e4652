"""Elementwise passes of the compiled solvers for two classes.

The formulas are those of ``probes.solvers.newton.newton_cg_mixed`` and
``probes.solvers.newton.conjugate_gradients``. Torch reads a whole block for each
operation; here one problem's row goes through all operations while it is in the cache.

The loops are short on purpose. The compiler vectorizes a loop only if it can prove that
the arrays do not overlap, which works for few written arrays a loop. For the same reason,
values are converted to the type of most products before the loops that use them. A call
takes a whole block, because passing one array costs two atomic reference counts, as much
as a pass over a row. Sums may be reordered and multiply-adds fused; no other floating-point
rule is relaxed, so infinities and NaN propagate.

Names: k is a slot of a block, p = ``problem[k]`` the problem in it, and w, t, f the rows of
arrays that some or all problems share. ``e`` and ``b`` are the scores E and the offset b of the
slots. Rows that a problem leaves out (``removed``) have neither weight nor curvature; each pass
sets them to 0 again. Only ``probes.solvers.compiled.newton_cg`` and the modules it calls import
this file.
"""

import numpy as np

from probes.solvers.compiled.math import compiled, logistic

# Columns of ``state``, one row a slot.
N_STATE = 11
NORM2 = 0  # squared norm of the parameters in the factor's metric, floored
RESIDUAL2 = 1  # r'Qr, or a bound of it
CERT = 2  # certificate in the factor's metric
LOCAL_CERT = 3  # certificate in the metric of the local Hessian
BEST = 4  # of the last look, to detect stalling
QUADRATIC_FORM, STEP_LENGTH, END_SLOPE = 5, 6, 7  # of the last step of nonlinear CG
OVERLAP = 8  # Q r times the last ``hess_d``, for the next direction
NORM2_RATIO = 9  # local squared norm over NORM2
RAW_NORM2 = 10  # NORM2 before the floor
PREVIOUS, INITIAL, CG_GOAL, CG_RATE = (4, 5, 6, 7)  # Newton-CG: last certificate, CG's state
DUE = 7  # Jacobi: whether to recompute scores after this iteration


@compiled
def multiply_q(block, count, matrix, product, problem, removed, core, gathered):
    """``product`` = Q ``block`` with rows left out; ``gathered`` is scratch of their number."""
    np.dot(block[:count], matrix, product[:count])
    n, width = block.shape[1], removed.shape[1]
    for k in range(count):
        p = problem[k]
        for g in range(width):
            gathered[g] = product[k, max(removed[p, g], 0)]
        for g in range(width):
            r, coefficient = max(removed[p, g], 0), gathered.dtype.type(0)
            for h in range(width):
                coefficient += gathered[h] * core[p, h, g]
            for i in range(n):
                product[k, i] += coefficient * matrix[r, i]


@compiled
def measure_residuals(count, residual, q_residual, hess_d, state):
    """Squared residual norms r'Qr, and the products of Q r with the last ``hess_d``."""
    dtype, n = residual.dtype.type, residual.shape[1]
    for k in range(count):
        residual2, overlap = dtype(0), dtype(0)
        for i in range(n):
            residual2 += residual[k, i] * q_residual[k, i]
        for i in range(n):
            overlap += hess_d[k, i] * q_residual[k, i]
        state[k, RESIDUAL2], state[k, OVERLAP] = residual2, overlap


@compiled
def load(count, problem, loss, removed, dual, scores, e, b, state):
    """Read starting scores; compute the offset b = s t - c + w E and the squared norms."""
    weight, target, fixed = loss
    n = scores.shape[1]
    for k in range(count):
        p = problem[k]
        w, t, f = p % len(weight), p % len(target), p % len(fixed)
        for i in range(n):
            e[k, i] = scores[p, i]
        for i in range(n):
            b[k, i] = target[t, i] * weight[w, i] + fixed[f, i] * e[k, i]
        for i in range(n):
            b[k, i] -= dual[p, i]
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                b[k, removed[p, g]] = 0
        norm2, floor = e.dtype.type(0), e.dtype.type(0)
        for i in range(n):
            norm2 += dual[p, i] * e[k, i]
        for i in range(n):
            floor += fixed[f, i]
        # Scores of a thousandth count as nothing: optima at zero have no scale.
        state[k, RAW_NORM2], state[k, NORM2] = norm2, max(norm2, 1e-6 * floor)


@compiled
def write_dual(count, slots, problem, loss, removed, b, e, block, block_rows):
    """Write the dual values c = s t - b + w E of ``slots`` to ``block_rows`` of ``block``."""
    weight, target, fixed = loss
    n = e.shape[1]
    for o in range(count):
        k, q = slots[o], block_rows[o]
        p = problem[k]
        w, t, f = p % len(weight), p % len(target), p % len(fixed)
        for i in range(n):
            block[q, i] = target[t, i] * weight[w, i] - b[k, i]
        for i in range(n):
            block[q, i] += fixed[f, i] * e[k, i]
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                block[q, removed[p, g]] = 0


@compiled
def residuals(count, slots, problem, weight, removed, e, b, exact_row, prob, residual):
    """Probabilities p of ``slots`` and residuals b - s p."""
    dtype, n = residual.dtype.type, e.shape[1]
    for o in range(count):
        k = slots[o]
        p = problem[k]
        w = p % len(weight)
        for i in range(n):
            exact_row[i] = logistic(e[k, i])
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                exact_row[removed[p, g]] = 0
        for i in range(n):
            prob[k, i] = dtype(exact_row[i])
        for i in range(n):
            residual[k, i] = dtype(b[k, i] - exact_row[i] * weight[w, i])


@compiled
def replace_scores(count, slots, problem, new_scores, fixed, removed, e, b):
    """Replace the scores of ``slots``; adjust the offset so that the dual values stay."""
    n = e.shape[1]
    for o in range(count):
        k = slots[o]
        p = problem[k]
        f = p % len(fixed)
        for i in range(n):
            b[k, i] += fixed[f, i] * (new_scores[o, i] - e[k, i])
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                b[k, removed[p, g]] = 0
        for i in range(n):
            e[k, i] = new_scores[o, i]


@compiled
def nonlinear_cg_step(
    count,
    first,
    problem,
    exact_weight,
    fast_weights,
    removed,
    residual,
    q_residual,
    exact_row,
    blocks,
    e,
    b,
    state,
):
    """One step of nonlinear conjugate gradients: curvature, step length, slope at its end.

    A direction changes the scores by ``d_scores`` and alpha by ``d_alpha``.
    """
    prob, d_scores, d_alpha, hess_d = blocks
    weight, fixed = fast_weights
    n, dtype, exact_dtype = (e.shape[1], d_scores.dtype.type, e.dtype.type)
    for k in range(count):
        p = problem[k]
        w, f = p % len(weight), p % len(fixed)
        beta, slope = 0.0, state[k, RESIDUAL2]
        if not first and state[k, STEP_LENGTH] > 0:
            # After a step of length 0 restart from the residual.
            beta = -min(state[k, OVERLAP], 0.0) / state[k, QUADRATIC_FORM]
            slope += beta * state[k, END_SLOPE]
        fast_beta = dtype(beta)
        if first:
            for i in range(n):
                d_alpha[k, i] = residual[k, i] - fixed[f, i] * q_residual[k, i]
            for i in range(n):
                d_scores[k, i] = q_residual[k, i]
        else:
            for i in range(n):
                new_part = residual[k, i] - fixed[f, i] * q_residual[k, i]
                d_alpha[k, i] = new_part + fast_beta * d_alpha[k, i]
            for i in range(n):
                d_scores[k, i] = q_residual[k, i] + fast_beta * d_scores[k, i]
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                d_alpha[k, removed[p, g]] = 0
        quadratic_form = dtype(0)
        for i in range(n):
            weighted_prob = prob[k, i] * weight[w, i]
            value = d_alpha[k, i] + (weighted_prob - weighted_prob * prob[k, i]) * d_scores[k, i]
            hess_d[k, i] = value
            quadratic_form += d_scores[k, i] * value
        step, end_slope = 0.0, dtype(0)
        if quadratic_form > 0 and slope > 0:
            step = slope / quadratic_form
        extra = step
        for _ in range(4):
            exact_extra = exact_dtype(extra)
            for i in range(n):
                value = e[k, i] + exact_extra * d_scores[k, i]
                e[k, i] = value
                exact_row[i] = logistic(value)
            for g in range(removed.shape[1]):
                if removed[p, g] >= 0:
                    exact_row[removed[p, g]] = 0
            for i in range(n):
                b[k, i] -= exact_extra * d_alpha[k, i]
            for i in range(n):
                residual[k, i] = dtype(b[k, i] - exact_row[i] * exact_weight[w, i])
            end_slope = dtype(0)
            for i in range(n):
                prob[k, i] = dtype(exact_row[i])
                end_slope += residual[k, i] * d_scores[k, i]
            if not (end_slope < -0.5 * slope and step > 0):
                break
            # Overshoot: go back to the root of the secant.
            extra = step * (slope / (slope - end_slope) - 1)
            step += extra
        state[k, QUADRATIC_FORM], state[k, STEP_LENGTH], state[k, END_SLOPE] = (
            quadratic_form,
            step,
            end_slope,
        )


@compiled
def write_solution(count, slots, problem, loss, removed, e, b, dual, scores, state):
    """Write scores and dual values of ``slots``, and recompute their squared norms."""
    weight, target, fixed = loss
    n = e.shape[1]
    for o in range(count):
        k = slots[o]
        p = problem[k]
        w, t, f = p % len(weight), p % len(target), p % len(fixed)
        for i in range(n):
            scores[p, i] = e[k, i]
        for i in range(n):
            dual[p, i] = target[t, i] * weight[w, i] - b[k, i]
        for i in range(n):
            dual[p, i] += fixed[f, i] * e[k, i]
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                dual[p, removed[p, g]] = 0
        norm2, floor = e.dtype.type(0), e.dtype.type(0)
        for i in range(n):
            norm2 += dual[p, i] * e[k, i]
        for i in range(n):
            floor += fixed[f, i]
        state[k, RAW_NORM2], state[k, NORM2] = norm2, max(norm2, 1e-6 * floor)


@compiled
def compact(count, finished, n_active, problem, state, is_exact, blocks, exact_blocks):
    """Overwrite each ``finished`` slot (ascending) by the last active one.

    Returns:
        The number of active slots left.
    """
    for i_finished in range(count - 1, -1, -1):
        k, last = finished[i_finished], n_active - 1
        n_active -= 1
        problem[k], is_exact[k] = problem[last], is_exact[last]
        for i in range(state.shape[1]):
            state[k, i] = state[last, i]
        for block in blocks:
            for i in range(block.shape[1]):
                block[k, i] = block[last, i]
        for block in exact_blocks:
            for i in range(block.shape[1]):
                block[k, i] = block[last, i]
    return n_active


@compiled
def swap_slots(k, other, problem, state, blocks, exact_blocks):
    """Swap two slots."""
    problem[k], problem[other] = problem[other], problem[k]
    for i in range(state.shape[1]):
        state[k, i], state[other, i] = state[other, i], state[k, i]
    for block in blocks:
        for i in range(block.shape[1]):
            value = block[k, i]
            block[k, i] = block[other, i]
            block[other, i] = value
    for block in exact_blocks:
        for i in range(block.shape[1]):
            value = block[k, i]
            block[k, i] = block[other, i]
            block[other, i] = value


@compiled
def write_residual_and_excess(
    count, problem, weight, fixed, removed, e, b, exact_row, residual, excess
):
    """Residual, and curvature minus ``fixed``, in the type of ``fixed``."""
    dtype, n = residual.dtype.type, e.shape[1]
    for k in range(count):
        p = problem[k]
        w, f = p % len(weight), p % len(fixed)
        for i in range(n):
            exact_row[i] = logistic(e[k, i])
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                exact_row[removed[p, g]] = 0
        for i in range(n):
            residual[k, i] = dtype(b[k, i] - exact_row[i] * weight[w, i])
        for i in range(n):
            weighted_prob = exact_row[i] * weight[w, i]
            excess[k, i] = dtype(weighted_prob - weighted_prob * exact_row[i]) - fixed[f, i]
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                excess[k, removed[p, g]] = 0


@compiled
def cg_step(count, first, excess, q_residual, residual, direction, d_scores, score_step, state):
    """One step of linear conjugate gradients up to its product with Q.

    See ``probes.solvers.newton.conjugate_gradients``.
    """
    dtype, n = residual.dtype.type, residual.shape[1]
    for k in range(count):
        if not first:
            rate = dtype(state[k, CG_RATE])
            for i in range(n):
                direction[k, i] = residual[k, i] + rate * direction[k, i]
            for i in range(n):
                d_scores[k, i] = q_residual[k, i] + rate * d_scores[k, i]
        quadratic_form, step = dtype(0), dtype(0)
        for i in range(n):
            quadratic_form += d_scores[k, i] * (direction[k, i] + excess[k, i] * d_scores[k, i])
        if quadratic_form > 0:
            step = dtype(state[k, RESIDUAL2]) / quadratic_form
        for i in range(n):
            score_step[k, i] += step * d_scores[k, i]
        for i in range(n):
            residual[k, i] -= step * (direction[k, i] + excess[k, i] * d_scores[k, i])


@compiled
def take_newton_step(
    count, problem, newton_residual, residual, excess, score_step, fixed, removed, b, e
):
    """Apply the step that conjugate gradients found."""
    n = newton_residual.shape[1]
    for k in range(count):
        p = problem[k]
        f = p % len(fixed)
        for i in range(n):
            step = newton_residual[k, i] - residual[k, i] - excess[k, i] * score_step[k, i]
            b[k, i] -= step - fixed[f, i] * score_step[k, i]
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                b[k, removed[p, g]] = 0
        for i in range(n):
            e[k, i] += score_step[k, i]
