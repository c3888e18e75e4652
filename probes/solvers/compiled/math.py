"""Vectorizable exponential and logistic functions for numba.

Only the compiled solvers import this file, because numba takes half a second to import.
"""

import hashlib
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir  # pyright: ignore
from numba import njit, types  # pyright: ignore
from numba.extending import intrinsic, overload  # pyright: ignore

from evidence.progress import waiting_for

FAST_MATH = {"contract", "reassoc", "nsz"}


def source_hash() -> str:
    """sha256 of the sources of this folder, part of the key of compiled copies on disk.

    numba checks the date of the file that holds a function, not of the files it calls.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def compiled(function, cache: bool = False) -> Any:
    """Compile at the first call; cache on disk where a folder is writable."""
    options = {"fastmath": FAST_MATH, "error_model": "numpy", "nogil": True}
    try:
        return njit(cache=cache, **options)(function)
    except RuntimeError:  # no writable folder
        return njit(**options)(function)


def compiled_entry(function) -> Any:
    """As ``compiled``, cached, for a function that Python calls: a wait for the compiler is shown.

    The first call takes seconds, on a new machine half a minute.
    """
    dispatcher, seen = compiled(function, cache=True), set[tuple]()

    @wraps(function)
    def call(*arguments):
        types_given = tuple(_types(arguments))
        if types_given in seen:
            return dispatcher(*arguments)
        seen.add(types_given)
        with waiting_for("compiling the solvers, once on this machine"):
            return dispatcher(*arguments)

    return call


def _types(arguments: tuple) -> Iterator[object]:
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _types(argument)
        else:
            yield getattr(argument, "dtype", type(argument))


@intrinsic
def _as_float32(typing, bits):
    """Reinterpret the bits as float32."""

    def make(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), make


@intrinsic
def _as_float64(typing, bits):
    """Reinterpret the bits as float64."""

    def make(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), make


# exp(r) for |r| <= log(2) / 2, interpolated at Chebyshev nodes to 1e-8 and 1e-17. log(2) is
# split so that its first part times a small integer is exact.
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
LOG2E, LN2_HIGH, LN2_LOW = (np.float32(part) for part in (1.44269504, 0.693359375, -2.12194440e-4))


def exponential(score):
    """exp(score), clipped to normal numbers; placeholder for the two overloads below."""
    return np.exp(score)


def _exponential32(score):
    clipped = min(max(score, -MAX_EXPONENT), MAX_EXPONENT)
    power = np.floor(clipped * LOG2E + HALF)
    remainder = clipped - power * LN2_HIGH - power * LN2_LOW
    value = R6 * remainder + R5
    value = value * remainder + R4
    value = value * remainder + R3
    value = value * remainder + R2
    value = value * remainder + R1
    value = value * remainder + ONE
    exponent_bits = (np.int32(power) + np.int32(127)) << np.int32(23)
    return value * _as_float32(exponent_bits)  # pyright: ignore


def _exponential64(score):
    clipped = min(max(score, -708.0), 708.0)
    power = np.floor(clipped * 1.4426950408889634 + 0.5)
    remainder = clipped - power * 6.93145751953125e-1 - power * 1.42860682030941723212e-6
    value = 2.0918129454967065e-09 * remainder + 2.5110037605963777e-08
    value = value * remainder + 2.755726330147475e-07
    value = value * remainder + 2.755724091857897e-06
    value = value * remainder + 2.480158733642132e-05
    value = value * remainder + 0.00019841269890047113
    value = value * remainder + 0.0013888888888879082
    value = value * remainder + 0.008333333333319601
    value = value * remainder + 0.04166666666666668
    value = value * remainder + 0.1666666666666668
    value = value * remainder + 0.5
    value = value * remainder + 1.0
    value = value * remainder + 1.0
    exponent_bits = (np.int64(power) + np.int64(1023)) << np.int64(52)
    return value * _as_float64(exponent_bits)  # pyright: ignore


# No reassociation: it would undo the split of log(2).
ORDERED_MATH = {"fastmath": {"contract"}, "error_model": "numpy"}


@overload(exponential, jit_options=ORDERED_MATH)  # pyright: ignore
def _choose(score):
    return _exponential32 if score == types.float32 else _exponential64


def logistic(score):
    """1 / (1 + exp(-score)); placeholder for the two overloads below."""
    return 1 / (1 + np.exp(-score))


def _logistic32(score):
    return ONE / (ONE + exponential(-score))


def _logistic64(score):
    return 1.0 / (1.0 + exponential(-score))


@overload(logistic, jit_options=ORDERED_MATH)  # pyright: ignore
def _choose_logistic(score):
    return _logistic32 if score == types.float32 else _logistic64
