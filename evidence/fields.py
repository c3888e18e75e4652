"""Settings in dataclasses: every field is of the type that it is declared with."""

import sys
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from evidence.errors import InputError, quoted


def check_fields(settings: Any) -> None:
    """Check the types of a dataclass's fields; numbers have to be finite.

    Args:
        settings: A dataclass of texts, numbers, truth values, and tuples of them.

    Raises:
        InputError: naming the first field of another type.
    """
    for name, kind in _kinds(type(settings)).items():
        value = getattr(settings, name)
        if not _fits(value, kind):
            raise InputError(
                f"{name} cannot be used",
                expected=getattr(kind, "__name__", str(kind)),
                got=quoted(value),
            )


@cache
def _kinds(settings: type) -> dict[str, Any]:
    return get_type_hints(settings)


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, parts[0]) for v in value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, Integral)
    if kind is float:
        number: Any = value
        return isinstance(value, Real) and abs(number) <= sys.float_info.max
    return value is None if kind is NoneType else isinstance(value, kind)
