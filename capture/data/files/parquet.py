"""Records of untrusted Parquet files.

A few kilobytes can expand to many gigabytes if every row repeats one long text. Texts are therefore
read as dictionary indices, and their size is checked before they are expanded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from capture.data.files.arrow_values import is_readable, too_large, unpacked_bytes
from evidence.errors import InputError

BATCH_ROWS = 1024


def parquet_rows(
    path: Path, file: BinaryIO, *, max_bytes: int, max_rows: int, max_columns: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number (from 1) and fields of each record.

    Columns of texts, numbers, and lists and structs of them are read. A column of another type
    (dates, bytes) yields its type as the value, for error messages.

    Args:
        path: The path, for error messages.
        file: The file, opened in binary mode.
        max_bytes: Limit for the unpacked size of the values.

    Raises:
        InputError: the file is damaged, truncated or too large, or has duplicate column names.
    """
    import pyarrow
    import pyarrow.parquet as pq

    try:
        texts = _text_columns(pq.ParquetFile(file))
        file.seek(0)
        table = pq.ParquetFile(file, read_dictionary=texts)
        _check_size(path, table, max_bytes, max_rows, max_columns)
        known = [field.name for field in table.schema_arrow if is_readable(field.type)]
        unread_types = {
            field.name: field.type for field in table.schema_arrow if field.name not in known
        }
        number = unpacked = 0
        for batch in table.iter_batches(BATCH_ROWS, columns=known):
            unpacked += sum(map(unpacked_bytes, batch.columns))
            if unpacked > max_bytes:
                raise too_large(path, max_bytes, f"more than {unpacked:,} bytes")
            for record in batch.to_pylist():
                number += 1
                yield number, unread_types | record
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


def _check_size(path: Path, file: Any, max_bytes: int, max_rows: int, max_columns: int) -> None:
    """Check the sizes stated in the metadata before reading any data."""
    meta = file.metadata
    names = file.schema_arrow.names
    groups = [meta.row_group(index) for index in range(meta.num_row_groups)]
    parts = [group.column(index) for group in groups for index in range(group.num_columns)]
    size = sum(part.total_uncompressed_size for part in parts)
    values = sum(part.num_values for part in parts)
    if meta.num_rows > max_rows or max(size, values) > max_bytes:
        raise too_large(path, max_bytes, f"{meta.num_rows:,} rows, {max(size, values):,} bytes")
    if meta.num_columns > max_columns:
        raise InputError(
            f"{path} has too many columns",
            expected=f"at most {max_columns:,}",
            got=f"{meta.num_columns:,}",
        )
    if len(set(names)) < len(names):
        raise InputError(
            f"{path}: two columns have the same name",
            expected="every column name once",
            got=", ".join(names),
        )
