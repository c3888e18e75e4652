"""Files that are either whole or absent when written, and bounded when read."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from evidence.errors import InputError
from evidence.regular import read_text
from evidence.strict_json import MOST_DEPTH, parse_json

JSON_LIMIT = 64 << 20
"""Bytes of a JSON file; Python takes some twenty times as much for what it holds."""
Shape = TypeVar("Shape", dict[str, Any], list[Any])


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only place or missing rights into an ``InputError``."""
    try:
        yield
    except OSError as error:
        causes = {
            errno.ENOSPC: ("no space is left on the disk", "Free some space"),
            errno.EDQUOT: ("the disk quota is used up", "Free some space"),
            errno.EROFS: ("the file system is read-only", "Choose another folder"),
            errno.EACCES: ("writing is not allowed there", "Choose another folder"),
            errno.EPERM: ("writing is not allowed there", "Choose another folder"),
        }
        if error.errno not in causes:
            raise
        why, remedy = causes[error.errno]
        raise InputError(
            f"{path} could not be written: {why}",
            fix=f"{remedy} and run the same command again; finished stages are kept",
        ) from error


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path`` so that a reader sees all of it or the old file.

    Raises:
        InputError: the disk is full, read-only or not ours to write.
    """
    data = content.encode() if isinstance(content, str) else content
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """A scratch folder that becomes ``path`` when the block ends without error."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}."
        ) as scratch:
            target = Path(scratch) / "folder"
            target.mkdir()
            yield target
            os.replace(target, path)


def read_json(
    path: Path,
    kind: type[Shape] = dict,
    *,
    limit: int = JSON_LIMIT,
    depth: int = MOST_DEPTH,
    fix: str | None = None,
) -> Shape:
    """Read a JSON file that anybody may have written.

    Args:
        path: The file.
        kind: What it must hold at the top: ``dict`` (an object) or ``list``.
        limit: Most bytes it may have.
        depth: Most brackets within brackets.
        fix: What the user should do where it cannot be read.

    Returns:
        What the file holds. Numbers are finite and strings can be written as UTF-8.

    Raises:
        InputError: as ``evidence.regular.read_text`` and
            ``evidence.strict_json.parse_json``, or the top is of another kind.
    """
    text = read_text(path, limit, fix=fix)
    value = parse_json(text, str(path), depth=depth, fix=fix)
    if not isinstance(value, kind):
        raise InputError(
            f"{path} is not valid JSON",
            got=f"it holds {type(value).__name__}, not {kind.__name__}",
            fix=fix,
        )
    return value
