"""Each row's own equations solved with the others held: several classes, compiled.

``probes.solvers.compiled.jacobi`` has why, for two. Here a row's classes meet in its
softmax alone: its curvature S = s (diag(p) - p p') is a diagonal less one product, and
so is the system (1 - (w - S) q) d = r that moves the row's dual values by d, q the
diagonals of the classes' factors. S x = r is solved by x = r / (s p) where r sums to 0
over classes, so that in the metric of the own Hessian the squared gradient is at most
the sum of r^2 / (s p): a certificate without a system to solve.

What classes share, no softmax feels and no residual shows. It is taken out of scores
and of alpha = c - w E at the end, which keeps E = Q c. Only
``probes.solvers.compiled.dispatch`` imports this file.
"""

import numpy as np

from probes.solvers.compiled.jacobi import (
    MAX_SCORE_STEP,
    MIN_ITERATIONS,
    RESCORE_BELOW,
    STALL_RATIO,
)
from probes.solvers.compiled.math import compiled, exponential, source_hash


@compiled
def _products(count, place, block, matrices, product, rows, core, few):
    """(class, slot, n) ``product`` = Q ``block`` class by class, rows taken out."""
    classes, _, n = block.shape
    width = rows.shape[1]
    for c in range(classes):
        m = c % len(matrices)
        np.dot(block[c, :count], matrices[m], product[c, :count])
        for k in range(count):
            p = place[k]
            for g in range(width):
                few[g] = product[c, k, max(rows[p, g], 0)]
            for g in range(width):
                r, pushed = max(rows[p, g], 0), few.dtype.type(0)
                for h in range(width):
                    pushed += few[h] * core[p, m, h, g]
                for i in range(n):
                    product[c, k, i] += pushed * matrices[m, r, i]


@compiled
def _diagonals(count, matrices, rows, core, diagonal):
    """(problem, m, n) diagonals of the factors, rows taken out."""
    n, width = matrices.shape[1], rows.shape[1]
    for p in range(count):
        for m in range(len(matrices)):
            for i in range(n):
                diagonal[p, m, i] = matrices[m, i, i]
            for g in range(width):
                for h in range(width):
                    r, q = max(rows[p, g], 0), max(rows[p, h], 0)
                    across = core[p, m, g, h]
                    for i in range(n):
                        both = matrices[m, r, i] * matrices[m, q, i]
                        diagonal[p, m, i] += across * both


@compiled
def _softmax(scores, chance, top, total):
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
            chance[c, i] = part
            total[i] += part
    for i in range(n):
        total[i] = 1 / total[i]
    for c in range(classes):
        for i in range(n):
            chance[c, i] *= total[i]


@compiled
def _evaluate(scores, dual, target, weight, fixed, light, chance, residual, top, total):
    """Residual of one problem and its two bounds; ``chance`` is written too."""
    classes, n = scores.shape
    kind = residual.dtype.type
    _softmax(scores, chance, top, total)
    for i in range(n):
        total[i] = 0
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            pull = (target[c, i] - chance[c, i]) * weight[i]
            left = pull - dual[c, i] + fixed[m, i] * scores[c, i]
            residual[c, i] = kind(left)
            total[i] += left
    for i in range(n):
        total[i] /= classes
    bound, strict = kind(0), kind(0)
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            left = residual[c, i] - kind(total[i])
            residual[c, i] = left
            bound += left * left / max(light[m, i], kind(1e-30))
        for i in range(n):
            mass = kind(chance[c, i] * weight[i])
            strict += residual[c, i] * residual[c, i] / max(mass, kind(1e-30))
    return bound, strict


@compiled
def _class_means(scores, dual, fixed, mean, alpha):
    """(n,) what classes share of one problem's scores and of its alpha."""
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
def _squared_norms(scores, dual, weight, fixed, chance, mean, alpha):
    """Squared norms of one problem's parameters, what classes share taken out.

    In the factor's metric, and in that of the own Hessian.
    """
    classes, n = scores.shape
    _class_means(scores, dual, fixed, mean, alpha)
    size, own, floor, least = 0.0, 0.0, 0.0, 0.0
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            pull = dual[c, i] - fixed[m, i] * scores[c, i] - alpha[i]
            score = scores[c, i] - mean[i]
            size += (pull + fixed[m, i] * score) * score
            own += (pull + weight[i] * chance[c, i] * score) * score
        for i in range(n):
            floor += fixed[m, i]
            least += weight[i] * chance[c, i] * (1 - chance[c, i])
    for i in range(n):
        alpha[i] = 0
    for c in range(classes):
        for i in range(n):
            alpha[i] += chance[c, i] * (scores[c, i] - mean[i])
    for i in range(n):
        own -= weight[i] * alpha[i] * alpha[i]
    # Scores of a thousandth count as nothing: optima at zero have no scale.
    return max(size, 1e-6 * floor / classes), max(own, 1e-6 * least)


@compiled
def _step(weight, fixed, diagonal, chance, residual, inside, slot, room):
    """``inside``[:, slot]: what dual values of one problem change by."""
    classes, n = residual.shape
    kind = residual.dtype.type
    top, low, far, second = room
    for i in range(n):
        top[i], low[i], far[i] = 0, 0, 0
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            share = kind(chance[c, i])
            mass = share * weight[i]
            gain = diagonal[m, i]
            over = kind(1) / (kind(1) + (mass - fixed[m, i]) * gain)
            first = residual[c, i] * over
            residual[c, i] = first
            second[c, i] = share * over
            top[i] += mass * gain * first
            low[i] += mass * gain * second[c, i]
    for i in range(n):
        top[i] = top[i] / (kind(1) - low[i]) * weight[i]
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            change = residual[c, i] + second[c, i] * top[i]
            inside[c, slot, i] = change
            far[i] = max(far[i], abs(change * diagonal[m, i]))
    for i in range(n):
        far[i] = kind(MAX_SCORE_STEP) / max(far[i], kind(MAX_SCORE_STEP))
    for c in range(classes):
        for i in range(n):
            inside[c, slot, i] *= far[i]


@compiled
def _center(scores, dual, fixed, mean, alpha):
    """Take what classes share out of scores and alpha of one problem, in place."""
    classes, n = scores.shape
    _class_means(scores, dual, fixed, mean, alpha)
    for c in range(classes):
        m = c % len(fixed)
        for i in range(n):
            dual[c, i] -= alpha[i] + fixed[m, i] * mean[i]
        for i in range(n):
            scores[c, i] -= mean[i]


def _solve_jacobi(
    loss, exact, mild, rows, cores, dual, scores, certificate, steps, wanted, accepted
):
    """Solve in place what comes down turn by turn; products of both types.

    Args:
        loss: (1 or problem, class, n) targets, (1 or problem, n) weights and (1 or
            problem, m, n) weights of the factors, 0 on rows taken out; float64.
        exact: (m, n, n) Q, float64.
        mild: Q and the weights in the type of most products.
        rows: (problem, g) rows taken out, -1 where there is none.
        cores: (problem, m, g, g) their core, in both types.
        dual: (problem, class, n) to start from and to write to.
        scores: (problem, class, n) that fit them.
        certificate: (problem,) to write to, infinite where a problem was left.
        steps: Turns, at most.
        wanted: Certificate to reach in the factor's metric.
        accepted: Certificate to reach in the metric of the own Hessian.
    """
    target, weight, fixed = loss
    light, light_weight, light_fixed = mild
    core, light_core = cores
    problems, classes, n = scores.shape
    kind, wide = light.dtype, scores.dtype
    chance, second = np.empty((classes, n), wide), np.empty((classes, n), kind)
    residual = np.empty((classes, n), kind)
    inside = np.empty((classes, problems, n), kind)
    pulled = np.empty((classes, problems, n), kind)
    # Few problems at a time need scores of their own type anew.
    sent = np.empty((classes, 8, n), wide)
    came = np.empty((classes, 8, n), wide)
    diagonal = np.empty((problems, len(light), n), kind)
    _diagonals(problems, light, rows, light_core, diagonal)
    top, total = np.empty(n, wide), np.empty(n, wide)
    room = (np.empty(n, kind), np.empty(n, kind), np.empty(n, kind), second)
    width = rows.shape[1]
    few, light_few = np.empty(width, wide), np.empty(width, kind)
    place, live, quick, slow = np.arange(problems), problems, 0, 0
    size, sizes = np.empty(problems), np.empty(problems)
    best = np.full(problems, np.inf)
    sound, due = np.zeros(problems, np.bool_), np.empty(problems, np.int64)
    turn = 0
    while live > 0:
        kept, off = 0, 0
        for k in range(live):
            p = place[k]
            t, w, f = p % len(target), p % len(weight), p % len(fixed)
            bound, strict = _evaluate(
                scores[p],
                dual[p],
                target[t],
                weight[w],
                fixed[f],
                light_fixed[f],
                chance,
                residual,
                top,
                total,
            )
            if turn <= 1 or bound <= wanted**2 * size[p]:
                size[p], sizes[p] = _squared_norms(
                    scores[p], dual[p], weight[w], fixed[f], chance, top, total
                )
            now, own = np.sqrt(bound / size[p]), np.sqrt(strict / sizes[p])
            # See ``relaxation``.
            close = max(now, own) <= RESCORE_BELOW * min(sizes[p] / size[p], 1.0)
            if turn == 0:
                sound[p] = kind == wide or close
            done = sound[p] and now <= wanted and own <= accepted
            stop = done or turn >= steps or not now < np.inf
            if turn % 2 == 0:
                stop |= turn >= MIN_ITERATIONS and not now < STALL_RATIO * best[p]
                best[p] = now
            if stop:
                certificate[p] = max(now, own) if done else np.inf
                _center(scores[p], dual[p], fixed[f], top, total)
                continue
            if not sound[p] and (close or now <= wanted):
                due[off] = p
                off += 1
            _step(
                light_weight[w],
                light_fixed[f],
                diagonal[p],
                chance,
                residual,
                inside,
                kept,
                room,
            )
            place[kept] = p
            kept += 1
        live = kept
        _products(live, place, inside, light, pulled, rows, light_core, light_few)
        quick += live
        for k in range(live):
            p = place[k]
            for c in range(classes):
                for i in range(n):
                    dual[p, c, i] += inside[c, k, i]
                for i in range(n):
                    scores[p, c, i] += pulled[c, k, i]
        # Scores were moved by rough products; make them exact again.
        for begin in range(0, off, 8):
            some = due[begin : min(begin + 8, off)]
            for o in range(len(some)):
                for c in range(classes):
                    for i in range(n):
                        sent[c, o, i] = dual[some[o], c, i]
            _products(len(some), some, sent, exact, came, rows, core, few)
            slow += len(some)
            for o in range(len(some)):
                sound[some[o]] = True
                for c in range(classes):
                    for i in range(n):
                        scores[some[o], c, i] = came[c, o, i]
        turn += 1
    return quick * classes, slow * classes


_run = compiled(_solve_jacobi)


def _compile():
    """The whole way; its copy on disk is for these sources alone."""
    sources = source_hash()

    def relax(
        loss, exact, mild, rows, cores, dual, scores, certificate, steps, wanted, most
    ):
        _ = sources  # numba looks at this file's date, and not at the others'
        return _run(
            loss,
            exact,
            mild,
            rows,
            cores,
            dual,
            scores,
            certificate,
            steps,
            wanted,
            most,
        )

    return compiled(relax, cache=True)


solve_jacobi = _compile()
