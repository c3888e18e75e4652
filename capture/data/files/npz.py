"""Plain arrays from untrusted .npz archives.

Archives can have wrong headers, or contain zip bombs or pickles. All headers are checked against
the size limit before any array is read, and every array must have exactly the stated size.
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
MAX_FILE_BYTES = 4 << 30
_END_RECORD = struct.Struct("<4s4H2LH")  # the record at the end of every zip archive
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class _Header:
    """Start and header of an array in an archive."""

    start: int
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_arrays(
    path: Path, names: Collection[str], max_bytes: int
) -> dict[str, NDArray[np.generic]]:
    """Read the named arrays that exist in an archive.

    Args:
        names: Array names; other arrays are not read.
        max_bytes: Limit for the total unpacked size.

    Raises:
        InputError: the archive is damaged, too large, encrypted, has duplicate names, or an
            array holds Python objects or differs from its stated size.
    """
    with open_regular(path, MAX_FILE_BYTES) as file:
        try:
            _check_end(file)
            with zipfile.ZipFile(file) as packed:
                return _arrays(path, packed, names, max_bytes)
        except InputError:
            raise
        # zipfile, zlib and NumPy raise arbitrary exceptions for damaged files.
        except Exception as error:
            raise InputError(
                f"{path} cannot be read ({error or type(error).__name__})",
                expected="an .npz of plain arrays; pickled objects are never opened",
            ) from error


def _check_end(file: BinaryIO) -> None:
    """Refuse archives with large directories before reading them."""
    size = file.seek(0, 2)
    tail = min(size, _END_RECORD.size + (1 << 16))
    file.seek(size - tail)
    data = file.read(tail)
    start = data.rfind(b"PK\5\6")
    if start < 0 or start + _END_RECORD.size > len(data):
        raise ValueError("it is not a zip archive")
    _, _, _, members_here, members, listed, _, _ = _END_RECORD.unpack_from(data, start)
    if max(members_here, members) > MAX_MEMBERS or listed > MAX_MEMBERS * 1024:
        raise ValueError(f"more than {MAX_MEMBERS:,} files in it")
    file.seek(0)


def _arrays(
    path: Path, packed: zipfile.ZipFile, names: Collection[str], max_bytes: int
) -> dict[str, NDArray[np.generic]]:
    listed = packed.namelist()
    if len(set(listed)) < len(listed):
        raise ValueError("two files in it have the same name")
    infos = {name: packed.getinfo(f"{name}.npy") for name in names if f"{name}.npy" in listed}
    for name, info in infos.items():
        if info.compress_type not in _COMPRESSIONS or info.flag_bits & 0x1:
            raise ValueError(f"{name} is encrypted or compressed in an unusual way")
    headers = {name: _header(packed, info) for name, info in infos.items()}
    total = sum(header.size for header in headers.values())
    if total > max_bytes:
        raise InputError(
            f"{path} is too large when unpacked",
            expected=f"at most {max_bytes / (1 << 30):.3g} GiB",
            got=f"{total / (1 << 30):.3g} GiB",
        )
    for name, info in infos.items():
        if info.file_size != headers[name].start + headers[name].size:
            raise ValueError(f"{name} is not as long as its header says")
    return {name: _array(packed, info, headers[name]) for name, info in infos.items()}


def _header(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Header:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    with packed.open(info) as member:
        version = npy.read_magic(member)
        if version not in readers:
            raise ValueError(f"{info.filename} has the unknown version {version}")
        shape, in_columns, dtype = readers[version](member)
        if dtype.hasobject or dtype.fields or dtype.subdtype:
            raise ValueError(f"{info.filename} holds {dtype}, not plain numbers or text")
        if any(side < 0 for side in shape):
            raise ValueError(f"{info.filename} has the shape {shape}")
        return _Header(member.tell(), shape, in_columns, dtype)


def _array(packed: zipfile.ZipFile, info: zipfile.ZipInfo, header: _Header) -> NDArray[np.generic]:
    with packed.open(info) as member:
        member.read(header.start)
        data = member.read()  # to the end, so that the checksum is verified
    flat = np.frombuffer(data, dtype=header.dtype)
    return flat.reshape(header.shape, order="F" if header.fortran_order else "C")
