"""Each row's own equation solved with the others held: two classes, compiled.

With c the dual values, E = Q c the scores and q the diagonal of Q, a row's score is
E_i = q_i c_i + F_i, where F_i is what the other rows make of it, and at the optimum
c_i = a_i(E_i) + w_i E_i with a the pull of the loss. With F held that is one increasing
equation in one unknown for each row, the nonlinear Jacobi iteration. Where features are
many, a row's leverage w q is most of its own and little is left between rows: a turn
then divides the error by three to five, for one product with Q, where directions that
are conjugate need three times as many. Rows that are nearly alike slow it down, and
what no longer comes down is left to ``probes.solvers.compiled.newton_cg``'s other ways.

No product is needed to see how near it is: Q is at most the inverse of the weights that
are in it, so that with r = a - c + w E the squared gradient r'Qr is at most the sum of
r^2 / w, and in the metric of the own Hessian at most the sum of r^2 over the curvature.

Source: Ortega and Rheinboldt (1970), Iterative Solution of Nonlinear Equations in
Several Variables, 7.4, for Jacobi's iteration on nonlinear equations.
"""

import numpy as np

from probes.solvers.compiled.certificate import certify, write_excess
from probes.solvers.compiled.math import compiled, logistic
from probes.solvers.compiled.workspace import (
    BEST,
    CERTIFICATE,
    CG_RATE,
    INITIAL,
    LOCAL_CERTIFICATE,
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
"""Certificate from which on steps in the type of most products leave no more in the
scores than a tenth of what the answer may be off."""
STALL_RATIO = 0.5
"""What two turns have to leave at most of a certificate, to go on."""
MIN_ITERATIONS = 4
"""Turns before that is asked for."""
MAX_ROW_STEPS = 8
"""Newton steps on each row's own equation, at most."""
LARGE_SCORE_STEP = 0.5
"""Change of a score from which on one such step is not enough."""
EPS = 1e-9
"""Added to what is raised to a power, so that this stays a normal number, not a slow
one."""
MAX_SCORE_STEP = 4.0
"""Change of a score in one such step, at most: beyond it a sigmoid is flat."""


@compiled
def _diagonals(count, place, matrix, rows, core, diagonal):
    """(slot, n) diagonal of Q, rows taken out."""
    n, width = matrix.shape[0], rows.shape[1]
    for k in range(count):
        p = place[k]
        for i in range(n):
            diagonal[k, i] = matrix[i, i]
        for g in range(width):
            for h in range(width):
                r, q = max(rows[p, g], 0), max(rows[p, h], 0)
                across = core[p, g, h]
                for i in range(n):
                    diagonal[k, i] += across * matrix[r, i] * matrix[q, i]


@compiled
def _evaluate(count, place, loss, light, rows, own, rest, row, chance, residual, state):
    """Residuals, the bound of their squared length, and the size of the parameters."""
    weight, target, fixed = loss
    n, kind = own.shape[1], residual.dtype.type
    for k in range(count):
        p = place[k]
        w, t, f = p % len(weight), p % len(target), p % len(fixed)
        for i in range(n):
            row[i] = logistic(own[k, i])
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                row[rows[p, g]] = 0
        for i in range(n):
            chance[k, i] = kind(row[i])
        for i in range(n):
            residual[k, i] = kind(rest[k, i] - row[i] * weight[w, i])
        bound = kind(0)
        for i in range(n):
            over = kind(1) / max(light[1][f, i], kind(1e-30))
            bound += residual[k, i] * residual[k, i] * over
        size, floor = own.dtype.type(0), own.dtype.type(0)
        for i in range(n):
            dual = target[t, i] * weight[w, i] - rest[k, i] + fixed[f, i] * own[k, i]
            size += dual * own[k, i]
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                r = rows[p, g]
                full = target[t, r] * weight[w, r] + fixed[f, r] * own[k, r]
                size -= (full - rest[k, r]) * own[k, r]
        for i in range(n):
            floor += fixed[f, i]
        state[k, RAW_NORM2], size = size, max(size, 1e-6 * floor)
        state[k, RESIDUAL2], state[k, NORM2] = bound, size
        state[k, CERTIFICATE] = np.sqrt(bound / size)


@compiled
def _step(
    count, place, light, rows, own, rest, chance, residual, diagonal, there, inside
):
    """``inside``: what dual values change by, each row's equation solved on its own."""
    weight, fixed = light
    n, kind, wide = own.shape[1], inside.dtype.type, own.dtype.type
    one, longest, tiny = kind(1), kind(MAX_SCORE_STEP), kind(EPS)
    for k in range(count):
        p = place[k]
        w, f = p % len(weight), p % len(fixed)
        for i in range(n):
            mass = chance[k, i] * weight[w, i]
            stiff = mass - mass * chance[k, i] - fixed[f, i]
            inside[k, i] = residual[k, i] / (one + stiff * diagonal[k, i])
        # A norm that is nearly the largest: a sum can be taken many at a time.
        largest = kind(0)
        for i in range(n):
            lift = inside[k, i] * diagonal[k, i]
            lift = lift * lift + tiny
            largest += (lift * lift) * (lift * lift)
        far = largest > kind(LARGE_SCORE_STEP**8)
        if far:
            for i in range(n):
                inside[k, i] = 0
            for _ in range(MAX_ROW_STEPS):
                for i in range(n):
                    there[i] = logistic(kind(own[k, i]) + inside[k, i] * diagonal[k, i])
                for i in range(n):
                    mass = there[i] * weight[w, i]
                    stiff = mass - mass * there[i] - fixed[f, i]
                    part = kind(rest[k, i]) - mass - inside[k, i]
                    part += fixed[f, i] * inside[k, i] * diagonal[k, i]
                    there[i] = part / (one + stiff * diagonal[k, i])
                largest = kind(0)
                for i in range(n):
                    lift = there[i] * diagonal[k, i]
                    short = longest / max(abs(lift), longest)
                    inside[k, i] += short * there[i]
                    lift = lift * lift + tiny
                    largest += (lift * lift) * (lift * lift)
                if not largest > kind(LARGE_SCORE_STEP**8):
                    break
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                inside[k, rows[p, g]] = 0
        for i in range(n):
            rest[k, i] -= wide(inside[k, i])


@compiled
def _add_product(count, place, fixed, rows, pulled, own, rest):
    """Scores and rest after a product: ``pulled`` = Q ``inside``."""
    n, wide = own.shape[1], own.dtype.type
    for k in range(count):
        f = place[k] % len(fixed)
        for i in range(n):
            own[k, i] += wide(pulled[k, i])
        for i in range(n):
            rest[k, i] += fixed[f, i] * wide(pulled[k, i])
        for g in range(rows.shape[1]):
            if rows[place[k], g] >= 0:
                rest[k, rows[place[k], g]] = 0


@compiled
def solve_jacobi(
    start, count, loss, exact, mild, out, dual, scores, certificate, room, steps, limits
):
    """Turns until each problem is at its goal or stays. Who is left, and products.

    Arguments as ``rowsolve`` has them; ``dual``, ``scores`` and ``certificate`` (of
    all problems) are written in place, and scores must fit dual values at the start.
    """
    matrix, core = exact
    fast, weight, fixed = mild
    rows, fast_core = out
    blocks, wide, state, row, few, fast_few, there = room
    residual, pulled, chance, inside, diagonal, bend = blocks[:6]
    own, rest, sent, came = wide
    wanted, accepted = limits[0], limits[1]
    light, kept = (weight, fixed), (residual, pulled, chance, inside, diagonal)
    place, left = np.arange(start, start + count), np.empty(count, np.int64)
    slots, asked = np.arange(count), np.empty(count, np.int64)
    ends, nearer = np.empty(count, np.int64), np.empty(count, np.int64)
    exactly = np.full(count, fast.dtype == matrix.dtype)
    load(count, place, loss, rows, dual, scores, own, rest, state)
    _diagonals(count, place, fast, rows, fast_core, diagonal)
    state[:count, BEST], state[:count, CG_RATE] = np.inf, 0
    live, gone, turn, quick, slow = count, 0, 0, 0, 0
    while live > 0:
        _evaluate(
            live, place, loss, light, rows, own, rest, row, chance, residual, state
        )
        near, ending, better = 0, 0, 0
        for k in range(live):
            if turn == 0:
                state[k, INITIAL] = state[k, CERTIFICATE]
            if state[k, CERTIFICATE] <= (wanted if exactly[k] else RESCORE_BELOW):
                asked[near] = k
                near += 1
        write_excess(near, asked, place, light, rows, chance, bend)
        certify(
            near,
            asked,
            place,
            mild,
            rows,
            fast_core,
            own,
            residual,
            bend,
            accepted,
            state,
        )
        for k in asked[:near]:
            # Where weights are far above the curvature, what scores lose to rounding
            # is that much more in the own metric.
            sound = state[k, LOCAL_CERTIFICATE] <= RESCORE_BELOW * state[k, NORM2_RATIO]
            exactly[k] |= turn == 0 and sound
            due = not exactly[k] and (sound or state[k, CERTIFICATE] <= wanted)
            state[k, CG_RATE] = 1 if due else 0
        for k in range(live):
            now = state[k, CERTIFICATE]
            done = (
                exactly[k] and now <= wanted and state[k, LOCAL_CERTIFICATE] <= accepted
            )
            stop = done or turn >= steps or not now < np.inf
            if turn % 2 == 0:
                stop |= (
                    turn >= MIN_ITERATIONS and not now < STALL_RATIO * state[k, BEST]
                )
                state[k, BEST] = now
            if stop:
                ends[ending] = k
                ending += 1
                # Where it went astray the next way begins as this one did.
                if now <= state[k, INITIAL]:
                    nearer[better] = k
                    better += 1
                certificate[place[k]] = state[k, LOCAL_CERTIFICATE] if done else np.inf
                if not done:
                    left[gone] = place[k]
                    gone += 1
        if ending > 0:
            write_solution(
                better, nearer, place, loss, rows, own, rest, dual, scores, state
            )
            live = compact(ending, ends, live, place, state, exactly, kept, (own, rest))
            if live == 0:
                break
        _step(
            live,
            place,
            light,
            rows,
            own,
            rest,
            chance,
            residual,
            diagonal,
            there,
            inside,
        )
        multiply_q(inside, live, fast, pulled, place, rows, fast_core, fast_few)
        quick += live
        _add_product(live, place, loss[2], rows, pulled, own, rest)
        off = 0
        for k in range(live):
            if state[k, CG_RATE] > 0:
                state[k, CG_RATE] = 0
                asked[off] = k
                off += 1
        if off > 0:
            # Scores were moved by rough products; make them exact again.
            write_dual(off, asked, place, loss, rows, rest, own, sent, slots)
            back = place[asked[:off]]
            multiply_q(sent, off, matrix, came, back, rows, core, few)
            slow += off
            replace_scores(off, asked, place, came, loss[2], rows, own, rest)
            for o in range(off):
                exactly[asked[o]] = True
        turn += 1
    return left[:gone], quick, slow
