"""Header of a safetensors file, read and validated without the tensor data."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evidence.errors import InputError
from evidence.storage.regular_files import open_regular
from evidence.storage.strict_json import parse_json

MAX_HEADER_BYTES = 32 << 20
"""Four times the header of 65,536 tensors with long names."""
MAX_TENSORS = 65_536
MAX_NAME_CHARACTERS = 512
DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
FLOAT_DTYPES = frozenset({"F8_E5M2", "F8_E4M3", "F16", "BF16", "F32", "F64"})
"""Allowed types of weights."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file; ``dtype`` is the name that safetensors uses."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> Mapping[str, TensorEntry]:
    """Names, types and shapes of the tensors of a safetensors file.

    The tensors must fill the file without gaps or overlaps, and their sizes must agree with type
    and shape.

    Raises:
        InputError: it is not a regular file, not safetensors, damaged or truncated, or holds too
            many tensors.
    """
    with open_regular(path) as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        file_size = file.seek(0, 2)
        if not 2 <= length <= min(MAX_HEADER_BYTES, file_size - 8):
            raise _damaged(path, f"a header of {length:,} bytes in {file_size:,}")
        file.seek(8)
        head = file.read(length)
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, "a header that is not UTF-8") from error
    value = parse_json(text, f"the header of {path}", max_depth=6)
    if not isinstance(value, dict):
        raise _damaged(path, "a header that is not an object")
    value.pop("__metadata__", None)
    if len(value) > MAX_TENSORS:
        raise InputError(
            f"{path} holds too many tensors",
            expected=f"at most {MAX_TENSORS:,}",
            got=f"{len(value):,}",
        )
    spans = {name: _span(path, name, raw) for name, raw in value.items()}
    end = 0
    for name in sorted(spans, key=lambda each: spans[each][1]):
        _, begin, stop = spans[name]
        if begin != end:
            raise _damaged(path, f"tensors with a gap or an overlap at {name}")
        end = stop
    if end != file_size - 8 - length:
        raise _damaged(path, f"{end:,} bytes of tensors, {file_size - 8 - length:,} there")
    return {name: entry for name, (entry, _, _) in spans.items()}


def _span(path: Path, name: str, raw: object) -> tuple[TensorEntry, int, int]:
    """A tensor with its start and end offsets."""
    if len(name) > MAX_NAME_CHARACTERS:
        raise _damaged(path, f"a tensor name of {len(name):,} characters")
    fields: Mapping[str, object] = raw if isinstance(raw, dict) else {}
    shape, ends = _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    bits = DTYPE_BITS.get(str(fields.get("dtype")))
    if not bits or shape is None or ends is None or len(ends) != 2:
        raise _damaged(path, f"no valid type, shape and offsets for {name}")
    size = bits
    for side in shape:
        size *= side
    if size % 8 or ends[1] - ends[0] != size // 8:
        raise _damaged(path, f"{ends[1] - ends[0]:,} bytes for {name}")
    return TensorEntry(str(fields["dtype"]), tuple(shape)), ends[0], ends[1]


def _counts(value: object) -> list[int] | None:
    """A short list of non-negative integers, or None if ``value`` is something else."""
    if not isinstance(value, list) or len(value) > 16:
        return None
    good = all(type(number) is int and 0 <= number < 1 << 48 for number in value)
    return value if good else None


def _damaged(path: Path, got: str) -> InputError:
    return InputError(
        f"{path} is damaged or cut short",
        expected="a whole safetensors file",
        got=got,
        fix="Copy or download it again",
    )
