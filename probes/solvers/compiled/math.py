"""The logistic function as numba compiles it, many numbers at once.

Nothing but the compiled solver imports this file, as numba takes half a second to.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir  # pyright: ignore
from numba import njit, types  # pyright: ignore
from numba.extending import intrinsic, overload  # pyright: ignore

FAST_MATH = {"contract", "reassoc", "nsz"}


def source_hash() -> str:
    """sha256 over the sources of this folder, for which a compiled copy is made.

    numba looks at the date of the file that holds a function, and not at the others'.
    """
    sources = sorted(Path(__file__).parents[2].glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def compiled(function, cache: bool = False) -> Any:
    """``function``, compiled at its first call; kept on disk where there is room."""
    options = {"fastmath": FAST_MATH, "error_model": "numpy", "nogil": True}
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
ONE, HALF, MAX_EXPONENT = np.float32(1), np.float32(0.5), np.float32(87.3)
LOG2E, LN2_HIGH, LN2_LOW = (
    np.float32(part) for part in (1.44269504, 0.693359375, -2.12194440e-4)
)


def exponential(score):
    """exp(score), cut off where numbers are no longer normal; for the two below."""
    return np.exp(score)


def _exponential32(score):
    away = min(max(score, -MAX_EXPONENT), MAX_EXPONENT)
    power = np.floor(away * LOG2E + HALF)
    rest = away - power * LN2_HIGH - power * LN2_LOW
    value = R6 * rest + R5
    value = value * rest + R4
    value = value * rest + R3
    value = value * rest + R2
    value = value * rest + R1
    value = value * rest + ONE
    whole = (np.int32(power) + np.int32(127)) << np.int32(23)
    return value * _as_float32(whole)  # pyright: ignore


def _exponential64(score):
    away = min(max(score, -708.0), 708.0)
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
    return value * _as_float64(whole)  # pyright: ignore


# Sums in this order alone: taking them in another would undo the split of log(2).
ORDERED_MATH = {"fastmath": {"contract"}, "error_model": "numpy"}


@overload(exponential, jit_options=ORDERED_MATH)  # pyright: ignore
def _choose(score):
    return _exponential32 if score == types.float32 else _exponential64


def logistic(score):
    """1 / (1 + exp(-score)); stands for the two below."""
    return 1 / (1 + np.exp(-score))


def _logistic32(score):
    return ONE / (ONE + exponential(-score))


def _logistic64(score):
    return 1.0 / (1.0 + exponential(-score))


@overload(logistic, jit_options=ORDERED_MATH)  # pyright: ignore
def _choose_logistic(score):
    return _logistic32 if score == types.float32 else _logistic64
