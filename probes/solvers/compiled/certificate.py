"""Certificates of the compiled ways for two classes.

``probes.solvers.newton.newton_cg_mixed`` has why.

Passes as ``probes.solvers.compiled.workspace`` has them, with its names.
"""

import numpy as np

from probes.solvers.compiled.math import compiled
from probes.solvers.compiled.workspace import (
    CERTIFICATE,
    LOCAL_CERTIFICATE,
    NORM2,
    NORM2_RATIO,
    RAW_NORM2,
    RESIDUAL2,
)


@compiled
def write_excess(count, slots, place, light, rows, chance, bend):
    """Curvature of ``slots`` beyond the factor's weights."""
    weight, fixed = light
    n = bend.shape[1]
    for o in range(count):
        k = slots[o]
        p = place[k]
        w, f = p % len(weight), p % len(fixed)
        for i in range(n):
            mass = chance[k, i] * weight[w, i]
            bend[k, i] = mass - mass * chance[k, i] - fixed[f, i]
        for g in range(rows.shape[1]):
            if rows[p, g] >= 0:
                bend[k, rows[p, g]] = 0


@compiled
def certify(
    count, slots, place, mild, rows, core, scores, residual, bend, accepted, state
):
    """Certificates in the factor's metric and the own Hessian's; ``swift`` has why."""
    matrix, _, fixed = mild
    kind, n, width = matrix.dtype.type, residual.shape[1], rows.shape[1]
    noise = 16 * np.finfo(matrix.dtype).eps
    for o in range(count):
        k = slots[o]
        p = place[k]
        f = p % len(fixed)
        rest, straight = kind(0), kind(0)
        for i in range(n):
            over = kind(1) / max(fixed[f, i], kind(1e-30))
            rest += residual[k, i] * residual[k, i] * over
        for i in range(n):
            over = kind(1) / max(fixed[f, i] + bend[k, i], kind(1e-30))
            straight += residual[k, i] * residual[k, i] * over
        # The parameters may be far shorter in the own metric than in the factor's.
        shorter, weight = scores.dtype.type(0), kind(0)
        for i in range(n):
            shorter += bend[k, i] * scores[k, i] * scores[k, i]
        for i in range(n):
            weight += fixed[f, i] + bend[k, i]
        size = min(state[k, NORM2], max(state[k, RAW_NORM2] + shorter, 1e-6 * weight))
        square = abs(state[k, RESIDUAL2]) + noise * rest
        now = np.sqrt(square / state[k, NORM2])
        # What the own Hessian makes of it is at most what its rows alone do.
        own = max(now, np.sqrt(straight / size))
        if not own <= accepted:
            # Or what the least of a row's curvature over its weight makes of it.
            strict, least = np.sqrt(square / size), kind(np.inf)
            for i in range(n):
                over = kind(1) / fixed[f, i] if fixed[f, i] > kind(0) else kind(0)
                least = min(least, bend[k, i] * over)
            # 1/2 - W / w, times the leverage w Q_ii, is what a row has lost at most.
            lost = kind(0)
            for i in range(n):
                part = max(kind(-0.5) * fixed[f, i] - bend[k, i], kind(0))
                if part > 0:
                    gain = matrix[i, i]
                    for g in range(width):
                        for h in range(width):
                            across = core[p, g, h] * matrix[max(rows[p, h], 0), i]
                            gain += matrix[max(rows[p, g], 0), i] * across
                    lost += part * gain
            share = max(kind(1) + least, kind(0.5) - lost)
            own = strict / np.sqrt(min(max(share, 1e-7), 1.0))
        state[k, CERTIFICATE], state[k, LOCAL_CERTIFICATE], state[k, NORM2_RATIO] = (
            now,
            own,
            size / state[k, NORM2],
        )
