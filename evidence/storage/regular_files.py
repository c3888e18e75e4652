"""Untrusted files: opened only if regular, and read up to a size limit.

Pipes, devices, folders, link loops, missing files and invalid names are reported as one
``InputError`` before anything is read.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from evidence.errors import InputError

_FILE_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_ERRNO_MESSAGES = {
    errno.ENOENT: "nothing there",
    errno.ENOTDIR: "a path through something that is not a folder",
    errno.ELOOP: "a loop of links",
    errno.ENAMETOOLONG: "a name too long for the file system",
    errno.EACCES: "no permission to read",
    errno.EPERM: "no permission to read",
}
# Without O_NONBLOCK, opening a pipe blocks until it has a writer.
_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)


def as_path(value: Any, description: str) -> Path:
    """Convert an argument to a path, with ``~`` expanded.

    Args:
        value: A string or an ``os.PathLike`` of a string.
        description: Subject of the error message, such as "the forget file".

    Raises:
        InputError: the type is wrong, the name is empty or contains NUL, or the home folder is
            unknown.
    """
    name = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if not isinstance(name, str):
        raise InputError(
            f"{description} is not a path",
            expected="text or a pathlib.Path",
            got=f"{type(value).__name__} {value!r}",
        )
    if not name or "\0" in name:
        raise InputError(f"{description} is not a path", expected="a name", got=repr(name))
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{name} cannot be found: this user's home folder is not known",
            fix="Write the path without ~",
        ) from error


def file_kind(path: Path) -> str:
    """Kind of the entry at ``path`` after following links: "a file", "a folder", ..."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            return "a broken link"
        number = error.errno if isinstance(error, OSError) else None
        return _ERRNO_MESSAGES.get(number or 0, str(error))
    return next((name for is_one, name in _FILE_KINDS if is_one(mode)), "another kind")


def is_file(path: Path) -> bool:
    """Whether ``path`` is a regular file; never raises."""
    return file_kind(path) == "a file"


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; never raises."""
    return file_kind(path) == "a folder"


def list_folder(folder: Path) -> list[Path]:
    """The entries of a folder, sorted.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read", expected="a folder", got=str(error.strerror)
        ) from error


@contextmanager
def open_regular(
    path: Path, max_bytes: int | None = None, *, fix: str | None = None
) -> Iterator[BinaryIO]:
    """Open a regular file for reading in binary.

    ``OSError`` inside the block is converted to ``InputError`` as well.

    Raises:
        InputError: it is not a regular file, exceeds ``max_bytes``, or cannot be read.
    """
    kind = file_kind(path)
    if kind != "a file":
        raise _unreadable(path, kind, fix)
    try:
        handle = os.open(path, _FLAGS)
        with os.fdopen(handle, "rb") as file:
            now = os.fstat(handle)
            # The file may have been replaced since the check.
            if not stat.S_ISREG(now.st_mode):
                raise _unreadable(path, "another kind", fix)
            if max_bytes is not None and now.st_size > max_bytes:
                raise _too_large(path, max_bytes, f"{now.st_size:,}", fix)
            yield file
    except OSError as error:
        cause = _ERRNO_MESSAGES.get(error.errno or 0, error.strerror or type(error).__name__)
        raise _unreadable(path, cause, fix) from error


def read_bytes(path: Path, max_bytes: int, *, fix: str | None = None) -> bytes:
    """Content of a regular file of at most ``max_bytes`` bytes.

    Raises:
        InputError: as ``open_regular``.
    """
    with open_regular(path, max_bytes, fix=fix) as file:
        return _read_all(path, file, max_bytes, fix)


def read_text(path: Path, max_bytes: int, *, fix: str | None = None) -> str:
    """Content of a UTF-8 text file of at most ``max_bytes`` bytes, without a byte-order mark.

    Raises:
        InputError: as ``open_regular``, or the file is not UTF-8.
    """
    data = read_bytes(path, max_bytes, fix=fix)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line} is not valid UTF-8",
            expected="UTF-8 text",
            got=f"byte {data[error.start]:#04x}",
            fix=fix or "Save the file again as UTF-8",
        ) from error


def _read_all(path: Path, file: BinaryIO, max_bytes: int, fix: str | None) -> bytes:
    # Files in /proc and the like hold more than their stated size.
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise _too_large(path, max_bytes, "more", fix)
    return data


def _unreadable(path: Path, kind: str, fix: str | None) -> InputError:
    return InputError(
        f"{path} cannot be read", expected="a file", got=kind, fix=fix or "Check the path"
    )


def _too_large(path: Path, max_bytes: int, size: str, fix: str | None) -> InputError:
    return InputError(
        f"{path} is too large", expected=f"at most {max_bytes:,} bytes", got=size, fix=fix
    )
