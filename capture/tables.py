"""Rows from JSON Lines, JSON, CSV and Parquet files that nobody vouches for."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from evidence.errors import InputError

FILE_LIMIT = 2**30  # bytes, on disk and unpacked
ARRAY_LIMIT = 2**28  # bytes of one JSON array, which cannot be read line by line
LINE_LIMIT = 1_000_000  # bytes
ROW_LIMIT = 1_000_000


@dataclass(frozen=True)
class Row:
    """One record and where it stands, such as "facts.jsonl, line 3"."""

    place: str
    fields: dict[str, object]


def read_rows(path: Path) -> list[Row]:
    """All records of a file, told apart by content (Parquet, JSON) or name (CSV).

    Values are as the file has them; empty CSV cells and JSON nulls are left out.

    Raises:
        InputError: no such file, an empty one, one of another kind, one beyond the
            limits on size, or one that does not parse (names the line).
    """
    if not path.is_file():
        raise InputError(
            f"{path} cannot be read",
            expected="a file",
            got="a folder" if path.is_dir() else "nothing there",
            fix="Check the path",
        )
    size = path.stat().st_size
    if size > FILE_LIMIT:
        raise InputError(
            f"{path} is too large",
            expected=f"at most {FILE_LIMIT:,} bytes",
            got=f"{size:,}",
            fix="Keep the items that the audit needs",
        )
    try:
        with path.open("rb") as file:
            start = file.read(4096)
            file.seek(0)
            rows = list(_rows(path, file, start))
    except PermissionError as error:
        raise InputError(
            f"{path} cannot be read", expected="a readable file", got=str(error)
        ) from error
    if not rows:
        raise InputError(
            f"{path} is empty",
            expected="one item or more",
            got=f"{size} bytes and no record",
            fix="Check that the file was written to its end",
        )
    return rows


def _rows(path: Path, file: BinaryIO, start: bytes) -> Iterator[Row]:
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    kind = path.suffix.lower()
    if start[:4] == b"PAR1":
        found = _parquet(path)
    elif kind in (".csv", ".tsv"):
        found = _csv(path, file, "\t" if kind == ".tsv" else None)
    elif first == b"[":
        found = _array(path, file)
    elif first in (b"{", b"") or kind in (".json", ".jsonl", ".ndjson"):
        found = _jsonl(path, file)
    else:
        raise InputError(
            f"{path} is not a kind of file that can be read",
            expected="JSON Lines, JSON, CSV or Parquet",
            got=f"a file that starts with {start[:12]!r}",
            fix="Convert it to JSON Lines, one object a line",
        )
    for count, row in enumerate(found, 1):
        if count > ROW_LIMIT:
            raise InputError(
                f"{path} has too many rows",
                expected=f"at most {ROW_LIMIT:,}",
                fix="Keep the items that the audit needs",
            )
        yield Row(row.place, {k: v for k, v in row.fields.items() if v is not None})


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    number = 0
    while raw := file.readline(LINE_LIMIT + 1):
        number += 1
        if len(raw) > LINE_LIMIT:
            raise InputError(
                f"{path}, line {number} is too long",
                expected=f"at most {LINE_LIMIT:,} bytes",
                got="more",
                fix="Write one item a line, without its source text",
            )
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number} is not valid UTF-8",
                expected="UTF-8 text",
                got=f"byte {raw[error.start]:#04x} at place {error.start + 1}",
                fix="Save the file again as UTF-8",
            ) from error


def _jsonl(path: Path, file: BinaryIO) -> Iterator[Row]:
    for number, line in _lines(path, file):
        if line.strip():
            place = f"{path.name}, line {number}"
            yield Row(place, _record(place, _json(f"{path}, line {number}", line)))


def _array(path: Path, file: BinaryIO) -> Iterator[Row]:
    raw = file.read(ARRAY_LIMIT + 1)
    if len(raw) > ARRAY_LIMIT:
        raise InputError(
            f"{path} is too large for one JSON array",
            expected=f"at most {ARRAY_LIMIT:,} bytes",
            fix="Write JSON Lines, one object a line",
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line} is not valid UTF-8",
            expected="UTF-8 text",
            got=f"byte {raw[error.start]:#04x}",
            fix="Save the file again as UTF-8",
        ) from error
    records = _json(str(path), text)
    for number, record in enumerate(records if isinstance(records, list) else [], 1):
        place = f"{path.name}, item {number}"
        yield Row(place, _record(place, record))


def _json(place: str, text: str) -> object:
    def refuse(name: str) -> object:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        # A file of several lines says its own line; a line of a file has only one.
        line = f", line {error.lineno}" if "\n" in text.rstrip() else ""
        raise InputError(
            f"{place}{line} is not valid JSON",
            expected="one JSON object",
            got=f"{error.msg} at column {error.colno}",
            fix="Correct the line, or write the file again",
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{place} is not valid JSON",
            expected="one JSON object",
            got="brackets nested too deep"
            if isinstance(error, RecursionError)
            else str(error)[:120],
            fix="Correct the line, or write the file again",
        ) from error


def _record(place: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InputError(
            f"{place} is not an item",
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
    if delimiter is None:  # spreadsheets of many countries write semicolons
        delimiter = ";" if ";" in header and "," not in header else ","

    def lines() -> Iterator[str]:
        yield header
        for _, line in numbered:
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for cells in reader:
            place = f"{path.name}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                if len(set(names)) < len(names):
                    raise InputError(
                        f"{place}: two columns have the same name",
                        expected="every column name once",
                        got=", ".join(names)[:200],
                    )
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{place} has another number of cells than the header",
                    expected=f"{len(names)} cells",
                    got=str(len(cells)),
                    fix="Put text that holds the separator in double quotes",
                )
            yield Row(
                place,
                {n: c for n, c in zip(names, cells, strict=True) if c.strip()},
            )
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num} is not valid CSV",
            expected="cells in matching double quotes, of at most 131,072 characters",
            got=str(error),
            fix="Correct the line, or write the file again",
        ) from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            meta = file.metadata
            unpacked = sum(
                meta.row_group(group).total_byte_size
                for group in range(meta.num_row_groups)
            )
            if unpacked > FILE_LIMIT or meta.num_rows > ROW_LIMIT:
                raise InputError(
                    f"{path} is too large",
                    expected=f"at most {ROW_LIMIT:,} rows and {FILE_LIMIT:,} bytes",
                    got=f"{meta.num_rows:,} rows and {unpacked:,} bytes unpacked",
                    fix="Keep the items that the audit needs",
                )
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name}, row {number}", record)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not a whole Parquet file",
            expected="a Parquet file",
            got=str(error).splitlines()[0][:160] if str(error) else "a broken one",
            fix="Write or download the file again",
        ) from error
