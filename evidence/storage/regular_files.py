"""Files from outside: opened where they are regular files, read up to a limit.

A path may lead to a pipe that never ends, a device, a folder, a loop of links or
nothing, and a name may be one that no file system takes. All of it is said in one
error, before anything is read.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from evidence.errors import InputError

_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_CAUSES = {
    errno.ENOENT: "nothing there",
    errno.ENOTDIR: "a path through something that is not a folder",
    errno.ELOOP: "a link that leads to itself",
    errno.ENAMETOOLONG: "a name longer than the file system takes",
    errno.EACCES: "a place that may not be read",
    errno.EPERM: "a place that may not be read",
}
# Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)


def as_path(value: Any, description: str) -> Path:
    """A path that somebody passed, with ``~`` resolved.

    Args:
        value: Text or an ``os.PathLike`` of text.
        description: What errors call it, such as "the forget file".

    Raises:
        InputError: another type, nothing, a name that holds NUL, or a home folder that
            is not known.
    """
    name = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if not isinstance(name, str):
        raise InputError(
            f"{description} is not a path",
            expected="text or a pathlib.Path",
            got=f"{type(value).__name__} {value!r}",
        )
    if not name or "\0" in name:
        raise InputError(
            f"{description} is not a path", expected="a name", got=repr(name)
        )
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{name} cannot be found: this user's home folder is not known",
            fix="Write the path without ~",
        ) from error


def file_kind(path: Path) -> str:
    """What lies at ``path``, links followed: "a file", "a folder", or in words else."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            return "a link to nothing"
        number = error.errno if isinstance(error, OSError) else None
        return _CAUSES.get(number or 0, str(error))
    return next((words for is_one, words in _KINDS if is_one(mode)), "another kind")


def is_file(path: Path) -> bool:
    """Whether a regular file is there; no name makes it fail."""
    return file_kind(path) == "a file"


def is_folder(path: Path) -> bool:
    """Whether a folder is there; no name makes it fail."""
    return file_kind(path) == "a folder"


@contextmanager
def open_regular(
    path: Path, max_bytes: int, *, fix: str | None = None
) -> Iterator[BinaryIO]:
    """Open a regular file for reading in binary.

    What cannot be read further on, inside the block, is an ``InputError`` as well.

    Args:
        path: The file.
        max_bytes: Most bytes it may have.
        fix: What to do about one that cannot be read.

    Raises:
        InputError: it is no regular file, is larger, or cannot be read.
    """
    found = file_kind(path)
    if found != "a file":
        raise _unreadable(path, found, fix)
    try:
        handle = os.open(path, _FLAGS)
        with os.fdopen(handle, "rb") as file:
            now = os.fstat(handle)
            # Another file may have taken its place since.
            if not stat.S_ISREG(now.st_mode):
                raise _unreadable(path, "another kind", fix)
            if now.st_size > max_bytes:
                raise _too_large(path, max_bytes, f"{now.st_size:,}", fix)
            yield file
    except OSError as error:
        cause = _CAUSES.get(error.errno or 0, error.strerror or type(error).__name__)
        raise _unreadable(path, cause, fix) from error


def read_bytes(path: Path, max_bytes: int, *, fix: str | None = None) -> bytes:
    """All of a regular file of at most ``max_bytes`` bytes.

    Raises:
        InputError: as ``open_regular``.
    """
    with open_regular(path, max_bytes, fix=fix) as file:
        return _all(path, file, max_bytes, fix)


def read_text(path: Path, max_bytes: int, *, fix: str | None = None) -> str:
    """All of a UTF-8 text file of at most ``max_bytes`` bytes, without a byte-order mark.

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


def _all(path: Path, file: BinaryIO, limit: int, fix: str | None) -> bytes:
    # Files such as those in /proc have more in them than their size says.
    data = file.read(limit + 1)
    if len(data) > limit:
        raise _too_large(path, limit, "more", fix)
    return data


def _unreadable(path: Path, found: str, fix: str | None) -> InputError:
    return InputError(
        f"{path} cannot be read",
        expected="a file",
        got=found,
        fix=fix or "Check the path",
    )


def _too_large(path: Path, limit: int, size: str, fix: str | None) -> InputError:
    return InputError(
        f"{path} is too large", expected=f"at most {limit:,} bytes", got=size, fix=fix
    )
