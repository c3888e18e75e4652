"""Records of CSV texts: commas, semicolons, tabs or bars, and the index column of pandas."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from capture.data.files.rows import Row
from evidence.errors import InputError

_AGAIN = "Correct the line, or write the file again"
# MMLU's own files have no header.
_MMLU = ("question", "A", "B", "C", "D", "answer")
_DELIMITERS = ",;\t|"


def csv_rows(
    path: Path, text: str, *, max_record: int, max_fields: int, tabs: bool = False
) -> Iterator[Row]:
    """Yield the records; empty cells are left out.

    An unnamed first column of numbers is the index that pandas writes, and is left out.

    Args:
        max_record: Limit for the characters of one record.
        max_fields: Limit for the number of columns.
        tabs: Whether the name of the file says that tabs separate the cells.

    Raises:
        InputError: invalid CSV, a record of another length than the header, or a limit.
    """
    numbered = enumerate(io.StringIO(text, newline=""), 1)
    header = next((line for _, line in numbered if line.strip()), "")
    if not header:
        return
    skipped = text[: text.index(header)].count("\n")
    reader = csv.reader(
        _limited(path, header, numbered, max_record),
        delimiter=_delimiter(header, tabs),
        strict=True,
    )
    names: list[str] | None = None
    try:
        for cells in reader:
            location = f"{path.name}, line {reader.line_num + skipped}"
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = _header(location, cells, max_fields)
                if not _is_mmlu(cells):
                    continue
                names = list(_MMLU)
            if len(cells) != len(names):
                raise InputError(
                    f"{location} has another number of cells than the header",
                    expected=f"{len(names)} cells",
                    got=str(len(cells)),
                    fix="Put text that holds the separator in double quotes",
                )
            fields = {n: c for n, c in zip(names, cells, strict=True) if c.strip()}
            index = fields.pop("", None)
            if index is not None and not (cells[0] == index and index.strip().isdigit()):
                raise InputError(
                    f"{location} has text in a column without a name",
                    expected="a name for every column, in the first line",
                    got=repr(index)[:80],
                    fix="Give the file a first line with the names of its columns",
                )
            yield Row(location, dict(fields))
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num + skipped} is not valid CSV",
            expected="cells in matching double quotes, of at most 131,072 characters",
            got=str(error),
            fix=_AGAIN,
        ) from error


def _limited(
    path: Path, header: str, numbered: Iterator[tuple[int, str]], max_record: int
) -> Iterator[str]:
    """The lines, as long as a quoted cell does not go on for too long."""
    pending, open_quotes = 0, 0
    yield header
    for number, line in numbered:
        open_quotes += line.count('"')
        pending += len(line)
        if pending > max_record:
            raise InputError(
                f"{path}, line {number} is too long",
                expected=f"at most {max_record:,} characters an item",
                got="more",
                fix="Write one item per line, without its source text",
            )
        yield line
        if open_quotes % 2 == 0:
            pending = open_quotes = 0


def _delimiter(header: str, tabs: bool) -> str:
    """The separator that gives the header most cells; commas first."""
    if tabs and "\t" in header:
        return "\t"

    def cells(mark: str) -> int:
        return len(next(csv.reader([header], delimiter=mark), []))

    safe: Callable[[str], int] = cells
    try:
        return max(_DELIMITERS, key=safe)
    except csv.Error:
        return ","


def _is_mmlu(cells: list[str]) -> bool:
    names = {cell.strip().casefold() for cell in cells}
    return len(cells) == len(_MMLU) and cells[-1].strip() in _MMLU[1:5] and "a" not in names


def _header(location: str, cells: list[str], max_fields: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    if names[0].lower().startswith("unnamed: "):
        names[0] = ""
    if len(names) > max_fields:
        raise too_many_fields(location, max_fields)
    if any(name.endswith(("?", "\uff1f")) for name in names) and not _is_mmlu(cells):
        raise InputError(
            f"{location} holds text, not the names of columns",
            expected="a first line such as question,answer",
            got=", ".join(names)[:120],
            fix="Write a line with the names of the columns above it",
        )
    if len(set(names)) < len(names) and not _is_mmlu(cells):
        raise InputError(
            f"{location}: two columns have the same name",
            expected="every column name once",
            got=", ".join(names)[:200],
        )
    return names


def has_known_header(text: str) -> bool:
    """Whether the first line names columns of questions and answers."""
    header = text[:1000].split("\n", 1)[0].strip().casefold()
    mark = next((each for each in _DELIMITERS if each in header), ",")
    names = {name.strip(" \"'") for name in header.split(mark)}
    return "answer" in names and bool({"question", "prompt"} & names)


def too_many_fields(location: str, limit: int) -> InputError:
    """The error of a file with too many different fields."""
    return InputError(
        f"{location} has too many different fields",
        expected=f"at most {limit:,} in all of the file",
        fix="Keep the fields that the audit needs",
    )
