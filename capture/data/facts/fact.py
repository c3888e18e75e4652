"""One fact of a file, and typed access to the fields of its row."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capture.data.facts.prompts import question_of, question_prompt
from capture.data.files.rows import Row
from evidence.errors import InputError
from evidence.storage.strict_json import parse_json

MAX_TEXT = 1_000_000
"""Limit for the characters of one prompt, question or answer."""
_QUOTED = r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
# A list of texts as Python (commas) or NumPy (spaces) print it.
_PRINTED_LIST = re.compile(rf"\[\s*{_QUOTED}(?:(?:\s*,\s*|\s+){_QUOTED})*\s*,?\s*\]")
_ONE_QUOTED = re.compile(_QUOTED)
_BLANK_LINES = re.compile(r"\n[ \t]*\n")
_ENDS_A_TURN = re.compile(r"[?!.…？！。؟।]['\"’”»)\]]*\s*$")


_BEGINS_A_TURN = re.compile(
    r"\s*(?:tell|describe|explain|list|give|write|summarize|translate|name|state|answer|what|who"
    r"|which|how|why)\b(?!.*:\s*$)",
    re.IGNORECASE,
)
_ENDS_WITH_CUE = re.compile(r"(?::|<\|?[\w ]+\|?>|\[/INST\]|\n)\s*$")


@dataclass(frozen=True)
class Fact:
    """One row with exhume's field names; "" for missing fields.

    Attributes:
        question: The bare question, from which entity and relation may be inferred; "" where
            they may not.
    """

    location: str
    prompt: str
    answer: str
    id: str = ""
    entity: str = ""
    relation: str = ""
    alternatives: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    passage: bool = False
    question: str = ""


def as_prompt(question: str) -> str:
    """The prompt of a question, which may have that form already."""
    return question.strip() if question_of(question) is not None else question_prompt(question)


def is_turn(text: str) -> bool:
    """Whether a text is a whole question or instruction, and no text to be continued."""
    return bool(_ENDS_A_TURN.search(text) or _BEGINS_A_TURN.match(text))


def is_rendered_prompt(text: str) -> bool:
    """Whether a text ends with the cue of an answer, as a chat template writes it."""
    return bool(_ENDS_WITH_CUE.search(text))


def field_text(row: Row, field: str, *, optional: bool = False) -> str:
    """The text in a field.

    Raises:
        InputError: another type, too long, or missing although required.
    """
    value = row.fields.get(field)
    if value is None and optional:
        return ""
    if value is None:
        raise InputError(
            f"{row.location} has no {field}",
            expected=f"text in {field}",
            got="the fields " + (", ".join(map(str, row.fields))[:160] or "none"),
            fix=f"Fill in {field}, or leave the row out",
        )
    if not isinstance(value, str):
        raise wrong_type(row, field, "text", value)
    if not value.strip() and not optional:
        raise InputError(
            f"{row.location} has an empty {field}",
            expected=f"text in {field}",
            got=repr(value),
            fix=f"Fill in {field}, or leave the row out",
        )
    if len(value) > MAX_TEXT:
        raise InputError(
            f"{row.location} is too long: {field} has {len(value):,} characters",
            expected=f"at most {MAX_TEXT:,}",
            fix="Give a running text in a field named text; it is cut into passages",
        )
    return value


def field_label(row: Row, field: str) -> str:
    """The text or whole number in an optional field, as text."""
    value = row.fields.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return field_text(row, field, optional=True)


def field_texts(row: Row, field: str, *, bars: bool = True) -> tuple[str, ...]:
    """A field with several texts: a list, one text, a JSON array in a cell, or a|b|c.

    Args:
        bars: Whether a text is divided at bars.

    Raises:
        InputError: another type, or an empty text among them.
    """
    value = row.fields.get(field)
    if value is None:
        return ()
    if isinstance(value, str):
        value = parse_cell(row, field, value)
    if isinstance(value, str):
        value = [part.strip() for part in value.split("|")] if bars else [value]
    if not isinstance(value, list):
        raise wrong_type(row, field, "a list of texts", value)
    for entry in value:
        if not isinstance(entry, str) or not entry.strip():
            raise wrong_type(row, field, "a list of texts, none empty", entry)
    return tuple(value)


def parse_cell(row: Row, field: str, value: str) -> object:
    """A list or object written into a cell of a table; other texts as they stand."""
    start = value.lstrip()[:1]
    if start == "[" and _PRINTED_LIST.fullmatch(value.strip()) and not _is_json_list(value):
        return [ast.literal_eval(each) for each in _ONE_QUOTED.findall(value)]
    if start == "[" or (start == "{" and value.rstrip().endswith("}")):
        return parse_json(
            value, f"{row.location}: {field}", fix='Write a JSON array such as ["a", "b"], or a|b'
        )
    return value


def _is_json_list(value: str) -> bool:
    try:
        return isinstance(parse_json(value, ""), list)
    except InputError:
        return False


def first_present(present: Mapping[str, object] | frozenset[str], names: Sequence[str]) -> str:
    """The first of some names that is present; "" if none is."""
    return next((name for name in names if name in present), "")


def has_blank_line(text: str) -> bool:
    """Whether a text has several paragraphs."""
    return bool(_BLANK_LINES.search(text))


def wrong_type(row: Row, field: str, expected: str, value: object) -> InputError:
    """The error of a field with a value of the wrong type."""
    return InputError(
        f"{row.location}: {field} has the wrong type",
        expected=expected,
        got=f"{type(value).__name__} {value!r}"[:80],
        fix="Put numbers that are text in quotes"
        if expected == "text" and isinstance(value, int | float)
        else None,
    )
