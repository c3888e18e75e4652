"""Records of Parquet files that nobody vouches for.

A few kilobytes can stand for many gigabytes: one long text that every row repeats.
Texts are therefore kept as indices into the texts that differ, and counted before any
of them is written out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from evidence.errors import InputError

BATCH_ROWS = 1024
"""Rows read at once."""


def parquet_rows(
    path: Path, file: BinaryIO, *, max_bytes: int, max_rows: int, max_columns: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, from 1, and fields of each record.

    Texts, numbers and lists of them are read. A column of another type (dates, bytes,
    nested lists, structs) holds its type in every row, for errors to show.

    Args:
        path: What errors call the file.
        file: The file, opened in binary.
        max_bytes: Most bytes of its values, unpacked.
        max_rows: Most rows.
        max_columns: Most columns.

    Raises:
        InputError: it is not a whole Parquet file, is too large, or has two columns of
            one name.
    """
    import pyarrow
    import pyarrow.parquet as pq

    try:
        texts = _text_columns(pq.ParquetFile(file))
        file.seek(0)
        whole = pq.ParquetFile(file, read_dictionary=texts)
        _check_size(path, whole, max_bytes, max_rows, max_columns)
        known = [field.name for field in whole.schema_arrow if _is_known(field.type)]
        aside = {
            field.name: field.type
            for field in whole.schema_arrow
            if field.name not in known
        }
        number = unpacked = 0
        for batch in whole.iter_batches(BATCH_ROWS, columns=known):
            unpacked += sum(map(_unpacked, batch.columns))
            if unpacked > max_bytes:
                raise _too_large(path, max_bytes, f"more than {unpacked:,} bytes")
            for record in batch.to_pylist():
                number += 1
                yield number, aside | record
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path} is not a whole Parquet file",
            expected="a Parquet file",
            got=str(error).split("\n")[0][:160] or "a broken one",
            fix="Write or download the file again",
        ) from error


def _text_columns(file: Any) -> list[str]:
    leaves = map(file.schema.column, range(len(file.schema)))
    return [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]


def _check_size(
    path: Path, file: Any, bytes_limit: int, rows: int, columns: int
) -> None:
    """Look at what the file says of itself, before anything of it is read."""
    meta = file.metadata
    names = file.schema_arrow.names
    groups = [meta.row_group(each) for each in range(meta.num_row_groups)]
    parts = [
        group.column(each) for group in groups for each in range(group.num_columns)
    ]
    size = sum(part.total_uncompressed_size for part in parts)
    values = sum(part.num_values for part in parts)
    if meta.num_rows > rows or max(size, values) > bytes_limit:
        raise _too_large(
            path, bytes_limit, f"{meta.num_rows:,} rows, {max(size, values):,} bytes"
        )
    if meta.num_columns > columns:
        raise InputError(
            f"{path} has too many columns",
            expected=f"at most {columns:,}",
            got=f"{meta.num_columns:,}",
        )
    if len(set(names)) < len(names):
        raise InputError(
            f"{path}: two columns have the same name",
            expected="every column name once",
            got=", ".join(names),
        )


def _is_known(kind: Any) -> bool:
    """Whether values of an Arrow type are plain values or lists of such."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if types.is_dictionary(kind):
        kind = kind.value_type
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    )


def _unpacked(column: Any) -> int:
    """Bytes of a column when every text is written out; eight a value at least."""
    import pyarrow.compute as pc
    from pyarrow import types

    least = 8 * len(column)
    if types.is_list(column.type) or types.is_large_list(column.type):
        column = column.flatten()
    if types.is_dictionary(column.type):
        lengths = pc.call_function("binary_length", [column.dictionary])
        total = pc.call_function("sum", [lengths.take(column.indices)])
        return least + 8 * len(column) + (total.as_py() or 0)
    return least + max(column.nbytes, 8 * len(column))


def _too_large(path: Path, limit: int, got: str) -> InputError:
    return InputError(
        f"{path} is too large",
        expected=f"at most {limit:,} bytes unpacked",
        got=got,
        fix="Keep the items that the audit needs",
    )
