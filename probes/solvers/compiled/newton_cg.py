"""The short way of ``probes.solvers.newton.newton_cg_mixed``, compiled: two classes, CPU.

What ``swift.solve`` does with torch expressions is one function of numba's here.
Products are BLAS's as they are there; what lies between them goes row by row
(``probes.solvers.compiled.workspace``). As nothing has to be sent for, blocks are small
and each problem stops by itself: the last that is not done takes the place of one that
is. As passes cost little, its state is in the type of the answer all the way down,
which leaves nothing to polish of most problems.

Problems share rows of arrays: (1, n) or (problem, n). Arguments come as tuples:

    loss    weight, target and the factor's weights, in the type of the answer
    exact   Q, and the core of the rows taken out, in that type
    mild    Q, and the loss's and the factor's weights, in the type of most products
    out     rows taken out, -1 where there is none, and their core in that type

``probes.solvers.compiled.dispatch`` decides when this is used; nothing else imports
this file, as numba takes half a second to import.
"""

import numpy as np

from probes.solvers.compiled.certificate import certify, write_excess
from probes.solvers.compiled.jacobi import RESCORE_BELOW, solve_jacobi
from probes.solvers.compiled.math import compiled, source_hash
from probes.solvers.compiled.newton_polish import newton_cg
from probes.solvers.compiled.workspace import (
    BEST,
    CERTIFICATE,
    LOCAL_CERTIFICATE,
    N_STATE,
    NORM2,
    NORM2_RATIO,
    RESIDUAL2,
    compact,
    load,
    measure_residuals,
    multiply_q,
    nonlinear_cg_step,
    replace_scores,
    residuals,
    write_dual,
    write_solution,
)

BLOCK_SIZE = 256
"""Problems solved together: so many fill a product, and their rows stay near."""


@compiled
def _nonlinear_cg(
    whom, loss, exact, mild, out, dual, scores, certificate, room, steps, limits
):
    """Nonlinear conjugate gradients; see ``swift._descend``. Who is left, and products.

    The state and its residual are in the type of the answer, directions and products
    in that of ``mild``. What scores lose to those products is made good once, near the
    optimum, and the directions go on: few problems need another solver.

    ``dual``, ``scores`` and ``certificate`` (of all problems) are written in place.
    """
    matrix, core = exact
    fast, weight, fixed = mild
    rows, fast_core = out
    blocks, wide, state, row, few, fast_few, _ = room
    residual, pulled, chance, ahead, inside, image, bend = blocks
    own, rest, sent, came = wide
    wanted, accepted, _, _, _, near = limits
    light, kept = (weight, fixed), (residual, pulled, chance, ahead, inside, image)
    count, place = len(whom), whom.copy()
    left = np.empty(count, np.int64)
    slots, asked = np.arange(count), np.empty(count, np.int64)
    ends, exactly = np.empty(count, np.int64), np.zeros(count, np.bool_)
    arrived = np.zeros(count, np.bool_)
    same = fast.dtype == matrix.dtype
    load(count, place, loss, rows, dual, scores, own, rest, state)
    residuals(count, slots, place, loss[0], rows, own, rest, row, chance, residual)
    state[:count, BEST] = np.inf
    live, gone, step, quick, slow = count, 0, 0, 0, 0
    while live > 0:
        multiply_q(residual, live, fast, pulled, place, rows, fast_core, fast_few)
        quick += live
        measure_residuals(live, residual, pulled, image, state)
        ending = 0
        for k in range(live):
            square = state[k, RESIDUAL2]
            now = np.sqrt(abs(square) / state[k, NORM2])
            state[k, CERTIFICATE] = now
            if step == 0:
                # Short ways in one type lose no more than their ends are rounded.
                exactly[k] = same and now <= 1
            arrived[k] = exactly[k] and now <= wanted
            stop = arrived[k] or step + 1 >= steps
            if step % 2 == 0:
                stop |= not (square < 0.8 * state[k, BEST])
                state[k, BEST] = square
            if stop:
                ends[ending] = k
                ending += 1
        if ending > 0:
            write_solution(
                ending, ends, place, loss, rows, own, rest, dual, scores, state
            )
            write_excess(ending, ends, place, light, rows, chance, image)
            certify(
                ending,
                ends,
                place,
                mild,
                rows,
                fast_core,
                own,
                residual,
                image,
                accepted,
                state,
            )
            for k in ends[:ending]:
                done = arrived[k] and state[k, LOCAL_CERTIFICATE] <= accepted
                certificate[place[k]] = state[k, LOCAL_CERTIFICATE] if done else np.inf
                if not done:
                    left[gone] = place[k]
                    gone += 1
            live = compact(ending, ends, live, place, state, exactly, kept, (own, rest))
            if live == 0:
                break
        nonlinear_cg_step(
            live,
            step == 0,
            place,
            loss[0],
            light,
            rows,
            residual,
            pulled,
            row,
            (chance, ahead, inside, image),
            own,
            rest,
            state,
        )
        some = 0
        for k in range(live):
            if not exactly[k] and state[k, CERTIFICATE] <= near:
                asked[some] = k
                some += 1
        write_excess(some, asked, place, light, rows, chance, bend)
        certify(
            some,
            asked,
            place,
            mild,
            rows,
            fast_core,
            own,
            residual,
            bend,
            RESCORE_BELOW,
            state,
        )
        off = 0
        for k in asked[:some]:
            # See ``relaxation``.
            sound = state[k, LOCAL_CERTIFICATE] <= RESCORE_BELOW * state[k, NORM2_RATIO]
            if sound or state[k, CERTIFICATE] <= wanted:
                asked[off] = k
                off += 1
        if off > 0:
            # Scores were moved by rough products; make them exact again.
            write_dual(off, asked, place, loss, rows, rest, own, sent, slots)
            back = place[asked[:off]]
            multiply_q(sent, off, matrix, came, back, rows, core, few)
            slow += off
            replace_scores(off, asked, place, came, loss[2], rows, own, rest)
            residuals(
                off, asked, place, loss[0], rows, own, rest, row, chance, residual
            )
            for o in range(off):
                exactly[asked[o]] = True
        step += 1
    return left[:gone], quick, slow


def _compile():
    """The whole way; its copy on disk is for these sources alone."""
    sources = source_hash()

    def approach(loss, exact, mild, out, dual, scores, certificate, steps, limits):
        _ = sources  # numba looks at this file's date, and not at the others'
        total, n = scores.shape
        size, width = min(BLOCK_SIZE, total), out[0].shape[1]
        kind, wide = mild[0].dtype, exact[0].dtype
        blocks = np.empty((7, size, n), kind)
        wides = np.empty((4, size, n), wide)
        room = (
            (
                blocks[0],
                blocks[1],
                blocks[2],
                blocks[3],
                blocks[4],
                blocks[5],
                blocks[6],
            ),
            (wides[0], wides[1], wides[2], wides[3]),
            np.empty((size, N_STATE)),
            np.empty(n, wide),
            np.empty(width, wide),
            np.empty(width, kind),
            np.empty(n, kind),
        )
        quick, slow = 0, 0
        for start in range(0, total, size):
            count = min(size, total - start)
            left = np.arange(start, start + count)
            if steps > 0:
                left, fast, exactly = solve_jacobi(
                    start,
                    count,
                    loss,
                    exact,
                    mild,
                    out,
                    dual,
                    scores,
                    certificate,
                    room,
                    steps,
                    limits,
                )
                quick += fast
                slow += exactly
            if steps > 0 and len(left) > 0:
                left, fast, exactly = _nonlinear_cg(
                    left,
                    loss,
                    exact,
                    mild,
                    out,
                    dual,
                    scores,
                    certificate,
                    room,
                    steps,
                    limits,
                )
                quick += fast
                slow += exactly
            if len(left) > 0:
                fast, exactly = newton_cg(
                    left,
                    loss,
                    exact,
                    mild,
                    out,
                    dual,
                    scores,
                    certificate,
                    room,
                    limits,
                )
                quick += fast
                slow += exactly
        return quick, slow

    return compiled(approach, cache=True)


solve = _compile()
