"""Typed values as JSON, and back: the only place where stored results are made or read.

Dataclasses, named tuples, mappings with string keys, tuples, enums and float arrays are
supported. Floats keep every digit, so what is read equals what was written.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, GetPydanticSchema, TypeAdapter, ValidationError
from pydantic_core import core_schema
from typing_extensions import TypeAliasType

from evidence.errors import InputError

Json = TypeAliasType(
    "Json", "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"
)
"""A JSON value."""

NotStored = Annotated[str, Field(exclude=True)]
"""A text that is left out of the JSON, and empty when read."""

T = TypeVar("T")


def _array_schema(dtype: type[np.generic], kinds: str) -> GetPydanticSchema:
    def validate(value: Any) -> NDArray[np.generic]:
        array = np.asarray(value)
        if array.size and array.dtype.kind not in kinds:
            raise ValueError(f"an array of {dtype.__name__} was expected")
        return array.astype(dtype, copy=False)

    return GetPydanticSchema(
        lambda _type, _handler: core_schema.no_info_plain_validator_function(
            validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda array: array.tolist()
            ),
        )
    )


FloatArray = Annotated[NDArray[np.float64], _array_schema(np.float64, "fiu")]
"""An array of float64 of any shape, stored as nested lists."""
BoolArray = Annotated[NDArray[np.bool_], _array_schema(np.bool_, "b")]
"""An array of booleans of any shape, stored as nested lists."""


@cache
def _adapter(type_: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(type_)


def to_json(value: object, type_: type | None = None) -> Json:
    """A typed value as JSON.

    Args:
        type_: The declared type where it is not the value's class, such as ``dict[str, float]``.
    """
    return _adapter(type(value) if type_ is None else type_).dump_python(value, mode="json")


def to_json_object(value: object) -> Mapping[str, Json]:
    """A dataclass as a JSON object."""
    saved = to_json(value)
    assert isinstance(saved, Mapping)  # a dataclass is stored as an object
    return saved


def from_json(type_: type[T], saved: Json) -> T:
    """The inverse of ``to_json``.

    Raises:
        InputError: the JSON does not describe such a value.
    """
    try:
        return _adapter(type_).validate_python(saved)
    except ValidationError as error:
        first = error.errors()[0]
        place = "/".join(map(str, first["loc"])) or "the value"
        raise InputError(
            f"a stored {getattr(type_, '__name__', type_)} cannot be read: {first['msg']}",
            got=f"{error.error_count()} mistakes, the first at {place}",
            fix="it was not written by this version of exhume; run the audit again",
        ) from error
