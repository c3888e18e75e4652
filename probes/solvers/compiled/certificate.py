"""Certificates of the compiled two-class solvers.

``probes.solvers.newton.newton_cg_mixed`` derives the bounds; the index names are those of
``probes.solvers.compiled.workspace``.
"""

import numpy as np

from probes.solvers.compiled.math import compiled
from probes.solvers.compiled.workspace import (
    CERT,
    LOCAL_CERT,
    NORM2,
    NORM2_RATIO,
    RAW_NORM2,
    RESIDUAL2,
)


@compiled
def write_excess(count, slots, problem, fast_weights, removed, prob, excess):
    """Write the curvature of ``slots`` minus the factor's weights."""
    weight, fixed = fast_weights
    n = excess.shape[1]
    for o in range(count):
        k = slots[o]
        p = problem[k]
        w, f = p % len(weight), p % len(fixed)
        for i in range(n):
            weighted_prob = prob[k, i] * weight[w, i]
            excess[k, i] = weighted_prob - weighted_prob * prob[k, i] - fixed[f, i]
        for g in range(removed.shape[1]):
            if removed[p, g] >= 0:
                excess[k, removed[p, g]] = 0


@compiled
def certify(
    count, slots, problem, fast, removed, core, scores, residual, excess, accepted_tol, state
):
    """Write certificates in the factor's metric and in that of the local Hessian."""
    matrix, _, fixed = fast
    dtype, n, width = matrix.dtype.type, residual.shape[1], removed.shape[1]
    noise = 16 * np.finfo(matrix.dtype).eps
    for o in range(count):
        k = slots[o]
        p = problem[k]
        f = p % len(fixed)
        weighted_residual2, local_residual2 = dtype(0), dtype(0)
        for i in range(n):
            inverse = dtype(1) / max(fixed[f, i], dtype(1e-30))
            weighted_residual2 += residual[k, i] * residual[k, i] * inverse
        for i in range(n):
            inverse = dtype(1) / max(fixed[f, i] + excess[k, i], dtype(1e-30))
            local_residual2 += residual[k, i] * residual[k, i] * inverse
        # The norm may be far smaller in the local metric than in the factor's.
        norm2_change, curvature_sum = scores.dtype.type(0), dtype(0)
        for i in range(n):
            norm2_change += excess[k, i] * scores[k, i] * scores[k, i]
        for i in range(n):
            curvature_sum += fixed[f, i] + excess[k, i]
        local_norm2 = min(
            state[k, NORM2], max(state[k, RAW_NORM2] + norm2_change, 1e-6 * curvature_sum)
        )
        residual2 = abs(state[k, RESIDUAL2]) + noise * weighted_residual2
        certificate = np.sqrt(residual2 / state[k, NORM2])
        # r' H^-1 r in the local metric is at most the sum of r_i^2 / W_i.
        local = max(certificate, np.sqrt(local_residual2 / local_norm2))
        if not local <= accepted_tol:
            # Else bound the smallest eigenvalue, first by the smallest ratio W / w.
            strict, min_ratio = np.sqrt(residual2 / local_norm2), dtype(np.inf)
            for i in range(n):
                inverse = dtype(1) / fixed[f, i] if fixed[f, i] > dtype(0) else dtype(0)
                min_ratio = min(min_ratio, excess[k, i] * inverse)
            # Then by 1/2 - sum max(w / 2 - W, 0) Q_ii, a trace bound.
            trace_bound = dtype(0)
            for i in range(n):
                deficit = max(dtype(-0.5) * fixed[f, i] - excess[k, i], dtype(0))
                if deficit > 0:
                    q_ii = matrix[i, i]
                    for g in range(width):
                        for h in range(width):
                            weighted_core = core[p, g, h] * matrix[max(removed[p, h], 0), i]
                            q_ii += matrix[max(removed[p, g], 0), i] * weighted_core
                    trace_bound += deficit * q_ii
            min_eigenvalue = max(dtype(1) + min_ratio, dtype(0.5) - trace_bound)
            local = strict / np.sqrt(min(max(min_eigenvalue, 1e-7), 1.0))
        state[k, CERT], state[k, LOCAL_CERT], state[k, NORM2_RATIO] = (
            certificate,
            local,
            local_norm2 / state[k, NORM2],
        )
