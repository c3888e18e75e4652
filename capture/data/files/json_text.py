"""Records of JSON texts: JSON Lines, arrays, wrapped arrays, and tables written by columns."""

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from capture.data.files.rows import SPLIT, Row, choose_split
from evidence.errors import InputError
from evidence.storage.strict_json import parse_json

_AGAIN = "Correct the line, or write the file again"
_WRAPPERS = (
    *("data", "rows", "examples", "items", "records", "instances", "samples", "entries"),
    *("dataset", "questions", "facts"),
)
# Lists of objects that belong to one record.
_OF_A_RECORD = {
    *("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "contents"),
    *("qa", "qas", "qa_pairs", "qa_list", "paragraphs", "text_completion", "prompt", "completion"),
}
# Fields that say what a record is about: its list of facts is no table of a file.
_ABOUT = {*("entity", "name", "title", "subject", "author", "person", "concept", "topic", "edge")}
_MIN_NAMED_GROUPS = 4
_LINES = (".jsonl", ".ndjson")
MAX_LINE_BYTES = 1_000_000
"""Limit for the characters of one line, apart from running text in one of its fields."""


def json_rows(path: Path, text: str, split: str | None = None) -> Iterator[Row]:
    """Yield the records of a JSON text.

    Args:
        path: The path, for locations and error messages.
        split: Name of a split, where the file holds several.

    Raises:
        InputError: invalid JSON, records that are no objects, or several splits and none named.
    """
    lines = _numbered(text)
    first = next(lines, None)
    if first is None:
        return
    second = next(lines, None)
    if first[1].lstrip()[:1] != "[" and second is not None and _is_json(first[1]):
        _no_split(path, split)
        yield from _json_lines(path, text)
        return
    documents = _documents(text)
    if len(documents) > 1 and _is_json(documents[0]):
        _no_split(path, split)
        for number, document in enumerate(documents, 1):
            location = f"{path.name}, item {number}"
            yield Row(location, _record(location, parse_json(document, location, fix=_AGAIN)))
        return
    value = parse_json(text, str(path), fix=_AGAIN)
    one_line = second is None and isinstance(value, dict | str)
    records = _records(path, value, split)
    if records is None:
        _no_split(path, split)
        location = f"{path.name}, line {first[0]}" if one_line else f"{path.name}, item 1"
        if isinstance(value, dict) and len(text) > MAX_LINE_BYTES:
            _check_length(location, text, value)
        yield Row(location, _record(location, value))
        return
    for number, record in enumerate(records, 1):
        location = f"{path.name}, item {number}"
        yield Row(location, _record(location, record, pairs=True))


def _no_split(path: Path, split: str | None) -> None:
    if split is not None:
        choose_split(path, {}, split)


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            yield number, line


def _is_json(text: str) -> bool:
    try:
        parse_json(text, "")
    except InputError:
        return False
    return True


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in _numbered(text):
        location = f"{path.name}, line {number}"
        value = parse_json(line, f"{path}, line {number}", fix=_AGAIN)
        if len(line) > MAX_LINE_BYTES:
            _check_length(f"{path}, line {number}", line, value)
        yield Row(location, _record(location, value))


def _check_length(location: str, line: str, value: object) -> None:
    values = value.values() if isinstance(value, dict) else [value]
    texts = sum(len(each) for each in values if isinstance(each, str))
    if len(line) - texts > MAX_LINE_BYTES:
        raise InputError(
            f"{location} is too long",
            expected=f"at most {MAX_LINE_BYTES:,} characters an item, apart from running text",
            got=f"{len(line):,}",
            fix="Write one item per line, with the fields that the audit needs",
        )


def _documents(text: str) -> list[str]:
    """Objects of several lines one after the other, each begun at the start of a line."""
    if not text.lstrip().startswith("{"):
        return [text]
    return [part for part in re.split(r"(?<=\})\s*\n(?=\{)", text) if part.strip()]


def _record(location: str, value: object, *, pairs: bool = False) -> dict[str, object]:
    if isinstance(value, str):
        return {"text": value}
    if pairs and isinstance(value, list) and len(value) == 2:
        if all(isinstance(each, str) for each in value):
            return {"question": value[0], "answer": value[1]}
    if not isinstance(value, dict):
        raise InputError(
            f"{location} is not an item",
            expected='an object such as {"prompt": ..., "answer": ...}',
            got=f"{type(value).__name__} {value!r}"[:80],
        )
    inner = value.get("row")
    if isinstance(inner, dict) and set(value) <= {"row", "row_idx", "truncated_cells"}:
        return inner  # the answer of the dataset viewer
    return value


def _records(path: Path, value: object, split: str | None) -> list[object] | None:
    """The records of a document; None where the document is one record itself."""
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], dict):
            inner = _records(path, value[0], split) if _splits(value[0]) else None
            if inner is not None:
                return inner
        _no_split(path, split)
        return value
    if not isinstance(value, dict) or not value:
        return None
    if splits := _splits(value):
        return _of_splits(path, splits, split)
    asked = [name for name, each in value.items() if name.endswith("?") and isinstance(each, str)]
    if len(asked) == len(value) >= 2:
        _no_split(path, split)
        return [{"question": name, "answer": value[name]} for name in value]
    for name in () if _ABOUT & set(_lower(value)) else _WRAPPERS:
        wrapped = _lower(value).get(name)
        if _is_table(wrapped) or (
            isinstance(wrapped, list) and name in ("data", "rows") and _columns_of(value)
        ):
            _no_split(path, split)
            return _table(value, wrapped)
    # A line of JSON Lines is a record, whose fields may be lists.
    found = _by_columns(value) if path.suffix.lower() not in _LINES else None
    if found is not None:
        _no_split(path, split)
    return found


def _lower(value: Mapping[str, object]) -> dict[str, object]:
    return {name.strip().lower(): each for name, each in value.items()}


def _is_table(value: object) -> bool:
    if not isinstance(value, list) or not value or not all(isinstance(r, dict) for r in value):
        return False
    return not _is_conversation(value)


def _is_conversation(value: object) -> bool:
    """Whether a value is a list of messages, which belong to one record."""
    return isinstance(value, list) and any(
        isinstance(each, dict)
        and ({"role", "content"} <= set(each) or {"from", "value"} <= set(each))
        for each in value
    )


def _columns_of(value: Mapping[str, object]) -> list[str] | None:
    columns = value.get("columns")
    if isinstance(columns, list) and all(isinstance(name, str) for name in columns):
        return columns  # pyright: ignore[reportReturnType]
    return None


def _table(value: Mapping[str, object], wrapped: object) -> list[object]:
    rows: list[object] = wrapped if isinstance(wrapped, list) else []
    columns = _columns_of(value)
    if columns and rows and all(isinstance(r, list) and len(r) == len(columns) for r in rows):
        return [dict(zip(columns, row, strict=True)) for row in rows]  # pyright: ignore
    return rows


def _splits(value: Mapping[str, object]) -> dict[str, list[object]]:
    """Splits or groups of a document: every value is a table, or a table by columns."""
    if any(name in _OF_A_RECORD or name in _WRAPPERS for name in _lower(value)):
        return {}
    found: dict[str, list[object]] = {}
    for name, part in value.items():
        if isinstance(part, list) and _is_table(part):
            found[name] = part
        elif (
            isinstance(part, list)
            and part
            and SPLIT.fullmatch(name)
            and all(isinstance(each, str) for each in part)
        ):
            found[name] = part
        elif isinstance(part, dict) and SPLIT.fullmatch(name) and (rows := _by_columns(part)):
            found[name] = rows
        elif isinstance(part, list | dict) and part:
            return {}
    return found if all(SPLIT.fullmatch(n) for n in found) or len(found) == len(value) else {}


def _of_splits(path: Path, splits: dict[str, list[object]], split: str | None) -> list[object]:
    named = not any(map(SPLIT.fullmatch, splits))
    if split is None and named and len(splits) >= _MIN_NAMED_GROUPS:
        return [
            {"entity": name} | row for name, rows in splits.items() for row in map(_as_dict, rows)
        ]
    return choose_split(path, splits, split)


def _as_dict(row: object) -> dict[str, object]:
    return row if isinstance(row, dict) else {"text": row}


def _is_column_of_texts(value: object) -> bool:
    """Whether a list holds two or more texts: prompts of rows, rather than turns of one."""
    return isinstance(value, list) and len(value) > 1 and all(isinstance(x, str) for x in value)


def _by_columns(value: Mapping[str, object]) -> list[object] | None:
    """Rows of a table written by columns, or by row names; None for one record."""
    parts = list(value.values())
    inner = {name for name, part in _lower(value).items() if not _is_column_of_texts(part)}
    belongs = bool(_OF_A_RECORD & inner) or any(map(_is_conversation, parts))
    if all(isinstance(part, list) for part in parts) and not belongs:
        lengths = {len(part) for part in parts if isinstance(part, list)}
        if len(lengths) == 1:
            rows = zip(*parts, strict=True)  # pyright: ignore[reportArgumentType]
            return [dict(zip(value, row, strict=True)) for row in rows]
        return None
    if not all(isinstance(part, dict) and part for part in parts):
        return None
    tables: list[dict[str, object]] = parts  # pyright: ignore[reportAssignmentType]
    names = [tuple(part) for part in tables]
    if len(set(names)) == 1 and all(key.isdigit() for key in names[0]):
        return [{c: part[key] for c, part in value.items()} for key in names[0]]  # pyright: ignore
    if len(tables) >= 2 and len({frozenset(keys) for keys in names}) == 1:
        digits = all(key.isdigit() for key in value)
        return [
            part if digits or "name" in part else {"name": key} | part
            for key, part in zip(value, tables, strict=True)
        ]
    return None
