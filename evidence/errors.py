"""Errors for users, in up to four parts: what is wrong, expected, got, and a fix.

Quoted values come from untrusted files, names and tensors. ``printable`` makes them safe for a
terminal.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

from evidence import moved

MAX_CHARACTERS = 600
"""Maximum length of a quoted text."""
_TAIL_CHARACTERS = 150


def printable(text: object, max_characters: int | None = MAX_CHARACTERS) -> str:
    """``text`` on one line, with all characters escaped that could forge terminal output.

    Control characters (escape sequences, line breaks), bidirectional and invisible characters
    and lone surrogates are written as in a Python string. The function is idempotent. Long
    texts are shortened in the middle.

    Args:
        text: Any object; converted with ``str``.
        max_characters: None for no limit.
    """
    full = str(text)
    if max_characters is not None and len(full) > max_characters:
        full = f"{full[: max_characters - _TAIL_CHARACTERS - 5]} ... {full[-_TAIL_CHARACTERS:]}"
    shown = full if full.isprintable() else "".join(map(_escaped, full))
    if max_characters is None or len(shown) <= max_characters:
        return shown
    return f"{shown[: max_characters - _TAIL_CHARACTERS - 5]} ... {shown[-_TAIL_CHARACTERS:]}"


def quoted(value: object) -> str:
    """``repr(value)`` made safe for a terminal, or the type's name if ``repr`` fails."""
    try:
        return printable(repr(value))
    except (ValueError, RecursionError):  # such as integers of thousands of digits
        return f"a value of type {type(value).__name__}"


def _escaped(character: str) -> str:
    # Space separators are not "printable", but harmless.
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return repr(character)[1:-1]


class ExhumeError(Exception):
    """Base class of all errors of this toolkit; ``exit_code`` is the exit code of the CLI."""

    exit_code = 1


class InputError(ExhumeError):
    """Invalid input or usage (exit code 2).

    Args:
        wrong: The problem, a sentence without its full stop.
        expected: A description of valid input.
        got: The invalid value.
        fix: An instruction to the user.

    Examples:
        >>> try:
        ...     exhume.read_items("no-such-file.jsonl")
        ... except exhume.InputError as error:
        ...     print(error.exit_code, error.got)
        2 nothing there
    """

    exit_code = 2

    def __init__(
        self,
        wrong: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        fix: str | None = None,
    ):
        self.wrong = printable(wrong)
        self.expected = None if expected is None else printable(expected)
        self.got = None if got is None else printable(got)
        self.fix = None if fix is None else printable(fix)
        parts = [self.wrong.rstrip(".")]
        if expected is not None and got is not None:
            parts.append(f"Expected {self.expected}; got {self.got}")
        elif expected is not None:
            parts.append(f"Expected {self.expected}")
        elif got is not None:
            parts.append(f"Got {self.got}")
        if self.fix is not None:
            parts.append(self.fix.rstrip("."))
        super().__init__(". ".join(parts) + ".")

    def prefixed(self, prefix: str) -> "InputError":
        """The same error with text before its first sentence."""
        return InputError(prefix + self.wrong, expected=self.expected, got=self.got, fix=self.fix)


def check_list(values: Any, name: str) -> Sequence[Any]:
    """Check that ``values`` is a list, tuple or range; a string would be split into letters.

    Args:
        values: The argument.
        name: Plural noun for the error message, such as "sites".

    Raises:
        InputError: ``values`` is something else.
    """
    if not isinstance(values, list | tuple | range):
        raise InputError(f"{name} are not a list", expected="a list or tuple", got=quoted(values))
    return values


__getattr__ = moved.names_of("evidence.errors")
