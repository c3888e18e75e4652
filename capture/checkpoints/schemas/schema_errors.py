"""Readable form of pydantic validation errors."""

from typing import Any

from pydantic import ValidationError

_TYPE_NAMES = frozenset({"str", "int", "bool", "float", "Exact", "Expression"})


def first_error(error: ValidationError) -> tuple[str, str, Any]:
    """Field, message and input of the first error.

    A union has errors for each of its types; errors other than missing or extra fields are more
    informative and take precedence.
    """
    found = error.errors(include_url=False, include_context=False)
    chosen = min(found, key=lambda each: each["type"] in ("missing", "extra_forbidden"))
    place = ".".join(str(step) for step in chosen["loc"] if not _is_type_name(step))
    message = chosen["msg"].removeprefix("Value error, ")
    return place, message[:1].lower() + message[1:], chosen["input"]


def _is_type_name(step: int | str) -> bool:
    """Whether a step of an error location names a type rather than a key or an index."""
    return step in _TYPE_NAMES or (
        isinstance(step, str) and (step[:1] == "_" or not step.isidentifier())
    )
