"""The short way to many optima of ``probes.swift``, compiled: two classes, CPU.

What ``swift.approach`` does with torch expressions is one function of numba's here.
Products are BLAS's as they are there; what lies between them goes row by row
(``probes.rowwise``). As nothing has to be sent for, blocks are small and each problem
stops by itself: one that is done changes places with the last that is not. As passes
cost little, its state is in the type of the answer all the way down, which leaves
nothing to polish of most problems.

Problems share rows of arrays: (1, n) or (problem, n). Arguments come as tuples:

    loss    weight, target and the factor's weights, in the type of the answer
    exact   Q, and the rows taken out, their core and their strips; likewise
    mild    Q, the factor's weights, the rows taken out, their core and their strips, in
            the type of most products

``probes.fused`` decides when this is used; nothing else imports this file, as numba
takes half a second to import.
"""

import hashlib
from pathlib import Path

import numpy as np

from probes.rowwise import (
    apply,
    certified,
    compiled,
    exchange,
    go_down,
    inner,
    look,
    move,
    renew,
    size_of,
    take_bend,
    take_dual,
    take_residual,
    take_rest,
    turn_once,
)

BLOCK = 128
"""Problems solved together: so many fill a product, and their rows stay near."""


@compiled
def _swap(k, other, place, size, before, first, least, square, rate):
    """Numbers of two slots change places."""
    place[k], place[other] = place[other], place[k]
    size[k], size[other] = size[other], size[k]
    before[k], before[other] = before[other], before[k]
    first[k], first[other] = first[other], first[k]
    least[k], least[other] = least[other], least[k]
    square[k], square[other] = square[other], square[k]
    rate[k], rate[other] = rate[other], rate[k]


@compiled
def _descend(
    start, count, loss, exact, mild, dual, scores, certificate, blocks, steps, limits
):
    """Nonlinear conjugate gradients; see ``swift._descend``. Who is left, and products.

    The state and its residual are in the type of the answer, directions and products
    in that of ``mild``. What scores lose to those products is made good once, near the
    optimum, and the directions go on: few problems need another solver.

    ``dual``, ``scores`` and ``certificate`` (of all problems) are written in place.
    """
    weight, target, fixed = loss
    matrix, rows, core, strips = exact
    fast, heavy, _, mild_core, mild_strips = mild
    residual, pulled, chance, ahead, inside, image = blocks[:6]
    wanted, accepted, _, _, _, near = limits
    n = scores.shape[1]
    kind, wide = fast.dtype.type, matrix.dtype
    own_scores, rest = np.empty((count, n), wide), np.empty((count, n), wide)
    sent, came = np.empty((count, n), wide), np.empty((count, n), wide)
    row = np.empty(n, wide)
    place, left = np.empty(count, np.int64), np.empty(count, np.int64)
    size, best = np.empty(count), np.full(count, np.inf)
    bend, length = np.zeros(count, fast.dtype), np.zeros(count, fast.dtype)
    last = np.zeros(count, fast.dtype)
    back, asked = np.empty(count, np.int64), np.empty(count, np.int64)
    exactly, due = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    for k in range(count):
        p = start + k
        place[k] = p
        size[k] = size_of(dual, scores, p, fixed)
        for i in range(n):
            own_scores[k, i] = scores[p, i]
        take_rest(k, dual, own_scores, p, weight, target, fixed, rest)
        take_residual(k, own_scores, rest, p, weight, row, chance, residual)
    live, gone, turn, quick, slow = count, 0, 0, 0, 0
    while live > 0:
        apply(residual, live, fast, pulled, place, rows, mild_core, mild_strips)
        quick += live
        # From the last: a slot that is freed gets the last one's problem.
        for k in range(live - 1, -1, -1):
            p = place[k]
            square = inner(residual, pulled, k)
            now = np.sqrt(abs(square) / size[k])
            if turn == 0:
                # Short ways in one type lose no more than their ends are rounded.
                exactly[k] = fast.dtype == wide and now <= 1
            arrived = exactly[k] and now <= wanted
            stop = arrived or turn + 1 >= steps
            if turn % 2 == 0:
                stop |= not (square < 0.8 * best[k])
                best[k] = square
            if stop:
                for i in range(n):
                    scores[p, i] = own_scores[k, i]
                take_dual(k, rest, own_scores, p, weight, target, fixed, dual, p)
                certificate[p] = np.inf
                if arrived:
                    f = p % len(heavy)
                    take_bend(k, chance, p % len(weight), weight, f, heavy, image)
                    norm = size_of(dual, scores, p, fixed)
                    _, own = certified(
                        k, p, square, norm, accepted, residual, image, mild
                    )
                    arrived = own <= accepted
                    certificate[p] = own if arrived else np.inf
                if not arrived:
                    left[gone] = p
                    gone += 1
                live -= 1
                place[k], size[k], best[k] = place[live], size[live], best[live]
                bend[k], length[k], last[k] = bend[live], length[live], last[live]
                exactly[k], due[k] = exactly[live], due[live]
                for block in (residual, chance, ahead, inside, image):
                    for i in range(n):
                        block[k, i] = block[live, i]
                for block in (own_scores, rest):
                    for i in range(n):
                        block[k, i] = block[live, i]
                continue
            keep, slope = kind(0), square
            if turn > 0 and length[k] > kind(0):
                # A step that was none leaves no direction to go on from.
                turned = inner(pulled, image, k)
                keep = -min(turned, kind(0)) / bend[k]
                slope = square + keep * last[k]
            bend[k], length[k], last[k] = go_down(
                k,
                turn == 0,
                keep,
                slope,
                p % len(weight),
                weight,
                p % len(heavy),
                heavy,
                pulled,
                residual,
                row,
                chance,
                own_scores,
                rest,
                ahead,
                inside,
                image,
            )
            due[k] = not exactly[k] and now <= near
        off = 0
        for k in range(live):
            if due[k]:
                # Scores were moved by rough products; make them exact again.
                p = place[k]
                take_dual(k, rest, own_scores, p, weight, target, fixed, sent, off)
                asked[off], back[off] = p, k
                off += 1
        if off > 0:
            apply(sent, off, matrix, came, asked, rows, core, strips)
            slow += off
            for o in range(off):
                k = back[o]
                renew(k, o, came, asked[o] % len(fixed), fixed, own_scores, rest)
                take_residual(
                    k, own_scores, rest, asked[o], weight, row, chance, residual
                )
                exactly[k], due[k] = True, False
        turn += 1
    return left[:gone], quick, slow


@compiled
def _polish(left, loss, exact, mild, dual, scores, certificate, blocks, limits):
    """Newton steps on exact residuals; see ``swift._polish``. Products of both types.

    ``dual``, ``scores`` and ``certificate`` (of all problems) are written in place.
    """
    weight, target, fixed = loss
    matrix, rows, core, strips = exact
    fast, heavy, _, mild_core, mild_strips = mild
    residual, pulled, begun, lift, bend, search, ahead, _ = blocks
    wanted, accepted, turns, cycles, finest, near = limits
    n, count = scores.shape[1], len(left)
    kind = fast.dtype.type
    place = left.copy()
    wide = matrix.dtype
    own_scores, rest = np.empty((count, n), wide), np.empty((count, n), wide)
    sent, came = np.empty((count, n), wide), np.empty((count, n), wide)
    size, before = np.empty(count), np.full(count, np.inf)
    first, least = np.empty(count), np.empty(count)
    square, rate = np.empty(count, fast.dtype), np.empty(count, fast.dtype)
    chance = np.empty(n, wide)
    back, asked = np.empty(count, np.int64), np.empty(count, np.int64)
    for k in range(count):
        for i in range(n):
            sent[k, i] = dual[left[k], i]
    apply(sent, count, matrix, own_scores, place, rows, core, strips)
    quick, slow = 0, count
    for k in range(count):
        p = place[k]
        take_rest(k, dual, own_scores, p, weight, target, fixed, rest)
        floor, f = 0.0, p % len(fixed)
        for i in range(n):
            floor += fixed[f, i]
        size[k] = max(inner(sent, own_scores, k), 1e-6 * floor)
    live = count
    for turn in range(turns):
        for k in range(live):
            p = place[k]
            w, f = p % len(weight), p % len(heavy)
            look(k, own_scores, rest, w, weight, f, heavy, chance, residual, bend)
        apply(residual, live, fast, pulled, place, rows, mild_core, mild_strips)
        quick += live
        for k in range(live - 1, -1, -1):
            p = place[k]
            value = inner(residual, pulled, k)
            now, own = certified(k, p, value, size[k], accepted, residual, bend, mild)
            # At the floor of rounding a turn more brings nothing.
            done = (now <= wanted or now > 0.5 * before[k]) and own <= accepted
            if done or turn + 1 == turns:
                for i in range(n):
                    scores[p, i] = own_scores[k, i]
                take_dual(k, rest, own_scores, p, weight, target, fixed, dual, p)
                certificate[p] = max(now, own) if done else np.inf
                live -= 1
                place[k], size[k], before[k] = place[live], size[live], before[live]
                first[k], least[k], square[k] = first[live], least[live], square[live]
                for block in (residual, begun, lift, bend, search, ahead):
                    for i in range(n):
                        block[k, i] = block[live, i]
                for i in range(n):
                    own_scores[k, i] = own_scores[live, i]
                for i in range(n):
                    rest[k, i] = rest[live, i]
                continue
            before[k], square[k], first[k], rate[k] = now, value, value, kind(1)
            enough = min(max(0.3 * wanted / now, finest), 0.1)
            least[k] = value * enough**2
            for i in range(n):
                begun[k, i] = residual[k, i]
                search[k, i] = residual[k, i]
            for i in range(n):
                ahead[k, i] = pulled[k, i]
                lift[k, i] = kind(0)
        if live == 0:
            break
        for k in range(live):
            rate[k] = kind(1)
        running = live
        for cycle in range(cycles):
            for k in range(running - 1, -1, -1):
                turn_once(
                    k,
                    cycle == 0,
                    rate[k],
                    square[k],
                    bend,
                    pulled,
                    residual,
                    search,
                    ahead,
                    lift,
                )
                # Expected of this step what the last one brought, it was the last.
                if square[k] * rate[k] <= least[k]:
                    running -= 1
                    _swap(k, running, place, size, before, first, least, square, rate)
                    for block in (residual, pulled, begun, lift, bend, search, ahead):
                        exchange(block, k, running)
                    exchange(own_scores, k, running)
                    exchange(rest, k, running)
            if running == 0:
                break
            apply(residual, running, fast, pulled, place, rows, mild_core, mild_strips)
            quick += running
            for k in range(running - 1, -1, -1):
                fresh = max(inner(residual, pulled, k), kind(0))
                # Growth is rounding, not progress: too stiff for this type.
                stop = fresh <= least[k] or not fresh <= 1e4 * first[k]
                rate[k] = fresh / square[k] if square[k] > kind(0) else kind(0)
                square[k] = fresh
                if stop or cycle + 1 == cycles:
                    running -= 1
                    _swap(k, running, place, size, before, first, least, square, rate)
                    for block in (residual, pulled, begun, lift, bend, search, ahead):
                        exchange(block, k, running)
                    exchange(own_scores, k, running)
                    exchange(rest, k, running)
        off = 0
        for k in range(live):
            p = place[k]
            f = p % len(heavy)
            move(k, begun, residual, bend, lift, f, heavy, rest, own_scores)
            if not before[k] <= near:
                # Scores were moved by rough products; make them exact again.
                take_dual(k, rest, own_scores, p, weight, target, fixed, sent, off)
                back[off], asked[off] = k, p
                off += 1
        if off > 0:
            apply(sent, off, matrix, came, asked, rows, core, strips)
            slow += off
            for o in range(off):
                f = asked[o] % len(fixed)
                renew(back[o], o, came, f, fixed, own_scores, rest)
    return quick, slow


def _compile():
    """The whole way; its copy on disk is for these sources alone."""
    own = Path(__file__).with_name("rowwise.py").read_bytes()
    sources = hashlib.sha256(own + Path(__file__).read_bytes()).hexdigest()

    def approach(loss, exact, mild, dual, scores, certificate, steps, limits):
        _ = sources  # numba looks at this file's date, and not at the other's
        total, n = scores.shape
        size = min(BLOCK, total)
        kind = mild[0].dtype
        blocks = (
            np.empty((size, n), kind),
            np.empty((size, n), kind),
            np.empty((size, n), kind),
            np.empty((size, n), kind),
            np.empty((size, n), kind),
            np.empty((size, n), kind),
            np.empty((size, n), kind),
            np.empty((size, n), kind),
        )
        quick, slow = 0, 0
        for start in range(0, total, size):
            count = min(size, total - start)
            left = np.arange(start, start + count)
            if steps > 0:
                left, fast, exactly = _descend(
                    start,
                    count,
                    loss,
                    exact,
                    mild,
                    dual,
                    scores,
                    certificate,
                    blocks,
                    steps,
                    limits,
                )
                quick += fast
                slow += exactly
            if len(left) > 0:
                fast, exactly = _polish(
                    left, loss, exact, mild, dual, scores, certificate, blocks, limits
                )
                quick += fast
                slow += exactly
        return quick, slow

    return compiled(approach, cache=True)


approach = _compile()
