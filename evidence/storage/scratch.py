"""Scratch files and folders beside their target, for atomic renaming.

The process that creates one holds an OS lock on it, which ends with the process. Unlocked
scratch was left by a killed process and is removed by the next one that writes to the folder.
"""

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

SCRATCH_NAME = re.compile(r"\..{0,40}\.[0-9a-f]{8}\.exhume", re.DOTALL)
"""Names of scratch files and folders."""
LOCK_NAME = "owner"
"""The locked file in a scratch folder."""
MAX_UNLOCKED_SECONDS = 60
"""Age from which a scratch folder without a lock file counts as stale."""
NO_LOCK_ERRNOS = {
    getattr(errno, name)
    for name in ("ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP", "EINVAL", "EBADF")
    if hasattr(errno, name)
}
CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL
OPEN_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def try_lock(handle: int) -> bool | None:
    """Lock an open file until it is closed or the process ends, without waiting.

    Returns:
        Whether we hold the lock; None if the file system does not support locks.
    """
    try:
        return lock_descriptor(handle, blocking=False)
    except OSError as error:
        if error.errno in NO_LOCK_ERRNOS:
            return None
        raise


def is_same_file(handle: int, path: Path) -> bool:
    """Whether the open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


@contextmanager
def scratch_file(target: Path) -> Iterator[tuple[int, Path]]:
    """A new file beside ``target``, open for writing; deleted unless the block renames it.

    Yields:
        Descriptor and path.
    """
    remove_stale(target.parent)
    while True:
        path = target.parent / _scratch_name(target)
        handle = os.open(path, CREATE_FLAGS, 0o666)
        if try_lock(handle) is not False and is_same_file(handle, path):
            break
        os.close(handle)  # removed by another process before we locked it
    try:
        yield handle, path
    finally:
        if is_same_file(handle, path):
            path.unlink()
        os.close(handle)


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A new empty folder beside ``target``; deleted unless the block renames it."""
    remove_stale(target.parent)
    while True:
        outer = target.parent / _scratch_name(target)
        outer.mkdir()
        owner = outer / LOCK_NAME
        handle = os.open(owner, CREATE_FLAGS, 0o666)
        if try_lock(handle) is not False and is_same_file(handle, owner):
            break
        os.close(handle)
    try:
        inner = outer / "folder"
        inner.mkdir()
        yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)
        os.close(handle)


def remove_stale(folder: Path) -> None:
    """Remove scratch files and folders of ended processes from ``folder``."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if SCRATCH_NAME.fullmatch(entry.name) and not entry.is_symlink():
                with suppress(OSError):
                    _remove_if_stale(Path(entry.path), entry.is_dir(follow_symlinks=False))


def remove_folder(folder: Path) -> None:
    """Delete a folder atomically: readers see all of it or nothing."""
    with scratch_folder(folder) as inner:
        os.replace(folder, inner / "gone")


def _scratch_name(target: Path) -> str:
    return f".{target.name[:40]}.{secrets.token_hex(4)}.exhume"


def _remove_if_stale(path: Path, is_folder: bool) -> None:
    try:
        handle = os.open(path / LOCK_NAME if is_folder else path, OPEN_FLAGS)
    except FileNotFoundError:
        if is_folder and time.time() - path.stat().st_mtime > MAX_UNLOCKED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
        return
    try:
        if try_lock(handle):
            if is_folder:
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    finally:
        os.close(handle)
