"""Mixed-precision solver for many two-class problems on the CPU, compiled by numba.

The counterpart of ``probes.solvers.newton.newton_cg_mixed.solve_mixed``, as one compiled
function. Matrix products call BLAS as there; elementwise passes go row by row
(``probes.solvers.compiled.workspace``). Blocks are small, and problems are compacted: a
finished problem is overwritten by the last active one. Passes are cheap here, so the state
is kept in the type of the answer throughout, and few problems need the final Newton steps.

Three solvers run one after the other, each on what the last one left: nonlinear Jacobi
(``probes.solvers.compiled.jacobi``), nonlinear conjugate gradients, and Newton-CG
(``probes.solvers.compiled.newton_polish``).

Arrays that problems share have the shape (1, n), others (problem, n). Arguments come as
tuples:

    loss     weights, targets and the factor's weights, in the type of the answer
    exact    Q, and the core of the rows left out, in that type
    fast     Q, and the loss's and the factor's weights, in the type of most products
    removal  rows left out, -1 where there is none, and their core in the fast type
    limits   certificate to reach, certificate to accept, Newton steps, steps of conjugate
             gradients, smallest forcing term, certificate above which scores are recomputed

``probes.solvers.compiled.dispatch`` decides when this is used. Only that module imports this
file, because numba takes half a second to import.
"""

import numpy as np

from probes.solvers.compiled.certificate import certify, write_excess
from probes.solvers.compiled.jacobi import RESCORE_BELOW, solve_jacobi
from probes.solvers.compiled.math import compiled, compiled_entry, source_hash
from probes.solvers.compiled.newton_polish import newton_cg
from probes.solvers.compiled.workspace import (
    BEST,
    CERT,
    LOCAL_CERT,
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
"""Problems solved together: enough to fill a product, few enough for the cache."""


@compiled
def _nonlinear_cg(
    active, loss, exact, fast, removal, dual, scores, certificate, workspace, max_steps, limits
):
    """Nonlinear conjugate gradients, as in ``newton_cg_mixed._nonlinear_cg``.

    State and residual are in the type of the answer, directions and products in the fast type.
    Scores are recomputed once, near the optimum, and the directions go on, so few problems need
    another solver.

    ``dual``, ``scores`` and ``certificate`` (of all problems) are updated in place.

    Returns:
        The unsolved problems, and the numbers of fast and exact products.
    """
    q, core = exact
    fast_q, weight, fixed = fast
    removed, fast_core = removal
    blocks, exact_blocks, state, exact_row, gathered, fast_gathered, _ = workspace
    residual, q_residual, prob, d_scores, d_alpha, hess_d, excess = blocks
    e, b, dual_block, score_block = exact_blocks
    tol, accepted_tol, _, _, _, rescore_above = limits
    fast_weights, moved = ((weight, fixed), (residual, q_residual, prob, d_scores, d_alpha, hess_d))
    count, problem = len(active), active.copy()
    unsolved = np.empty(count, np.int64)
    slots, chosen = np.arange(count), np.empty(count, np.int64)
    finished, is_exact = np.empty(count, np.int64), np.zeros(count, np.bool_)
    is_solved = np.zeros(count, np.bool_)
    one_dtype = fast_q.dtype == q.dtype
    load(count, problem, loss, removed, dual, scores, e, b, state)
    residuals(count, slots, problem, loss[0], removed, e, b, exact_row, prob, residual)
    state[:count, BEST] = np.inf
    n_active, n_unsolved, step, n_fast, n_exact = count, 0, 0, 0, 0
    while n_active > 0:
        multiply_q(
            residual, n_active, fast_q, q_residual, problem, removed, fast_core, fast_gathered
        )
        n_fast += n_active
        measure_residuals(n_active, residual, q_residual, hess_d, state)
        n_finished = 0
        for k in range(n_active):
            residual2 = state[k, RESIDUAL2]
            now = np.sqrt(abs(residual2) / state[k, NORM2])
            state[k, CERT] = now
            if step == 0:
                # With one type throughout, short paths lose no more than rounding.
                is_exact[k] = one_dtype and now <= 1
            is_solved[k] = is_exact[k] and now <= tol
            stop = is_solved[k] or step + 1 >= max_steps
            if step % 2 == 0:
                stop |= not (residual2 < 0.8 * state[k, BEST])
                state[k, BEST] = residual2
            if stop:
                finished[n_finished] = k
                n_finished += 1
        if n_finished > 0:
            write_solution(n_finished, finished, problem, loss, removed, e, b, dual, scores, state)
            write_excess(n_finished, finished, problem, fast_weights, removed, prob, hess_d)
            certify(
                n_finished,
                finished,
                problem,
                fast,
                removed,
                fast_core,
                e,
                residual,
                hess_d,
                accepted_tol,
                state,
            )
            for k in finished[:n_finished]:
                done = is_solved[k] and state[k, LOCAL_CERT] <= accepted_tol
                certificate[problem[k]] = state[k, LOCAL_CERT] if done else np.inf
                if not done:
                    unsolved[n_unsolved] = problem[k]
                    n_unsolved += 1
            n_active = compact(
                n_finished, finished, n_active, problem, state, is_exact, moved, (e, b)
            )
            if n_active == 0:
                break
        nonlinear_cg_step(
            n_active,
            step == 0,
            problem,
            loss[0],
            fast_weights,
            removed,
            residual,
            q_residual,
            exact_row,
            (prob, d_scores, d_alpha, hess_d),
            e,
            b,
            state,
        )
        n_near = 0
        for k in range(n_active):
            if not is_exact[k] and state[k, CERT] <= rescore_above:
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
            RESCORE_BELOW,
            state,
        )
        n_due = 0
        for k in chosen[:n_near]:
            # See ``probes.solvers.compiled.jacobi``.
            is_safe = state[k, LOCAL_CERT] <= RESCORE_BELOW * state[k, NORM2_RATIO]
            if is_safe or state[k, CERT] <= tol:
                chosen[n_due] = k
                n_due += 1
        if n_due > 0:
            # Recompute scores that fast products have updated.
            write_dual(n_due, chosen, problem, loss, removed, b, e, dual_block, slots)
            problems = problem[chosen[:n_due]]
            multiply_q(dual_block, n_due, q, score_block, problems, removed, core, gathered)
            n_exact += n_due
            replace_scores(n_due, chosen, problem, score_block, loss[2], removed, e, b)
            residuals(n_due, chosen, problem, loss[0], removed, e, b, exact_row, prob, residual)
            for o in range(n_due):
                is_exact[chosen[o]] = True
        step += 1
    return unsolved[:n_unsolved], n_fast, n_exact


def _compile():
    """Compile the solver; its copy on disk is valid for the sources of this folder only."""
    sources = source_hash()

    def solve(loss, exact, fast, removal, dual, scores, certificate, max_steps, limits):
        _ = sources  # part of the cache key: numba checks the date of this file only
        n_problems, n = scores.shape
        size, width = min(BLOCK_SIZE, n_problems), removal[0].shape[1]
        fast_dtype, exact_dtype = fast[0].dtype, exact[0].dtype
        blocks = np.empty((7, size, n), fast_dtype)
        exact_blocks = np.empty((4, size, n), exact_dtype)
        workspace = (
            (blocks[0], blocks[1], blocks[2], blocks[3], blocks[4], blocks[5], blocks[6]),
            (exact_blocks[0], exact_blocks[1], exact_blocks[2], exact_blocks[3]),
            np.empty((size, N_STATE)),
            np.empty(n, exact_dtype),
            np.empty(width, exact_dtype),
            np.empty(width, fast_dtype),
            np.empty(n, fast_dtype),
        )
        n_fast, n_exact = 0, 0
        for start in range(0, n_problems, size):
            count = min(size, n_problems - start)
            unsolved = np.arange(start, start + count)
            if max_steps > 0:
                unsolved, fast_products, exact_products = solve_jacobi(
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
                    max_steps,
                    limits,
                )
                n_fast += fast_products
                n_exact += exact_products
            if max_steps > 0 and len(unsolved) > 0:
                unsolved, fast_products, exact_products = _nonlinear_cg(
                    unsolved,
                    loss,
                    exact,
                    fast,
                    removal,
                    dual,
                    scores,
                    certificate,
                    workspace,
                    max_steps,
                    limits,
                )
                n_fast += fast_products
                n_exact += exact_products
            if len(unsolved) > 0:
                fast_products, exact_products = newton_cg(
                    unsolved,
                    loss,
                    exact,
                    fast,
                    removal,
                    dual,
                    scores,
                    certificate,
                    workspace,
                    limits,
                )
                n_fast += fast_products
                n_exact += exact_products
        return n_fast, n_exact

    return compiled_entry(solve)


solve = _compile()
