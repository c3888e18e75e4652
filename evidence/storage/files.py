"""Atomic writing of files and folders, and bounded reading of JSON."""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from evidence.errors import InputError
from evidence.storage.regular_files import read_text
from evidence.storage.scratch import scratch_file, scratch_folder
from evidence.storage.strict_json import MAX_DEPTH, parse_json

MAX_JSON_BYTES = 64 << 20
"""Python objects take about twenty times the size of the JSON text."""
Container = TypeVar("Container", dict[str, Any], list[Any])


_DISK_PROBLEMS = {
    errno.ENOSPC: ("no space is left on the disk", "Free some space"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space"),
    errno.EFBIG: (
        "it would be larger than this place or `ulimit -f` allows",
        "Choose another folder, or raise the limit",
    ),
    errno.EIO: ("the disk reports an error", "Check the disk"),
    errno.EROFS: ("the file system is read-only", "Choose another folder"),
    errno.EACCES: ("writing is not allowed there", "Choose another folder"),
    errno.EPERM: ("writing is not allowed there", "Choose another folder"),
    errno.EMFILE: ("too many files are open", "Raise `ulimit -n`"),
    errno.ENFILE: ("too many files are open", "Close other programs"),
}
"""Errors of the disk that can occur on any write: cause, remedy."""
_PATH_PROBLEMS = {
    errno.ENAMETOOLONG: ("the name is too long", "Choose another name"),
    errno.ENOTDIR: ("a part of its path is not a folder", "Choose another folder"),
    errno.EISDIR: ("it is a folder", "Choose another name"),
    errno.ELOOP: ("its path contains a link that cannot be followed", "Name the folder"),
    errno.ENOENT: ("a folder of its path is missing", "Choose another folder"),
    errno.EEXIST: ("something else is there", "Choose another folder"),
    errno.ENOTEMPTY: ("something else is there", "Choose another folder"),
}
"""Errors of the path: cause, remedy."""
_LIBRARY_MESSAGES = re.compile(
    r"\(os error (\d+)\)|file write failed|iostream error|unexpected pos \d+ vs"
)
"""Messages of safetensors and PyTorch after a failed write."""


@contextmanager
def disk_errors(path: Path, *, about_path: bool = True) -> Iterator[None]:
    """Convert errors of the operating system while writing ``path`` into ``InputError``.

    Args:
        path: The file or folder that is written.
        about_path: Whether to convert all OS errors. If False, only errors of the disk (full,
            quota, read-only) are converted, for blocks that do other things too.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause, remedy = _cause(error, about_path)
        if cause is None:
            raise
        raise InputError(
            f"{path} could not be written: {cause}",
            fix=f"{remedy} and run the same command again; finished stages are kept",
        ) from error


def _cause(error: Exception, about_path: bool) -> tuple[str | None, str]:
    """Cause and remedy of a failed write; (None, "") for other errors."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        # Libraries in other languages raise exceptions of their own.
        message = _LIBRARY_MESSAGES.search(str(error))
        if message is not None and message[1]:
            number = int(message[1])
        elif message is not None:
            return ("the disk accepted no more data", "Free some space, or raise `ulimit -f`")
        elif about_path and isinstance(error, ValueError) and "null byte" in str(error):
            return "the name is invalid", "Choose another name"
    if number in _DISK_PROBLEMS:
        return _DISK_PROBLEMS[number]
    if number is None or not about_path:
        return None, ""
    return _PATH_PROBLEMS.get(number, (os.strerror(number).lower(), "Choose another folder"))


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file atomically: readers see either the old or the complete new content.

    Raises:
        InputError: the disk is full, read-only or not writable, or the name is invalid.
    """
    write_files_atomic({path: content})


def write_files_atomic(contents: Mapping[Path, bytes | str]) -> None:
    """Write several files that belong together.

    All are written and synced under temporary names before the first is renamed.

    Raises:
        InputError: as ``write_atomic``; no file was changed.
    """
    with ExitStack() as stack:
        ready = []
        for path, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            stack.enter_context(disk_errors(path))
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, scratch = stack.enter_context(scratch_file(path))
            with os.fdopen(handle, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(handle)
            ready.append((scratch, path))
        for scratch, path in ready:
            os.replace(scratch, path)
        for folder in dict.fromkeys(path.parent for path in contents):
            _sync(folder)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A scratch folder that is renamed to ``path`` if the block ends without an error.

    Its content is synced first, so a crash cannot leave an incomplete folder.

    Raises:
        InputError: as ``write_atomic``; or ``path`` exists by then.
    """
    with disk_errors(path, about_path=False), ExitStack() as stack:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            target = stack.enter_context(scratch_folder(path))
        yield target
        with disk_errors(path):
            for parent, _, names in os.walk(target):
                for name in names:
                    _sync(Path(parent, name))
                _sync(Path(parent))
            os.replace(target, path)
            _sync(path.parent)


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot open folders.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Some file systems cannot sync a folder.
            raise
    finally:
        os.close(handle)


def utf8_path(path: str) -> str:
    """A path as text that can be encoded as UTF-8, independent of the locale."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # not a valid file name
        return path.encode("utf-8", "backslashreplace").decode("utf-8")


def read_json(
    path: Path,
    expected_type: type[Container] = dict,
    *,
    max_bytes: int = MAX_JSON_BYTES,
    max_depth: int = MAX_DEPTH,
    fix: str | None = None,
) -> Container:
    """Read an untrusted JSON file.

    Args:
        expected_type: Type of the top-level value, ``dict`` or ``list``.
        max_bytes: Maximum file size.
        max_depth: Maximum nesting depth.
        fix: Instruction to the user if the file cannot be read.

    Returns:
        The value. Numbers are finite, and strings can be encoded as UTF-8.

    Raises:
        InputError: as ``evidence.storage.regular_files.read_text`` and
            ``evidence.storage.strict_json.parse_json``; or the top level has another type.
    """
    text = read_text(path, max_bytes, fix=fix)
    value = parse_json(text, str(path), max_depth=max_depth, fix=fix)
    if not isinstance(value, expected_type):
        raise InputError(
            f"{path} is not valid JSON",
            got=f"it holds {type(value).__name__}, not {expected_type.__name__}",
            fix=fix,
        )
    return value
