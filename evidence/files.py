"""Files that are either whole or absent."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evidence.errors import InputError


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
