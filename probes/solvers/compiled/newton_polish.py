"""Newton-CG on exact residuals for two classes, compiled by numba.

The algorithm is ``probes.solvers.newton.newton_cg_mixed._newton_cg``, in the passes of
``probes.solvers.compiled.workspace``; arguments as in
``probes.solvers.compiled.newton_cg``.
"""

import numpy as np

from probes.solvers.compiled.certificate import certify
from probes.solvers.compiled.math import compiled
from probes.solvers.compiled.workspace import (
    CERT,
    CG_GOAL,
    CG_RATE,
    INITIAL,
    LOCAL_CERT,
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
def newton_cg(active, loss, exact, fast, removal, dual, scores, certificate, workspace, limits):
    """Newton-CG for the problems that other solvers left.

    ``dual``, ``scores`` and ``certificate`` (of all problems) are updated in place.

    Returns:
        The numbers of fast and exact products.
    """
    q, core = exact
    fast_q, _, fixed = fast
    removed, fast_core = removal
    blocks, exact_blocks, state, exact_row, gathered, fast_gathered, _ = workspace
    (residual, q_residual, newton_residual, score_step, excess, direction, d_scores) = blocks
    e, b, dual_block, score_block = exact_blocks
    moved = blocks
    tol, accepted_tol, newton_steps, cg_steps, min_forcing, rescore_above = limits
    count, problem = len(active), active.copy()
    is_exact = np.ones(count, np.bool_)
    slots, chosen = np.arange(count), np.empty(count, np.int64)
    for k in range(count):
        dual_block[k] = dual[problem[k]]
    multiply_q(dual_block, count, q, score_block, problem, removed, core, gathered)
    for k in range(count):
        scores[problem[k]] = score_block[k]
    load(count, problem, loss, removed, dual, scores, e, b, state)
    state[:count, PREVIOUS] = np.inf
    n_active, n_fast, n_exact = count, 0, count
    for step in range(newton_steps):
        write_residual_and_excess(
            n_active, problem, loss[0], fixed, removed, e, b, exact_row, residual, excess
        )
        multiply_q(
            residual, n_active, fast_q, q_residual, problem, removed, fast_core, fast_gathered
        )
        n_fast += n_active
        measure_residuals(n_active, residual, q_residual, residual, state)
        certify(
            n_active,
            slots,
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
        n_finished = 0
        for k in range(n_active):
            now, local = state[k, CERT], state[k, LOCAL_CERT]
            # Stop at the floor set by rounding.
            done = now <= tol or now > 0.5 * state[k, PREVIOUS]
            done = done and local <= accepted_tol
            if done or step + 1 == newton_steps:
                certificate[problem[k]] = max(now, local) if done else np.inf
                chosen[n_finished] = k
                n_finished += 1
                continue
            forcing = min(max(0.3 * tol / now, min_forcing), 0.1)
            state[k, PREVIOUS], state[k, INITIAL] = now, state[k, RESIDUAL2]
            state[k, CG_GOAL], state[k, CG_RATE] = state[k, RESIDUAL2] * forcing**2, 1
        if n_finished > 0:
            write_solution(n_finished, chosen, problem, loss, removed, e, b, dual, scores, state)
            n_active = compact(
                n_finished, chosen, n_active, problem, state, is_exact, moved, (e, b)
            )
        if n_active == 0:
            break
        newton_residual[:n_active], direction[:n_active] = (
            residual[:n_active],
            residual[:n_active],
        )
        d_scores[:n_active], score_step[:n_active] = q_residual[:n_active], 0
        running = n_active
        for cg_iteration in range(cg_steps):
            cg_step(
                running,
                cg_iteration == 0,
                excess,
                q_residual,
                residual,
                direction,
                d_scores,
                score_step,
                state,
            )
            for k in range(running - 1, -1, -1):
                # Stop if the last step's rate predicts that this one reaches the goal.
                if state[k, RESIDUAL2] * state[k, CG_RATE] <= state[k, CG_GOAL]:
                    running -= 1
                    swap_slots(k, running, problem, state, moved, (e, b))
            if running == 0:
                break
            multiply_q(
                residual, running, fast_q, q_residual, problem, removed, fast_core, fast_gathered
            )
            n_fast += running
            for k in range(running):
                state[k, CERT] = state[k, RESIDUAL2]
            measure_residuals(running, residual, q_residual, residual, state)
            for k in range(running - 1, -1, -1):
                previous, residual2 = (state[k, CERT], max(state[k, RESIDUAL2], 0.0))
                state[k, RESIDUAL2] = residual2
                state[k, CG_RATE] = residual2 / previous if previous > 0 else 0.0
                # A growing residual means that the system is too stiff for this type.
                stop = residual2 <= state[k, CG_GOAL] or not residual2 <= 1e4 * state[k, INITIAL]
                if stop or cg_iteration + 1 == cg_steps:
                    running -= 1
                    swap_slots(k, running, problem, state, moved, (e, b))
            if running == 0:
                break
        take_newton_step(
            n_active, problem, newton_residual, residual, excess, score_step, fixed, removed, b, e
        )
        n_due = 0
        for k in range(n_active):
            if not state[k, LOCAL_CERT] <= rescore_above * state[k, NORM2_RATIO]:
                chosen[n_due] = k
                n_due += 1
        if n_due > 0:
            # Recompute scores that fast products have updated.
            write_dual(n_due, chosen, problem, loss, removed, b, e, dual_block, slots)
            problems = problem[chosen[:n_due]]
            multiply_q(dual_block, n_due, q, score_block, problems, removed, core, gathered)
            n_exact += n_due
            replace_scores(n_due, chosen, problem, score_block, loss[2], removed, e, b)
    return n_fast, n_exact
