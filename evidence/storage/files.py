"""Files that are either whole or absent when written, and bounded when read."""

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
"""Bytes of a JSON file; Python takes some twenty times as much for what it holds."""
Container = TypeVar("Container", dict[str, Any], list[Any])


_FULL = {
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
"""What a disk may say at any moment, whatever was asked of it."""
_PLACE = {
    errno.ENAMETOOLONG: ("the name is too long", "Choose another name"),
    errno.ENOTDIR: ("a part of its path is no folder", "Choose another folder"),
    errno.EISDIR: ("it is a folder", "Choose another name"),
    errno.ELOOP: ("its path has a link that may not be followed", "Name the folder"),
    errno.ENOENT: ("a folder of its path is missing", "Choose another folder"),
    errno.EEXIST: ("something else is there", "Choose another folder"),
    errno.ENOTEMPTY: ("something else is there", "Choose another folder"),
}
"""What is wrong with the place that was named."""
_LIBRARIES = re.compile(
    r"\(os error (\d+)\)|file write failed|iostream error|unexpected pos \d+ vs"
)
"""How safetensors and PyTorch tell that a file could not be written."""


@contextmanager
def disk_errors(path: Path, *, about_path: bool = True) -> Iterator[None]:
    """Turn what the system says while ``path`` is written into an ``InputError``.

    Args:
        path: What is written.
        about_path: Whether every error of the system is about ``path``. Where the block does
            other things too, only those of a disk that takes no more are.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        why, remedy = _cause(error, about_path)
        if why is None:
            raise
        raise InputError(
            f"{path} could not be written: {why}",
            fix=f"{remedy} and run the same command again; finished stages are kept",
        ) from error


def _cause(error: Exception, place: bool) -> tuple[str | None, str]:
    """Why the system did not write, and what to do; (None, "") if it is not that."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        # Libraries in other languages tell of the disk in errors of their own.
        said = _LIBRARIES.search(str(error))
        if said is not None and said[1]:
            number = int(said[1])
        elif said is not None:
            return (
                "the disk took no more of it",
                "Free some space, or raise `ulimit -f`",
            )
        elif place and isinstance(error, ValueError) and "null byte" in str(error):
            return "no file can be called so", "Choose another name"
    if number in _FULL:
        return _FULL[number]
    if number is None or not place:
        return None, ""
    return _PLACE.get(number, (os.strerror(number).lower(), "Choose another folder"))


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path`` so that a reader sees all of it or the old file.

    Raises:
        InputError: the disk is full, read-only or not ours to write, or nothing can be
            called so.
    """
    write_files_atomic({path: content})


def write_files_atomic(contents: Mapping[Path, bytes | str]) -> None:
    """Write several files of which none is of any use without the others.

    All are on the disk under other names before the first gets its own.

    Raises:
        InputError: as ``write_atomic``; nothing was changed then.
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
    """A scratch folder that becomes ``path`` when the block ends without error.

    All that is in it is on the disk before it gets its name, so that no crash of the
    machine leaves a folder of that name with less in it.

    Raises:
        InputError: as ``write_atomic``; or ``path`` holds something by then.
    """
    with disk_errors(path, about_path=False), ExitStack() as stack:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            target = stack.enter_context(scratch_folder(path))
        yield target
        with disk_errors(path):
            for place, _, names in os.walk(target):
                for name in names:
                    _sync(Path(place, name))
                _sync(Path(place))
            os.replace(target, path)
            _sync(path.parent)


def _sync(path: Path) -> None:
    """Have the disk keep a file, or the names in a folder."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Some file systems cannot sync a folder.
            raise
    finally:
        os.close(handle)


def utf8_path(path: str) -> str:
    """The text of a path, the same under every locale, that can be written as UTF-8."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # not the name of any file
        return path.encode("utf-8", "backslashreplace").decode("utf-8")


def read_json(
    path: Path,
    expected_type: type[Container] = dict,
    *,
    max_bytes: int = MAX_JSON_BYTES,
    max_depth: int = MAX_DEPTH,
    fix: str | None = None,
) -> Container:
    """Read a JSON file that anybody may have written.

    Args:
        path: The file.
        expected_type: What it must hold at the top: ``dict`` (an object) or ``list``.
        max_bytes: Most bytes it may have.
        max_depth: Most brackets within brackets.
        fix: What the user should do where it cannot be read.

    Returns:
        What the file holds. Numbers are finite and strings can be written as UTF-8.

    Raises:
        InputError: as ``evidence.storage.regular_files.read_text`` and
            ``evidence.storage.strict_json.parse_json``, or the top is of another kind.
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
