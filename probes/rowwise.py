"""Passes over one row of a block, which is one problem, compiled by numba.

They are the expressions of ``probes.swift`` and ``probes.conjugate`` for two classes.
There a block is read once for every operation, and each has to be sent for; here a row
goes through all of them while it is near.

Loops are short and many on purpose: a compiler proves that arrays do not overlap only
where few are written in one loop, and else computes number by number. Sums may be
taken in any order, and products and sums fused; nothing else is relaxed, so that
infinities and NaN stay what they are.

Throughout, k is a slot of a block, p a problem, and w, t, f, o, h the row of an array
that some or all problems share. Nothing but ``probes.rowsolve`` imports this file.
"""

from typing import Any

import numpy as np
from llvmlite import ir  # pyright: ignore
from numba import njit, types  # pyright: ignore
from numba.extending import intrinsic, overload  # pyright: ignore

LOOSE = {"contract", "reassoc", "nsz"}


def compiled(function, cache: bool = False) -> Any:
    """``function``, compiled at its first call; kept on disk where there is room."""
    options = {"fastmath": LOOSE, "error_model": "numpy", "nogil": True}
    try:
        return njit(cache=cache, **options)(function)
    except RuntimeError:  # no place that could be written to
        return njit(**options)(function)


@intrinsic
def _as_float32(typing, bits):
    """The float32 whose bits these are."""

    def make(context, builder, signature, given):
        return builder.bitcast(given[0], ir.FloatType())

    return types.float32(types.int32), make


@intrinsic
def _as_float64(typing, bits):
    """The float64 whose bits these are."""

    def make(context, builder, signature, given):
        return builder.bitcast(given[0], ir.DoubleType())

    return types.float64(types.int64), make


# exp(r) for |r| <= log(2) / 2: interpolated where Chebyshev's polynomial is zero, to
# 1e-8 and 1e-17. log(2) is split so that its first part times a small integer is exact.
R1, R2, R3, R4, R5, R6 = (
    np.float32(part)
    for part in (
        1.00000001077157,
        0.5000000013457727,
        0.16666505260408124,
        0.04166646500604005,
        0.008369148490856347,
        0.0013933641031986701,
    )
)
ONE, HALF, TOP = np.float32(1), np.float32(0.5), np.float32(87.3)
LOG2E, BIG, SMALL = (
    np.float32(part) for part in (1.44269504, 0.693359375, -2.12194440e-4)
)


def logistic(score):
    """1 / (1 + exp(-score)); stands for the two below."""
    return 1 / (1 + np.exp(-score))


def _logistic32(score):
    away = min(max(-score, -TOP), TOP)
    power = np.floor(away * LOG2E + HALF)
    rest = away - power * BIG - power * SMALL
    value = R6 * rest + R5
    value = value * rest + R4
    value = value * rest + R3
    value = value * rest + R2
    value = value * rest + R1
    value = value * rest + ONE
    whole = (np.int32(power) + np.int32(127)) << np.int32(23)
    scale = _as_float32(whole)  # pyright: ignore
    return ONE / (ONE + value * scale)


def _logistic64(score):
    away = min(max(-score, -708.0), 708.0)
    power = np.floor(away * 1.4426950408889634 + 0.5)
    rest = away - power * 6.93145751953125e-1 - power * 1.42860682030941723212e-6
    value = 2.0918129454967065e-09 * rest + 2.5110037605963777e-08
    value = value * rest + 2.755726330147475e-07
    value = value * rest + 2.755724091857897e-06
    value = value * rest + 2.480158733642132e-05
    value = value * rest + 0.00019841269890047113
    value = value * rest + 0.0013888888888879082
    value = value * rest + 0.008333333333319601
    value = value * rest + 0.04166666666666668
    value = value * rest + 0.1666666666666668
    value = value * rest + 0.5
    value = value * rest + 1.0
    value = value * rest + 1.0
    whole = (np.int64(power) + np.int64(1023)) << np.int64(52)
    scale = _as_float64(whole)  # pyright: ignore
    return 1.0 / (1.0 + value * scale)


# Sums in this order alone: taking them in another would undo the split of log(2).
EXACT = {"fastmath": {"contract"}, "error_model": "numpy"}


@overload(logistic, jit_options=EXACT)  # pyright: ignore
def _choose(score):
    return _logistic32 if score == types.float32 else _logistic64


@compiled
def inner(left, right, k):
    """Sum of products of slot k."""
    total = left.dtype.type(0)
    for i in range(left.shape[1]):
        total += left[k, i] * right[k, i]
    return total


@compiled
def put_back(product, k, p, rows, core, strips):
    """Slot k += (core product[rows]) strips, of problem p; ``operators.Removal``."""
    few = rows.shape[1]
    if few == 0:
        return
    pulled = np.empty(few, product.dtype)
    for g in range(few):
        pulled[g] = product[k, rows[p, g]]
    for g in range(few):
        pushed = product.dtype.type(0)
        for h in range(few):
            pushed += pulled[h] * core[p, h, g]
        for i in range(product.shape[1]):
            product[k, i] += pushed * strips[p, g, i]


@compiled
def apply(block, count, matrix, product, place, rows, core, strips):
    """``product`` = Q ``block`` for so many slots, rows removed."""
    np.dot(block[:count], matrix, product[:count])
    for k in range(count):
        put_back(product, k, place[k], rows, core, strips)


@compiled
def exchange(block, k, other):
    """Slots change places."""
    for i in range(block.shape[1]):
        kept = block[k, i]
        block[k, i] = block[other, i]
        block[other, i] = kept


@compiled
def size_of(dual, scores, p, fixed):
    """Squared norm of problem p's parameters in the metric of H."""
    size, floor, f = 0.0, 0.0, p % len(fixed)
    for i in range(dual.shape[1]):
        size += dual[p, i] * scores[p, i]
    for i in range(dual.shape[1]):
        floor += fixed[f, i]
    # Scores of a thousandth count as nothing: optima at zero have no scale.
    return max(size, 1e-6 * floor)


@compiled
def take_residual(k, scores, rest, p, weight, row, chance, residual):
    """Probabilities of a slot, and ``rest`` less their product with the weights."""
    kind, w = residual.dtype.type, p % len(weight)
    for i in range(scores.shape[1]):
        row[i] = logistic(scores[k, i])
    for i in range(scores.shape[1]):
        chance[k, i] = kind(row[i])
    for i in range(scores.shape[1]):
        residual[k, i] = kind(rest[k, i] - row[i] * weight[w, i])


@compiled
def take_bend(k, chance, w, weight, f, fixed, bend):
    """Curvature of a slot beyond ``fixed``."""
    kind = bend.dtype.type
    for i in range(bend.shape[1]):
        mass = chance[k, i] * kind(weight[w, i])
        bend[k, i] = mass - mass * chance[k, i] - fixed[f, i]


@compiled
def take_dual(k, rest, scores, p, weight, target, fixed, out, o):
    """Dual values c = s t - b + w E of slot k, to row o."""
    w, t, f = p % len(weight), p % len(target), p % len(fixed)
    for i in range(out.shape[1]):
        out[o, i] = target[t, i] * weight[w, i] - rest[k, i]
    for i in range(out.shape[1]):
        out[o, i] += fixed[f, i] * scores[k, i]


@compiled
def take_rest(k, dual, scores, p, weight, target, fixed, out):
    """The rest b = s t - c + w E of slot k, c of problem p."""
    w, t, f = p % len(weight), p % len(target), p % len(fixed)
    for i in range(out.shape[1]):
        out[k, i] = target[t, i] * weight[w, i] + fixed[f, i] * scores[k, i]
    for i in range(out.shape[1]):
        out[k, i] -= dual[p, i]


@compiled
def renew(k, o, fresh, f, fixed, scores, rest):
    """Scores of slot k from row o, and the rest that keeps dual values."""
    for i in range(scores.shape[1]):
        rest[k, i] += fixed[f, i] * (fresh[o, i] - scores[k, i])
    for i in range(scores.shape[1]):
        scores[k, i] = fresh[o, i]


@compiled
def go_down(
    k,
    first,
    keep,
    slope,
    w,
    weight,
    f,
    fixed,
    pulled,
    residual,
    row,
    chance,
    scores,
    rest,
    ahead,
    inside,
    image,
):
    """A step of nonlinear conjugate gradients: curvature, length and slope at its end.

    A direction moves scores by ``ahead`` and alpha by ``inside``.
    """
    n = scores.shape[1]
    kind, wide = ahead.dtype.type, scores.dtype.type
    if first:
        for i in range(n):
            inside[k, i] = residual[k, i] - fixed[f, i] * pulled[k, i]
        for i in range(n):
            ahead[k, i] = pulled[k, i]
    else:
        for i in range(n):
            fresh = residual[k, i] - fixed[f, i] * pulled[k, i]
            inside[k, i] = fresh + keep * inside[k, i]
        for i in range(n):
            ahead[k, i] = pulled[k, i] + keep * ahead[k, i]
    bend = kind(0)
    for i in range(n):
        mass = chance[k, i] * kind(weight[w, i])
        value = inside[k, i] + (mass - mass * chance[k, i]) * ahead[k, i]
        image[k, i] = value
        bend += ahead[k, i] * value
    length = kind(0)
    if bend > kind(0) and slope > kind(0):
        length = slope / bend
    change, last = length, kind(0)
    for _ in range(4):
        for i in range(n):
            value = scores[k, i] + wide(change) * ahead[k, i]
            scores[k, i] = value
            row[i] = logistic(value)
        for i in range(n):
            rest[k, i] -= wide(change) * inside[k, i]
        for i in range(n):
            residual[k, i] = kind(rest[k, i] - row[i] * weight[w, i])
        last = kind(0)
        for i in range(n):
            chance[k, i] = kind(row[i])
            last += residual[k, i] * ahead[k, i]
        if not (last < kind(-0.5) * slope and length > kind(0)):
            break
        # The slope turned by over half: back to where a line has its root.
        change = length * (slope / (slope - last) - kind(1))
        length += change
    return bend, length, last


@compiled
def look(k, scores, rest, w, weight, f, fixed, chance, residual, bend):
    """Residual and curvature beyond ``fixed``, in the type of ``fixed``."""
    kind = residual.dtype.type
    for i in range(scores.shape[1]):
        chance[i] = logistic(scores[k, i])
    for i in range(scores.shape[1]):
        residual[k, i] = kind(rest[k, i] - chance[i] * weight[w, i])
    for i in range(scores.shape[1]):
        mass = chance[i] * weight[w, i]
        bend[k, i] = kind(mass - mass * chance[i]) - fixed[f, i]


@compiled
def judge(k, residual, f, fixed, bend):
    """Residual over the weights, and the least of the curvature over them."""
    kind = residual.dtype.type
    size, least = kind(0), kind(np.inf)
    for i in range(residual.shape[1]):
        over = kind(1) / fixed[f, i] if fixed[f, i] > kind(0) else kind(0)
        size += residual[k, i] * residual[k, i] * over
        least = min(least, bend[k, i] * over)
    return size, kind(1) + least


@compiled
def half_less_lost(k, p, f, fixed, bend, matrix, core, strips):
    """How much the own Hessian is of the factor's, by the trace of what it lost."""
    kind, few = bend.dtype.type, core.shape[1]
    lost = kind(0)
    for i in range(bend.shape[1]):
        own = matrix[i, i]
        for g in range(few):
            for h in range(few):
                own += strips[p, g, i] * core[p, g, h] * strips[p, h, i]
        # 1/2 - W / w, times the leverage w Q_ii.
        lost += max(kind(-0.5) * fixed[f, i] - bend[k, i], kind(0)) * own
    return kind(0.5) - lost


@compiled
def certified(k, p, square, size, accepted, residual, bend, mild):
    """Certificates in the factor's metric and the own Hessian's; ``swift`` has why."""
    matrix, fixed, _, core, strips = mild
    f = p % len(fixed)
    lost, share = judge(k, residual, f, fixed, bend)
    noise = 16 * np.finfo(matrix.dtype).eps
    now = np.sqrt((abs(square) + noise * lost) / size)
    own = now / np.sqrt(min(max(share, 1e-7), 1.0))
    if not own <= accepted:
        share = max(share, half_less_lost(k, p, f, fixed, bend, matrix, core, strips))
        own = now / np.sqrt(min(max(share, 1e-7), 1.0))
    return now, own


@compiled
def turn_once(k, first, rate, square, bend, pulled, residual, search, ahead, lift):
    """A step of conjugate gradients up to its product; see ``probes.conjugate``."""
    kind = residual.dtype.type
    n = residual.shape[1]
    if not first:
        for i in range(n):
            search[k, i] = residual[k, i] + rate * search[k, i]
        for i in range(n):
            ahead[k, i] = pulled[k, i] + rate * ahead[k, i]
    stiff = kind(0)
    for i in range(n):
        stiff += ahead[k, i] * (search[k, i] + bend[k, i] * ahead[k, i])
    length = kind(0)
    if stiff > kind(0):
        length = square / stiff
    for i in range(n):
        lift[k, i] += length * ahead[k, i]
    for i in range(n):
        residual[k, i] -= length * (search[k, i] + bend[k, i] * ahead[k, i])


@compiled
def move(k, start, residual, bend, lift, f, fixed, rest, scores):
    """Take the step that conjugate gradients solved for, less what ``fixed`` held."""
    for i in range(start.shape[1]):
        step = start[k, i] - residual[k, i] - bend[k, i] * lift[k, i]
        rest[k, i] -= step - fixed[f, i] * lift[k, i]
    for i in range(start.shape[1]):
        scores[k, i] += lift[k, i]
