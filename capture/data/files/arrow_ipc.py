"""Records of untrusted Arrow files: IPC streams, IPC files and Feather version 2.

Arrow trusts its metadata. The messages are therefore read one by one, the stated size of
compressed buffers is added up before any is unpacked, and each batch is validated in full before
a value is used. Layout: Arrow columnar format 1.5, "Encapsulated message format".
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capture.data.files.arrow_values import is_readable, too_large, unpacked_bytes
from evidence.errors import InputError

FILE_MAGIC = b"ARROW1"
STREAM_MAGIC = b"\xff\xff\xff\xff"
_FILE_PADDING = 8  # magic and padding; a stream follows
_DICTIONARY, _RECORDS = 2, 3  # union tags of a message header


def arrow_rows(
    path: Path, data: bytes, *, max_bytes: int, max_rows: int, max_columns: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number (from 1) and fields of each record.

    Args:
        path: The path, for error messages.
        data: The whole file.
        max_bytes: Limit for the unpacked size of the values.

    Raises:
        InputError: the file is damaged, truncated or too large, or has duplicate column names.
    """
    import pyarrow
    from pyarrow import ipc

    stream = data[_FILE_PADDING:] if data.startswith(FILE_MAGIC) else data
    try:
        stated = _stated_bytes(ipc, pyarrow.py_buffer(stream), max_rows)
        if stated > max_bytes:
            raise too_large(path, max_bytes, f"{stated:,} bytes")
        reader = ipc.open_stream(pyarrow.py_buffer(stream))
        names = reader.schema.names
        if len(names) > max_columns or len(set(names)) < len(names):
            raise InputError(
                f"{path} has too many columns, or two of one name",
                expected=f"at most {max_columns:,} columns, every name once",
                got=", ".join(names)[:200],
            )
        unread = {f.name: f.type for f in reader.schema if not is_readable(f.type)}
        number = unpacked = 0
        for batch in reader:
            batch.validate(full=True)
            if number + batch.num_rows > max_rows:
                raise too_large(path, max_bytes, f"more than {max_rows:,} rows")
            batch = batch.select([name for name in names if name not in unread])
            unpacked += sum(map(unpacked_bytes, batch.columns))
            if unpacked > max_bytes:
                raise too_large(path, max_bytes, f"more than {unpacked:,} bytes")
            for record in batch.to_pylist():
                number += 1
                yield number, unread | record
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, struct.error) as error:
        raise InputError(
            f"{path} is not a whole Arrow file",
            expected="an Arrow or Feather file (version 2)",
            got=str(error).split("\n")[0][:160] or "a broken one",
            fix="Write or download the file again",
        ) from error


def _stated_bytes(ipc: Any, stream: Any, max_rows: int) -> int:
    """Bytes of all buffers after decompression, as their messages state them."""
    reader = ipc.MessageReader.open_stream(stream)
    return sum(
        _message_bytes(message.metadata.to_pybytes(), message.body, max_rows) for message in reader
    )


def _message_bytes(meta: bytes, body: Any, max_rows: int) -> int:
    """Unpacked bytes of one message: its flatbuffer is read by hand, as Arrow does not tell."""
    root = struct.unpack_from("<I", meta, 0)[0]
    kind_at, table_at = _field(meta, root, 1), _field(meta, root, 2)
    kind = meta[kind_at] if kind_at else 0
    if kind not in (_DICTIONARY, _RECORDS) or not table_at:
        return 0
    table = _follow(meta, table_at)
    if kind == _DICTIONARY:
        inner = _field(meta, table, 1)
        if not inner:
            return 0
        table = _follow(meta, inner)
    rows_at = _field(meta, table, 0)
    if rows_at and not 0 <= struct.unpack_from("<q", meta, rows_at)[0] <= max_rows:
        raise ValueError("a batch of too many rows")
    size = len(body) if body is not None else 0
    buffers_at = _field(meta, table, 2)
    if not _field(meta, table, 3) or not buffers_at:
        return size
    vector = _follow(meta, buffers_at)
    (count,) = struct.unpack_from("<I", meta, vector)
    raw, total = memoryview(body or b""), size
    for at in range(count):
        start, length = struct.unpack_from("<qq", meta, vector + 4 + 16 * at)
        if length >= 8 and 0 <= start <= size - 8:
            total += max(struct.unpack_from("<q", raw, start)[0], 0)
    return total


def _field(meta: bytes, table: int, index: int) -> int:
    """Place of a field of a flatbuffer table; 0 where it is absent."""
    vtable = table - struct.unpack_from("<i", meta, table)[0]
    if vtable < 0:
        raise ValueError("a damaged message")
    (size,) = struct.unpack_from("<H", meta, vtable)
    place = 4 + 2 * index
    if place >= size:
        return 0
    (offset,) = struct.unpack_from("<H", meta, vtable + place)
    return table + offset if offset else 0


def _follow(meta: bytes, place: int) -> int:
    return place + struct.unpack_from("<I", meta, place)[0]
