"""Type checks for the fields of settings dataclasses."""

import sys
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from evidence.errors import InputError, quoted


def check_fields(settings: Any) -> None:
    """Check that every field of a dataclass has its declared type; numbers must be finite.

    Supported types are str, int, float, bool, Literal, None, their unions and tuples of them.

    Raises:
        InputError: naming the first invalid field.
    """
    for name, expected in _field_types(type(settings)).items():
        value = getattr(settings, name)
        if not _has_type(value, expected):
            raise InputError(
                f"{name} cannot be used",
                expected=getattr(expected, "__name__", str(expected)),
                got=quoted(value),
            )


@cache
def _field_types(settings: type) -> dict[str, Any]:
    hints = get_type_hints(settings)  # of class variables, too
    return {each.name: hints[each.name] for each in fields(settings)}


def _has_type(value: Any, expected: Any) -> bool:
    origin, parts = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType):
        return any(_has_type(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        return isinstance(value, tuple) and all(_has_type(v, parts[0]) for v in value)
    if expected in (int, float) and isinstance(value, bool):
        return False
    if expected is int:
        return isinstance(value, Integral)
    if expected is float:
        number: Any = value
        return isinstance(value, Real) and abs(number) <= sys.float_info.max
    return value is None if expected is NoneType else isinstance(value, expected)
