"""Rows of untrusted JSON Lines, JSON, CSV and Parquet files."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from capture.data.files.parquet import parquet_rows
from evidence.errors import InputError
from evidence.storage.files import MAX_JSON_BYTES
from evidence.storage.regular_files import open_regular, read_text
from evidence.storage.strict_json import parse_json

MAX_FILE_BYTES = 2**26
"""Limit for the size on disk and unpacked."""
MAX_LINE_BYTES = 1_000_000
"""Limit for one record of a line-based file."""
MAX_ROWS = 1_000_000
MAX_FIELDS = 1000
"""Limit for the number of different fields or columns."""
_SMALLER = "Keep the items that the audit needs"
_AGAIN = "Correct the line, or write the file again"


@dataclass(frozen=True)
class Row:
    """One record and its location, such as "facts.jsonl, line 3"."""

    location: str
    fields: dict[str, object]


def read_rows(path: Path) -> list[Row]:
    """Read all records of a file; the format is recognized by content, or by name for CSV.

    Empty CSV cells and JSON nulls are left out.

    Raises:
        InputError: the file is missing, empty, too large, in another format or invalid; the
            message names the line.
    """
    with open_regular(path, MAX_FILE_BYTES, fix=_SMALLER) as file:
        start = file.read(4096)
        file.seek(0)
        rows = list(_rows(path, file, start))
    if not rows:
        raise InputError(
            f"{path} is empty",
            expected="one item or more",
            got="no record",
            fix="Check that the file is complete",
        )
    return rows


def _rows(path: Path, file: BinaryIO, start: bytes) -> Iterator[Row]:
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    kind = path.suffix.lower()
    if start[:4] == b"PAR1":
        rows = (
            Row(f"{path.name}, row {number}", record)
            for number, record in parquet_rows(
                path, file, max_bytes=MAX_FILE_BYTES, max_rows=MAX_ROWS, max_columns=MAX_FIELDS
            )
        )
    elif kind in (".csv", ".tsv"):
        rows = _csv(path, file, "\t" if kind == ".tsv" else None)
    elif first == b"[":
        rows = _array(path)
    elif first in (b"{", b"") or kind in (".json", ".jsonl", ".ndjson"):
        rows = _jsonl(path, file)
    else:
        raise InputError(
            f"{path} has an unsupported format",
            expected="JSON Lines, JSON, CSV or Parquet",
            got=f"a file that starts with {start[:12]!r}",
            fix="Convert it to JSON Lines, one object per line",
        )
    names: set[str] = set()
    for count, row in enumerate(rows, 1):
        if count > MAX_ROWS:
            raise InputError(
                f"{path} has too many rows", expected=f"at most {MAX_ROWS:,}", fix=_SMALLER
            )
        names.update(row.fields)
        if len(names) > MAX_FIELDS:
            raise _too_many_fields(row.location)
        yield Row(row.location, {k: v for k, v in row.fields.items() if v is not None})


def _too_many_fields(location: str) -> InputError:
    return InputError(
        f"{location} has too many different fields",
        expected=f"at most {MAX_FIELDS:,} in all of the file",
        fix="Keep the fields that the audit needs",
    )


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise _too_long(path, number)
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number} is not valid UTF-8",
                expected="UTF-8 text",
                got=f"byte {raw[error.start]:#04x} at place {error.start + 1}",
                fix="Save the file again as UTF-8",
            ) from error


def _too_long(path: Path, number: int) -> InputError:
    return InputError(
        f"{path}, line {number} is too long",
        expected=f"at most {MAX_LINE_BYTES:,} bytes an item",
        got="more",
        fix="Write one item per line, without its source text",
    )


def _jsonl(path: Path, file: BinaryIO) -> Iterator[Row]:
    for number, line in _lines(path, file):
        if line.strip():
            location = f"{path.name}, line {number}"
            value = parse_json(line, f"{path}, line {number}", fix=_AGAIN)
            yield Row(location, _record(location, value))


def _array(path: Path) -> Iterator[Row]:
    """Rows of a JSON array, which is read at once."""
    text = read_text(path, min(MAX_JSON_BYTES, MAX_FILE_BYTES), fix="Write JSON Lines")
    records = parse_json(text, str(path), fix=_AGAIN)
    for number, record in enumerate(records if isinstance(records, list) else [], 1):
        location = f"{path.name}, item {number}"
        yield Row(location, _record(location, record))


def _record(location: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InputError(
            f"{location} is not an item",
            expected='an object such as {"prompt": ..., "answer": ...}',
            got=f"{type(value).__name__} {value!r}"[:80],
        )
    return value


def _csv(path: Path, file: BinaryIO, delimiter: str | None) -> Iterator[Row]:
    numbered = _lines(path, file)
    try:
        _, header = next(numbered)
    except StopIteration:
        return
    if delimiter is None:  # spreadsheets use semicolons in many locales
        delimiter = ";" if ";" in header and "," not in header else ","

    pending = 0  # size of the current record

    def lines() -> Iterator[str]:
        nonlocal pending
        yield header
        for number, line in numbered:
            pending += len(line)
            if pending > MAX_LINE_BYTES:
                raise _too_long(path, number)
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for cells in reader:
            pending = 0
            location = f"{path.name}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                if len(names) > MAX_FIELDS:
                    raise _too_many_fields(location)
                if len(set(names)) < len(names):
                    raise InputError(
                        f"{location}: two columns have the same name",
                        expected="every column name once",
                        got=", ".join(names)[:200],
                    )
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{location} has another number of cells than the header",
                    expected=f"{len(names)} cells",
                    got=str(len(cells)),
                    fix="Put text that holds the separator in double quotes",
                )
            yield Row(location, {n: c for n, c in zip(names, cells, strict=True) if c.strip()})
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num} is not valid CSV",
            expected="cells in matching double quotes, of at most 131,072 characters",
            got=str(error),
            fix=_AGAIN,
        ) from error
