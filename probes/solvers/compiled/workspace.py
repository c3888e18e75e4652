"""Passes over the rows of a block, each of which is one problem, compiled by numba.

They are the expressions of ``probes.solvers.newton.newton_cg_mixed`` and
``probes.solvers.newton.conjugate_gradients`` for two classes. There a block is read
once for every operation, and each has to be sent for; here a row goes through all of
them while it is near.

Loops are short and many on purpose: a compiler proves that arrays do not overlap only
where few are written in one loop, and else computes number by number. For the same
reason numbers are rounded to the type of most products before loops that use them. A
call takes a whole block: every array that is handed over costs two locked counts, as
much as a pass over a row. Sums may be taken in any order, and products and sums fused;
nothing else is relaxed, so that infinities and NaN stay what they are.

Throughout, k is a slot of a block, p the problem in it (``place[k]``), and w, t, f the
row of an array that some or all problems share. Rows that a problem takes out have
neither weight nor curvature: what shared arrays say of them is put to 0 again. Nothing
but ``probes.solvers.compiled.newton_cg`` imports this file.
"""

import numpy as np

from probes.solvers.compiled.math import compiled, logistic

(
    NORM2,
    RESIDUAL2,
    CERTIFICATE,
    LOCAL_CERTIFICATE,
    BEST,
    QUADRATIC_FORM,
    STEP_LENGTH,
    END_SLOPE,
    OVERLAP,
    NORM2_RATIO,
    RAW_NORM2,
) = range(11)
PREVIOUS, INITIAL, CG_GOAL, CG_RATE = range(4, 8)
"""Columns of ``state``, the numbers of each slot: on the way down, and in Newton steps
in the place of some of them."""
N_STATE = 11


@compiled
def multiply_q(block, count, matrix, product, place, rows, core, few):
    """``product`` = Q ``block``, rows taken out; ``few`` has room for as many."""
    np.dot(block[:count], matrix, product[:count])
    n, width = block.shape[1], rows.shape[1]
    for k in range(count):
        p = place[k]
        for g in range(width):
            few[g] = product[k, max(rows[p, g], 0)]
        for g in range(width):
            r, pushed = max(rows[p, g], 0), few.dtype.type(0)
            for h in range(width):
                pushed += few[h] * core[p, h, g]
            for i in range(n):
                product[k, i] += pushed * matrix[r, i]


@compiled
def measure_residuals(count, residual, pulled, image, state):
    """Squared lengths of residuals, and what of them the last direction turns."""
    kind, n = residual.dtype.type, residual.shape[1]
    for k in range(count):
        square, turned = kind(0), kind(0)
        for i in range(n):
            square += residual[k, i] * pulled[k, i]
        for i in range(n):
            turned += image[k, i] * pulled[k, i]
        state[k, RESIDUAL2], state[k, OVERLAP] = square, turned


@compiled
def load(count, place, loss, rows, dual, scores, own, rest, state):
    """Scores, rest b = s t - c + w E and size of problems, from where they start."""
    weight, target, fixed = loss
    n = scores.shape[1]
    for k in range(count):
        p = place[k]
        w, t, f = p % len(weight), p % len(target), p % len(fixed)
        for i in range(n):
            own[k, i] = scores[p, i]
        for i in range(n):
            rest[k, i] = target[t, i] * weight[w, i] + fixed[f, i] * own[k, i]
        for i in range(n):
            rest[k, i] -= dual[p, i]
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                rest[k, rows[p, g]] = 0
        size, floor = own.dtype.type(0), own.dtype.type(0)
        for i in range(n):
            size += dual[p, i] * own[k, i]
        for i in range(n):
            floor += fixed[f, i]
        # Scores of a thousandth count as nothing: optima at zero have no scale.
        state[k, RAW_NORM2], state[k, NORM2] = size, max(size, 1e-6 * floor)


@compiled
def write_dual(count, slots, place, loss, rows, rest, own, out, to):
    """Dual values c = s t - b + w E of ``slots``, to rows ``to`` of ``out``."""
    weight, target, fixed = loss
    n = own.shape[1]
    for o in range(count):
        k, q = slots[o], to[o]
        p = place[k]
        w, t, f = p % len(weight), p % len(target), p % len(fixed)
        for i in range(n):
            out[q, i] = target[t, i] * weight[w, i] - rest[k, i]
        for i in range(n):
            out[q, i] += fixed[f, i] * own[k, i]
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                out[q, rows[p, g]] = 0


@compiled
def residuals(count, slots, place, weight, rows, own, rest, row, chance, residual):
    """Probabilities of ``slots``, and ``rest`` less their product with the weights."""
    kind, n = residual.dtype.type, own.shape[1]
    for o in range(count):
        k = slots[o]
        p = place[k]
        w = p % len(weight)
        for i in range(n):
            row[i] = logistic(own[k, i])
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                row[rows[p, g]] = 0
        for i in range(n):
            chance[k, i] = kind(row[i])
        for i in range(n):
            residual[k, i] = kind(rest[k, i] - row[i] * weight[w, i])


@compiled
def replace_scores(count, slots, place, fresh, fixed, rows, own, rest):
    """Scores of ``slots`` from the rows of ``fresh``, and a rest that keeps duals."""
    n = own.shape[1]
    for o in range(count):
        k = slots[o]
        p = place[k]
        f = p % len(fixed)
        for i in range(n):
            rest[k, i] += fixed[f, i] * (fresh[o, i] - own[k, i])
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                rest[k, rows[p, g]] = 0
        for i in range(n):
            own[k, i] = fresh[o, i]


@compiled
def nonlinear_cg_step(
    count,
    first,
    place,
    wide,
    light,
    rows,
    residual,
    pulled,
    row,
    blocks,
    own,
    rest,
    state,
):
    """A step of nonlinear conjugate gradients: curvature, length and slope at its end.

    A direction moves scores by ``ahead`` and alpha by ``inside``.
    """
    chance, ahead, inside, image = blocks
    weight, fixed = light
    n, kind, exact = own.shape[1], ahead.dtype.type, own.dtype.type
    for k in range(count):
        p = place[k]
        w, f = p % len(weight), p % len(fixed)
        keep, slope = 0.0, state[k, RESIDUAL2]
        if not first and state[k, STEP_LENGTH] > 0:
            # A step that was none leaves no direction to go on from.
            keep = -min(state[k, OVERLAP], 0.0) / state[k, QUADRATIC_FORM]
            slope += keep * state[k, END_SLOPE]
        part = kind(keep)
        if first:
            for i in range(n):
                inside[k, i] = residual[k, i] - fixed[f, i] * pulled[k, i]
            for i in range(n):
                ahead[k, i] = pulled[k, i]
        else:
            for i in range(n):
                fresh = residual[k, i] - fixed[f, i] * pulled[k, i]
                inside[k, i] = fresh + part * inside[k, i]
            for i in range(n):
                ahead[k, i] = pulled[k, i] + part * ahead[k, i]
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                inside[k, rows[p, g]] = 0
        bend = kind(0)
        for i in range(n):
            mass = chance[k, i] * weight[w, i]
            value = inside[k, i] + (mass - mass * chance[k, i]) * ahead[k, i]
            image[k, i] = value
            bend += ahead[k, i] * value
        length, last = 0.0, kind(0)
        if bend > 0 and slope > 0:
            length = slope / bend
        change = length
        for _ in range(4):
            far = exact(change)
            for i in range(n):
                value = own[k, i] + far * ahead[k, i]
                own[k, i] = value
                row[i] = logistic(value)
            for g in range(rows.shape[1]):
                if rows[p, g] >= 0:
                    row[rows[p, g]] = 0
            for i in range(n):
                rest[k, i] -= far * inside[k, i]
            for i in range(n):
                residual[k, i] = kind(rest[k, i] - row[i] * wide[w, i])
            last = kind(0)
            for i in range(n):
                chance[k, i] = kind(row[i])
                last += residual[k, i] * ahead[k, i]
            if not (last < -0.5 * slope and length > 0):
                break
            # The slope turned by over half: back to where a line has its root.
            change = length * (slope / (slope - last) - 1)
            length += change
        state[k, QUADRATIC_FORM], state[k, STEP_LENGTH], state[k, END_SLOPE] = (
            bend,
            length,
            last,
        )


@compiled
def write_solution(count, slots, place, loss, rows, own, rest, dual, scores, state):
    """Write scores and dual values of ``slots``, and measure them anew."""
    weight, target, fixed = loss
    n = own.shape[1]
    for o in range(count):
        k = slots[o]
        p = place[k]
        w, t, f = p % len(weight), p % len(target), p % len(fixed)
        for i in range(n):
            scores[p, i] = own[k, i]
        for i in range(n):
            dual[p, i] = target[t, i] * weight[w, i] - rest[k, i]
        for i in range(n):
            dual[p, i] += fixed[f, i] * own[k, i]
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                dual[p, rows[p, g]] = 0
        size, floor = own.dtype.type(0), own.dtype.type(0)
        for i in range(n):
            size += dual[p, i] * own[k, i]
        for i in range(n):
            floor += fixed[f, i]
        state[k, RAW_NORM2], state[k, NORM2] = size, max(size, 1e-6 * floor)


@compiled
def compact(count, ends, live, place, state, exactly, blocks, wide):
    """The last of ``live`` slots go to ``ends`` (rising), whose problems are done."""
    for end in range(count - 1, -1, -1):
        k, other = ends[end], live - 1
        live -= 1
        place[k], exactly[k] = place[other], exactly[other]
        for i in range(state.shape[1]):
            state[k, i] = state[other, i]
        for block in blocks:
            for i in range(block.shape[1]):
                block[k, i] = block[other, i]
        for block in wide:
            for i in range(block.shape[1]):
                block[k, i] = block[other, i]
    return live


@compiled
def swap_slots(k, other, place, state, blocks, wide):
    """Slots change places."""
    place[k], place[other] = place[other], place[k]
    for i in range(state.shape[1]):
        state[k, i], state[other, i] = state[other, i], state[k, i]
    for block in blocks:
        for i in range(block.shape[1]):
            kept = block[k, i]
            block[k, i] = block[other, i]
            block[other, i] = kept
    for block in wide:
        for i in range(block.shape[1]):
            kept = block[k, i]
            block[k, i] = block[other, i]
            block[other, i] = kept


@compiled
def write_residual_and_excess(
    count, place, weight, fixed, rows, own, rest, row, residual, bend
):
    """Residual and curvature beyond ``fixed``, in the type of ``fixed``."""
    kind, n = residual.dtype.type, own.shape[1]
    for k in range(count):
        p = place[k]
        w, f = p % len(weight), p % len(fixed)
        for i in range(n):
            row[i] = logistic(own[k, i])
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                row[rows[p, g]] = 0
        for i in range(n):
            residual[k, i] = kind(rest[k, i] - row[i] * weight[w, i])
        for i in range(n):
            mass = row[i] * weight[w, i]
            bend[k, i] = kind(mass - mass * row[i]) - fixed[f, i]
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                bend[k, rows[p, g]] = 0


@compiled
def cg_step(count, first, bend, pulled, residual, search, ahead, lift, state):
    """A step of conjugate gradients up to its product.

    See ``probes.solvers.newton.conjugate_gradients``.
    """
    kind, n = residual.dtype.type, residual.shape[1]
    for k in range(count):
        if not first:
            rate = kind(state[k, CG_RATE])
            for i in range(n):
                search[k, i] = residual[k, i] + rate * search[k, i]
            for i in range(n):
                ahead[k, i] = pulled[k, i] + rate * ahead[k, i]
        stiff, length = kind(0), kind(0)
        for i in range(n):
            stiff += ahead[k, i] * (search[k, i] + bend[k, i] * ahead[k, i])
        if stiff > 0:
            length = kind(state[k, RESIDUAL2]) / stiff
        for i in range(n):
            lift[k, i] += length * ahead[k, i]
        for i in range(n):
            residual[k, i] -= length * (search[k, i] + bend[k, i] * ahead[k, i])


@compiled
def take_newton_step(count, place, start, residual, bend, lift, fixed, rows, rest, own):
    """Take the step that conjugate gradients solved for, less what ``fixed`` held."""
    n = start.shape[1]
    for k in range(count):
        p = place[k]
        f = p % len(fixed)
        for i in range(n):
            step = start[k, i] - residual[k, i] - bend[k, i] * lift[k, i]
            rest[k, i] -= step - fixed[f, i] * lift[k, i]
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                rest[k, rows[p, g]] = 0
        for i in range(n):
            own[k, i] += lift[k, i]
