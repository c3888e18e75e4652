"""Readable form of pydantic validation errors."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from evidence.errors import InputError

Schema = TypeVar("Schema", bound=BaseModel)

_TYPE_NAMES = frozenset({"str", "int", "bool", "float", "Exact", "Expression"})


def validated(schema: type[Schema], value: Any, failure: str, fix: str | None = None) -> Schema:
    """Validate ``value`` by a pydantic schema.

    Raises:
        InputError: ``failure`` with the first invalid field in parentheses.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        field, problem, got = first_error(error)
        raise InputError(f"{failure} ({field}: {problem})", got=repr(got)[:120], fix=fix) from error


def first_error(error: ValidationError) -> tuple[str, str, Any]:
    """Field, message and input of the first error.

    A union has errors for each of its types; errors other than missing or extra fields are more
    informative and take precedence.
    """
    errors = error.errors(include_url=False, include_context=False)
    chosen = min(errors, key=lambda each: each["type"] in ("missing", "extra_forbidden"))
    field = ".".join(str(step) for step in chosen["loc"] if not _is_type_name(step))
    message = chosen["msg"].removeprefix("Value error, ")
    return field, message[:1].lower() + message[1:], chosen["input"]


def _is_type_name(step: int | str) -> bool:
    """Whether a step of an error location names a type rather than a key or an index."""
    return step in _TYPE_NAMES or (
        isinstance(step, str) and (step[:1] == "_" or not step.isidentifier())
    )
