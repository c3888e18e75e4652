"""Types and unpacked sizes of Arrow columns, for the readers of Parquet and Arrow files."""

from pathlib import Path
from typing import Any

import numpy as np

from evidence.errors import InputError

_MAX_NESTING = 8


def is_readable(kind: Any, depth: int = 0) -> bool:
    """Whether an Arrow type is text, a number, or a list or struct of such."""
    from pyarrow import types

    if depth > _MAX_NESTING:
        return False
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return is_readable(kind.value_type, depth + 1)
    if types.is_struct(kind):
        return all(is_readable(kind.field(at).type, depth + 1) for at in range(kind.num_fields))
    if types.is_dictionary(kind):
        kind = kind.value_type
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    )


def unpacked_bytes(column: Any) -> int:
    """Size of a column with all texts expanded, at least 8 bytes per value."""
    import pyarrow.compute as pc
    from pyarrow import types

    base_bytes = 8 * len(column)
    kind = column.type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return base_bytes + unpacked_bytes(column.flatten())
    if types.is_struct(kind):
        return base_bytes + sum(map(unpacked_bytes, column.flatten()))
    if types.is_dictionary(kind):
        lengths = pc.call_function("binary_length", [column.dictionary])
        total = pc.call_function("sum", [lengths.take(column.indices)])
        return base_bytes + 8 * len(column) + (total.as_py() or 0)
    if types.is_string_view(kind):
        # Many views may lie on one long text. A view begins with its length, an int32.
        views = np.frombuffer(column.buffers()[1] or b"", dtype=np.int32).reshape(-1, 4)
        lengths = views[column.offset : column.offset + len(column), 0]
        return 2 * base_bytes + int(lengths.clip(0).sum(dtype=np.int64))
    return base_bytes + max(column.nbytes, 8 * len(column))


def too_large(path: Path, limit: int, got: str) -> InputError:
    """The error of a file that unpacks to more than ``limit`` bytes."""
    return InputError(
        f"{path} is too large",
        expected=f"at most {limit:,} bytes unpacked",
        got=got,
        fix="Keep the items that the audit needs",
    )
