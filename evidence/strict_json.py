"""JSON as its standard has it, and no more of it than can be worked with.

Python's reader takes NaN, keeps the last of two equal keys without a word, turns 1e400
into infinity, and lets values nest until something else runs out of stack.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from evidence.errors import InputError
from evidence.regular import read_text

MOST_DEPTH = 100
MOST_DIGITS = 300
"""Digits of a number; one of as many still is a float."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(
    text: str, place: str, *, expected: str = "one JSON object", whole: bool = False
) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        place: What errors call it, such as "facts.jsonl, line 3".
        expected: What it should have been.
        whole: Also refuse lone surrogates, which cannot be written again.

    Raises:
        InputError: it is not JSON, names a key twice, nests deeper than
            ``MOST_DEPTH`` or holds a number beyond what can be computed with.
    """
    try:
        value = json.loads(
            text,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short,
            object_pairs_hook=_once,
        )
        if whole and _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        # A file of several lines says its own line; a line of a file has only one.
        line = f", line {error.lineno}" if "\n" in text.rstrip() else ""
        raise InputError(
            f"{place}{line} is not valid JSON",
            expected=expected,
            got=f"{error.msg} at column {error.colno}",
            fix="Correct the line, or write the file again",
        ) from error
    except (ValueError, RecursionError) as error:
        raise _refused(place, expected, _why(error)) from error
    if _deeper(value, MOST_DEPTH):
        raise _refused(place, expected, "brackets nested too deep")
    return value


def read_json_file(path: Path, limit: int, *, expected: str = "one JSON object") -> Any:
    """The value in a JSON file that comes from outside.

    Args:
        path: The file.
        limit: Most bytes it may have.
        expected: What it should hold.

    Raises:
        InputError: as ``evidence.regular.read_text`` and ``parse_json``.
    """
    return parse_json(read_text(path, limit), str(path), expected=expected, whole=True)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _short(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is too large")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} comes twice")
            seen.add(key)
    return found


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "brackets nested too deep"
    if isinstance(error, UnicodeEncodeError):
        return "text with lone surrogates, which is not valid Unicode"
    return str(error)


def _refused(place: str, expected: str, got: str) -> InputError:
    return InputError(
        f"{place} is not valid JSON",
        expected=expected,
        got=got,
        fix="Correct the line, or write the file again",
    )


def _deeper(value: Any, most: int) -> bool:
    """Whether values nest deeper, seen level by level and never by recursion."""
    level = [value]
    for _ in range(most + 1):
        held: list[Any] = []
        for each in level:
            if type(each) is dict:
                held.extend(v for v in each.values() if type(v) in (dict, list))
            elif type(each) is list:
                held.extend(v for v in each if type(v) in (dict, list))
        if not held:
            return False
        level = held
    return True
