"""The errors a user can meet, each one sentence for each of four questions.

What is quoted in them comes from files, names and tensors that nobody vouches for:
``printable`` makes it safe for a terminal, here and wherever else we print.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

from evidence import moved

MAX_CHARACTERS = 600
"""Characters of a quoted text that are shown."""
_END = 150


def printable(text: object, max_characters: int | None = MAX_CHARACTERS) -> str:
    """``text`` on one line, with everything that could forge output escaped.

    Control characters (escape sequences, line breaks), characters that change the
    direction of text or are not seen, and lone surrogates are written as in a Python
    string; a second call changes nothing. Long texts lose their middle.

    Args:
        text: Anything; what is not text is shown as ``str`` has it.
        max_characters: Characters to keep; None for all of them.
    """
    whole = str(text)
    if max_characters is not None and len(whole) > max_characters:
        whole = f"{whole[: max_characters - _END - 5]} ... {whole[-_END:]}"
    shown = whole if whole.isprintable() else "".join(map(_escaped, whole))
    if max_characters is None or len(shown) <= max_characters:
        return shown
    return f"{shown[: max_characters - _END - 5]} ... {shown[-_END:]}"


def quoted(value: object) -> str:
    """``value`` as Python writes it, safe for a terminal; its type where it cannot."""
    try:
        return printable(repr(value))
    except (ValueError, RecursionError):  # Whole numbers of thousands of digits.
        return f"a value of type {type(value).__name__}"


def _escaped(character: str) -> str:
    # Narrow and wide spaces are not "printable", but hide nothing.
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return repr(character)[1:-1]


class ExhumeError(Exception):
    """Base of every error raised on purpose. ``exit_code`` is the command line's."""

    exit_code = 1


class InputError(ExhumeError):
    """Input or usage that cannot be worked with (exit code 2).

    Args:
        wrong: What was wrong, a sentence without its full stop.
        expected: What would have been right.
        got: What came instead.
        fix: What to do about it.
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


def check_list(values: Any, name: str) -> Sequence[Any]:
    """Several of something, where one alone would be taken apart letter by letter.

    Raises:
        InputError: it is no list, tuple or range.
    """
    if not isinstance(values, list | tuple | range):
        raise InputError(
            f"{name} are not a list", expected="a list or tuple", got=quoted(values)
        )
    return values


class NotFittedError(ExhumeError):
    """A result was asked of an estimator that has not been fitted."""

    def __init__(self, estimator: object, attribute: str):
        name = type(estimator).__name__
        super().__init__(f"{name} has no {attribute}: call fit first.")


__getattr__ = moved.names_of("evidence.errors")
