"""Rows of untrusted files: JSON, CSV, Parquet, Arrow, plain text, and any of them in gzip."""

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from capture.data.files.arrow_ipc import FILE_MAGIC, STREAM_MAGIC, arrow_rows
from capture.data.files.csv_text import csv_rows, has_known_header, too_many_fields
from capture.data.files.json_text import json_rows
from capture.data.files.parquet import parquet_rows
from capture.data.files.plain_text import text_rows
from capture.data.files.rows import Row as Row
from capture.data.files.saved_dataset import is_saved_dataset, saved_files
from capture.data.files.text_encoding import decode_text
from evidence.errors import InputError
from evidence.storage.regular_files import file_kind, is_file, is_folder, list_folder, read_bytes

MAX_FILE_BYTES = 2**26
"""Limit for the size on disk and unpacked."""
MAX_LINE_BYTES = 1_000_000
"""Limit for one record of a CSV file."""
MAX_ROWS = 1_000_000
MAX_FIELDS = 1000
"""Limit for the number of different fields or columns."""
_SMALLER = "Keep the items that the audit needs"
_JSON, _CSV, _TEXT = (".json", ".jsonl", ".ndjson"), (".csv", ".tsv"), (".txt", ".text", ".md")


@dataclass(frozen=True)
class Table:
    """The records of a file, and what had to be guessed to read them."""

    rows: list[Row]
    notes: tuple[str, ...] = ()


def read_table(path: Path) -> Table:
    """Read all records of a file or of a folder of save_to_disk.

    The format is recognized by content, and by name for CSV and plain text. ``FILE/SPLIT`` names
    a split of a JSON file. Empty CSV cells and JSON nulls are left out.

    Raises:
        InputError: the file is missing, empty, too large, in another format or invalid; the
            message names the line.
    """
    split = None
    if file_kind(path) != "a file" and is_file(path.parent):
        path, split = path.parent, path.name
    notes: list[str] = []
    rows = list(_limited(path, _read(path, split, notes)))
    if not rows:
        raise InputError(
            f"{path} is empty",
            expected="one item or more",
            got="no record",
            fix="Check that the file is complete",
        )
    return Table(rows, tuple(notes))


def read_rows(path: Path) -> list[Row]:
    """The records of ``read_table`` alone."""
    return read_table(path).rows


def _read(path: Path, split: str | None, notes: list[str]) -> Iterator[Row]:
    if is_saved_dataset(path):
        left, number = MAX_FILE_BYTES, 0
        for file in saved_files(path):
            data = read_bytes(file, left, fix=_SMALLER)
            left -= len(data)
            for _, record in arrow_rows(file, data, **_limits()):
                number += 1
                yield Row(f"{path.name}, row {number}", record)
        return
    data = read_bytes(path, MAX_FILE_BYTES, fix=_inside(path) or _SMALLER)
    name = path
    if data[:2] == b"\x1f\x8b":
        data = _unzipped(path, data)
        name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    yield from _of_content(name, data, split, notes)


def _inside(path: Path) -> str | None:
    """Which file of a folder to name."""
    known = (*_JSON, *_CSV, *_TEXT, ".parquet", ".arrow", ".feather", ".gz")
    files = (
        [each for each in list_folder(path) if each.suffix.lower() in known][:1]
        if (is_folder(path))
        else []
    )
    return f"Name a file in it, such as {files[0]}" if files else None


def _of_content(path: Path, data: bytes, split: str | None, notes: list[str]) -> Iterator[Row]:
    kind = path.suffix.lower()
    if data[:4] == b"PAR1":
        numbered = parquet_rows(path, io.BytesIO(data), **_limits())
        yield from (Row(f"{path.name}, row {number}", record) for number, record in numbered)
        return
    if data.startswith((FILE_MAGIC, STREAM_MAGIC)):
        numbered = arrow_rows(path, data, **_limits())
        yield from (Row(f"{path.name}, row {number}", record) for number, record in numbered)
        return
    first = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    is_text = first in (b"{", b"[", b"") or kind in (*_JSON, *_CSV, *_TEXT)
    if not is_text:
        raise InputError(
            f"{path} has an unsupported format",
            expected="JSON Lines, JSON, CSV, Parquet, Arrow or .txt",
            got=f"a file that starts with {data[:12]!r}",
            fix="Convert it to JSON Lines, one object per line",
        )
    text, encoding = decode_text(path, data, guess=kind in (*_CSV, *_TEXT))
    if encoding:
        notes.append(f"read as {encoding}")
    if kind in _CSV or (kind in _TEXT and has_known_header(text)):
        yield from csv_rows(
            path, text, max_record=MAX_LINE_BYTES, max_fields=MAX_FIELDS, tabs=kind == ".tsv"
        )
    elif kind in _TEXT and first not in (b"{", b"[") and not has_known_header(text):
        yield from text_rows(path, text)
    else:
        yield from json_rows(path, text, split)


def _limits() -> dict[str, int]:
    return {"max_bytes": MAX_FILE_BYTES, "max_rows": MAX_ROWS, "max_columns": MAX_FIELDS}


def _unzipped(path: Path, data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} is not a whole gzip file",
            expected="a gzip file",
            got=str(error)[:160],
            fix="Write or download the file again",
        ) from error
    if len(unpacked) > MAX_FILE_BYTES:
        raise InputError(
            f"{path} is too large",
            expected=f"at most {MAX_FILE_BYTES:,} bytes unpacked",
            got="more",
            fix=_SMALLER,
        )
    return unpacked


def _limited(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    names: set[str] = set()
    for count, row in enumerate(rows, 1):
        if count > MAX_ROWS:
            raise InputError(
                f"{path} has too many rows", expected=f"at most {MAX_ROWS:,}", fix=_SMALLER
            )
        names.update(row.fields)
        if len(names) > MAX_FIELDS:
            raise too_many_fields(row.location, MAX_FIELDS)
        yield Row(row.location, {k: v for k, v in row.fields.items() if v is not None})
