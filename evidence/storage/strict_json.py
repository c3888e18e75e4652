"""JSON as its standard has it, and no more of it than can be worked with.

Python's reader takes NaN, keeps the last of two equal keys without a word, turns 1e400
into infinity, and lets values nest until something else runs out of stack.
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
"""Digits of a number; one of as many still is a float."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(
    text: str,
    source: str,
    *,
    max_depth: int = MAX_DEPTH,
    allow_surrogates: bool = False,
    fix: str | None = None,
) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        source: What errors call it, such as "facts.jsonl, line 3".
        max_depth: Most brackets within brackets.
        allow_surrogates: Take lone surrogates, which cannot be written as UTF-8.
        fix: What to do where it cannot be read.

    Raises:
        InputError: it is not JSON, an object has a key twice, it nests deeper than
            ``max_depth``, or a number is beyond what can be computed with.
    """
    trouble = ""
    try:
        with _no_collection():
            value = json.loads(
                text,
                parse_constant=_no_constant,
                parse_float=_finite,
                parse_int=_short,
                object_pairs_hook=_once,
            )
        if not _deeper(value, max_depth):
            if not allow_surrogates and _HALF.search(text):
                json.dumps(value, ensure_ascii=False).encode()
            return value
    except json.JSONDecodeError as error:
        # A file of several lines says its own line; a line of a file has only one.
        line = f", line {error.lineno}" if "\n" in text.rstrip() else ""
        source += line
        trouble = f"{error.msg} at column {error.colno}"
    except UnicodeEncodeError:
        trouble = "half of a surrogate pair, which is not valid Unicode"
    except RecursionError:
        pass
    except ValueError as error:
        trouble = str(error)
    raise InputError(
        f"{source} is not valid JSON",
        got=trouble or f"brackets nested more than {max_depth} deep",
        fix=fix,
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Look for no garbage: among millions of new values that is what takes long."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _short(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; readers differ in which of two equal keys they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:60]!r} stands there twice")
            seen.add(key)
    return found


def _deeper(value: Any, most: int) -> bool:
    """Whether values nest deeper, seen level by level and never by recursion."""
    level = [value]
    for _ in range(most + 1):
        below: list[Any] = []
        for each in level:
            if each and type(each) in (dict, list):
                held = each.values() if type(each) is dict else each
                below += [v for v in held if type(v) is list or type(v) is dict]
        if not below:
            return False
        level = below
    return True
