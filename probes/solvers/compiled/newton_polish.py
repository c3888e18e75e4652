"""Newton steps on exact residuals for what other ways left: two classes, compiled.

``probes.solvers.newton.newton_cg_mixed._polish`` in passes of
``probes.solvers.compiled.workspace``, with the arguments of
``probes.solvers.compiled.newton_cg``.
"""

import numpy as np

from probes.solvers.compiled.certificate import certify
from probes.solvers.compiled.math import compiled
from probes.solvers.compiled.workspace import (
    CERTIFICATE,
    CG_GOAL,
    CG_RATE,
    INITIAL,
    LOCAL_CERTIFICATE,
    NORM2_RATIO,
    PREVIOUS,
    RESIDUAL2,
    cg_step,
    compact,
    load,
    measure_residuals,
    multiply_q,
    replace_scores,
    swap_slots,
    take_newton_step,
    write_dual,
    write_residual_and_excess,
    write_solution,
)


@compiled
def newton_cg(left, loss, exact, mild, out, dual, scores, certificate, room, limits):
    """Newton steps on exact residuals; see ``swift._polish``. Products of both types.

    ``dual``, ``scores`` and ``certificate`` (of all problems) are written in place.
    """
    matrix, core = exact
    fast, _, fixed = mild
    rows, fast_core = out
    blocks, wide, state, row, few, fast_few, _ = room
    residual, pulled, begun, lift, bend, search, ahead = blocks
    own, rest, sent, came = wide
    kept = blocks
    wanted, accepted, turns, cycles, finest, near = limits
    count, place = len(left), left.copy()
    exactly = np.ones(count, np.bool_)
    slots, asked = np.arange(count), np.empty(count, np.int64)
    for k in range(count):
        sent[k] = dual[place[k]]
    multiply_q(sent, count, matrix, came, place, rows, core, few)
    for k in range(count):
        scores[place[k]] = came[k]
    load(count, place, loss, rows, dual, scores, own, rest, state)
    state[:count, PREVIOUS] = np.inf
    live, quick, slow = count, 0, count
    for step in range(turns):
        write_residual_and_excess(
            live, place, loss[0], fixed, rows, own, rest, row, residual, bend
        )
        multiply_q(residual, live, fast, pulled, place, rows, fast_core, fast_few)
        quick += live
        measure_residuals(live, residual, pulled, residual, state)
        certify(
            live,
            slots,
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
        ending = 0
        for k in range(live):
            now, strict = state[k, CERTIFICATE], state[k, LOCAL_CERTIFICATE]
            # At the floor of rounding a turn more brings nothing.
            done = now <= wanted or now > 0.5 * state[k, PREVIOUS]
            done = done and strict <= accepted
            if done or step + 1 == turns:
                certificate[place[k]] = max(now, strict) if done else np.inf
                asked[ending] = k
                ending += 1
                continue
            enough = min(max(0.3 * wanted / now, finest), 0.1)
            state[k, PREVIOUS], state[k, INITIAL] = now, state[k, RESIDUAL2]
            state[k, CG_GOAL], state[k, CG_RATE] = state[k, RESIDUAL2] * enough**2, 1
        if ending > 0:
            write_solution(
                ending, asked, place, loss, rows, own, rest, dual, scores, state
            )
            live = compact(
                ending, asked, live, place, state, exactly, kept, (own, rest)
            )
        if live == 0:
            break
        begun[:live], search[:live] = residual[:live], residual[:live]
        ahead[:live], lift[:live] = pulled[:live], 0
        running = live
        for cycle in range(cycles):
            cg_step(
                running,
                cycle == 0,
                bend,
                pulled,
                residual,
                search,
                ahead,
                lift,
                state,
            )
            for k in range(running - 1, -1, -1):
                # Expected of this step what the last one brought, it was the last.
                if state[k, RESIDUAL2] * state[k, CG_RATE] <= state[k, CG_GOAL]:
                    running -= 1
                    swap_slots(k, running, place, state, kept, (own, rest))
            if running == 0:
                break
            multiply_q(
                residual, running, fast, pulled, place, rows, fast_core, fast_few
            )
            quick += running
            for k in range(running):
                state[k, CERTIFICATE] = state[k, RESIDUAL2]
            measure_residuals(running, residual, pulled, residual, state)
            for k in range(running - 1, -1, -1):
                before, fresh = state[k, CERTIFICATE], max(state[k, RESIDUAL2], 0.0)
                state[k, RESIDUAL2] = fresh
                state[k, CG_RATE] = fresh / before if before > 0 else 0.0
                # Growth is rounding, not progress: too stiff for this type.
                stop = (
                    fresh <= state[k, CG_GOAL] or not fresh <= 1e4 * state[k, INITIAL]
                )
                if stop or cycle + 1 == cycles:
                    running -= 1
                    swap_slots(k, running, place, state, kept, (own, rest))
            if running == 0:
                break
        take_newton_step(
            live, place, begun, residual, bend, lift, fixed, rows, rest, own
        )
        off = 0
        for k in range(live):
            if not state[k, LOCAL_CERTIFICATE] <= near * state[k, NORM2_RATIO]:
                asked[off] = k
                off += 1
        if off > 0:
            # Scores were moved by rough products; make them exact again.
            write_dual(off, asked, place, loss, rows, rest, own, sent, slots)
            back = place[asked[:off]]
            multiply_q(sent, off, matrix, came, back, rows, core, few)
            slow += off
            replace_scores(off, asked, place, came, loss[2], rows, own, rest)
    return quick, slow
