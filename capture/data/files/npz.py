"""Plain arrays from .npz archives that nobody vouches for.

An archive can say that it holds more than it does, hold more than it says, or hold
programs (pickles). What every array will take is known before the first is read, and
each must be exactly as long as its header says.
"""

import math
import struct
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from evidence.errors import InputError
from evidence.storage.regular_files import open_regular

MAX_MEMBERS = 1000
"""Files in an archive."""
MAX_FILE_BYTES = 4 << 30
"""Bytes of an archive."""
_END = struct.Struct("<4s4H2LH")  # the record at the end of every zip archive
_SHALLOW = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class _Header:
    """Of an array in an archive: where it begins, and what it says of itself."""

    start: int
    shape: tuple[int, ...]
    in_columns: bool
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_arrays(
    path: Path, names: Collection[str], max_bytes: int
) -> dict[str, NDArray[np.generic]]:
    """Some of the arrays of an archive, those that are there.

    Args:
        path: The archive.
        names: Of the arrays; others are not looked at.
        max_bytes: Most bytes of all of them, unpacked.

    Raises:
        InputError: it is no archive, its arrays are cut, longer than they say, larger
            than ``max_bytes`` together, of Python objects, encrypted, or named twice.
    """
    with open_regular(path, MAX_FILE_BYTES) as file:
        try:
            _check_end(file)
            with zipfile.ZipFile(file) as packed:
                return _arrays(path, packed, names, max_bytes)
        except InputError:
            raise
        # Every byte may be wrong: zipfile, zlib and numpy raise what they like.
        except Exception as error:
            raise InputError(
                f"{path} cannot be read ({error or type(error).__name__})",
                expected="an .npz of plain arrays; pickled objects are never opened",
            ) from error


def _check_end(file: BinaryIO) -> None:
    """Refuse lists of contents that are long to read, before they are read."""
    size = file.seek(0, 2)
    tail = min(size, _END.size + (1 << 16))
    file.seek(size - tail)
    found = file.read(tail)
    at = found.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(found):
        raise ValueError("it is not a zip archive")
    _, _, _, here, members, listed, _, _ = _END.unpack_from(found, at)
    if max(here, members) > MAX_MEMBERS or listed > MAX_MEMBERS * 1024:
        raise ValueError(f"more than {MAX_MEMBERS:,} files in it")
    file.seek(0)


def _arrays(
    path: Path, packed: zipfile.ZipFile, names: Collection[str], limit: int
) -> dict[str, NDArray[np.generic]]:
    listed = packed.namelist()
    if len(set(listed)) < len(listed):
        raise ValueError("two files in it have the same name")
    found = {
        name: packed.getinfo(f"{name}.npy") for name in names if f"{name}.npy" in listed
    }
    for name, info in found.items():
        if info.compress_type not in _SHALLOW or info.flag_bits & 0x1:
            raise ValueError(f"{name} is encrypted or compressed in an unusual way")
    headers = {name: _header(packed, info) for name, info in found.items()}
    total = sum(each.size for each in headers.values())
    if total > limit:
        raise InputError(
            f"{path} unpacks to too much",
            expected=f"at most {limit / (1 << 30):.3g} GiB",
            got=f"{total / (1 << 30):.3g} GiB",
        )
    for name, info in found.items():
        if info.file_size != headers[name].start + headers[name].size:
            raise ValueError(f"{name} is not as long as its header says")
    return {name: _array(packed, info, headers[name]) for name, info in found.items()}


def _header(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Header:
    readers = {
        (1, 0): npy.read_array_header_1_0,
        (2, 0): npy.read_array_header_2_0,
    }
    with packed.open(info) as member:
        version = npy.read_magic(member)
        if version not in readers:
            raise ValueError(f"{info.filename} has the unknown version {version}")
        shape, in_columns, dtype = readers[version](member)
        if dtype.hasobject or dtype.fields or dtype.subdtype:
            raise ValueError(
                f"{info.filename} holds {dtype}, not plain numbers or text"
            )
        if any(side < 0 for side in shape):
            raise ValueError(f"{info.filename} has the shape {shape}")
        return _Header(member.tell(), shape, in_columns, dtype)


def _array(
    packed: zipfile.ZipFile, info: zipfile.ZipInfo, header: _Header
) -> NDArray[np.generic]:
    with packed.open(info) as member:
        member.read(header.start)
        data = member.read()  # to its end, where its checksum is looked at
    flat = np.frombuffer(data, dtype=header.dtype)
    return flat.reshape(header.shape, order="F" if header.in_columns else "C")
