"""Strict JSON parser for untrusted text.

Python's own parser accepts NaN, silently keeps the last of duplicate keys, reads 1e400 as
infinity and does not limit nesting.
"""

import gc
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from evidence.errors import InputError

MAX_DEPTH = 100
MAX_DIGITS = 300
"""Maximum length of an integer; still within the range of a float."""
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(
    text: str,
    source: str,
    *,
    max_depth: int = MAX_DEPTH,
    allow_surrogates: bool = False,
    fix: str | None = None,
) -> Any:
    """Parse a JSON text.

    Args:
        source: Its origin for error messages, such as "facts.jsonl, line 3".
        max_depth: Maximum nesting depth.
        allow_surrogates: Accept lone surrogates, which cannot be encoded as UTF-8.
        fix: Instruction to the user if the text is invalid.

    Raises:
        InputError: invalid JSON, duplicate keys, too deep nesting, or a number out of range.
    """
    problem = ""
    try:
        with _collection_disabled():
            value = json.loads(
                text,
                parse_constant=_reject_constant,
                parse_float=_finite_float,
                parse_int=_short_integer,
                object_pairs_hook=_unique_keys,
            )
        if not _is_deeper(value, max_depth):
            if not allow_surrogates and _SURROGATE_ESCAPE.search(text):
                json.dumps(value, ensure_ascii=False).encode()
            return value
    except json.JSONDecodeError as error:
        # ``source`` already names the line if the text is a single line of a file.
        line = f", line {error.lineno}" if "\n" in text.rstrip() else ""
        source += line
        problem = f"{error.msg} at column {error.colno}"
    except UnicodeEncodeError:
        problem = "a lone surrogate, which is not valid Unicode"
    except RecursionError:
        pass
    except ValueError as error:
        problem = str(error)
    raise InputError(
        f"{source} is not valid JSON",
        got=problem or f"brackets nested more than {max_depth} deep",
        fix=fix,
    )


@contextmanager
def _collection_disabled() -> Iterator[None]:
    """Disable garbage collection, which dominates the time to create millions of values."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _short_integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, refusing duplicate keys, which parsers resolve differently."""
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:60]!r} occurs twice")
            seen.add(key)
    return result


def _is_deeper(value: Any, max_depth: int) -> bool:
    """Whether nesting exceeds ``max_depth``; iterative, level by level."""
    level = [value]
    for _ in range(max_depth + 1):
        below: list[Any] = []
        for container in level:
            if container and type(container) in (dict, list):
                children = container.values() if type(container) is dict else container
                below += [v for v in children if type(v) is list or type(v) is dict]
        if not below:
            return False
        level = below
    return True
