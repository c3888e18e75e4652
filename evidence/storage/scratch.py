"""Files and folders that are being made, beside the place where they will be.

Whoever makes one holds a lock of the operating system on it, which goes when the
process does, however it ends. What nobody holds was left behind by a process that was
killed, and the next one that writes into the same folder removes it.
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
"""Names of scratch files and folders; nothing else is called so."""
LOCK_NAME = "owner"
"""The file in a scratch folder that its maker holds."""
MAX_UNLOCKED_SECONDS = 60
"""A scratch folder may be without an owner for the instant in which it is made."""
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
        Whether the lock is ours now; None where the file system has no locks.
    """
    try:
        return lock_descriptor(handle, blocking=False)
    except OSError as error:
        if error.errno in NO_LOCK_ERRNOS:
            return None
        raise


def is_same_file(handle: int, path: Path) -> bool:
    """Whether an open file is the one that now has the name ``path``."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


@contextmanager
def scratch_file(target: Path) -> Iterator[tuple[int, Path]]:
    """A new file beside ``target``, open for writing; removed where it still is.

    Yields:
        Its descriptor and its path, which the block may rename.
    """
    remove_stale(target.parent)
    while True:
        path = target.parent / _name(target)
        handle = os.open(path, CREATE_FLAGS, 0o666)
        if try_lock(handle) is not False and is_same_file(handle, path):
            break
        os.close(handle)  # Swept in the instant before it was ours.
    try:
        yield handle, path
    finally:
        if is_same_file(handle, path):
            path.unlink()
        os.close(handle)


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A new empty folder beside ``target``; removed with all that is still in it."""
    remove_stale(target.parent)
    while True:
        place = target.parent / _name(target)
        place.mkdir()
        owner = place / LOCK_NAME
        handle = os.open(owner, CREATE_FLAGS, 0o666)
        if try_lock(handle) is not False and is_same_file(handle, owner):
            break
        os.close(handle)
    try:
        inner = place / "folder"
        inner.mkdir()
        yield inner
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(handle)


def remove_stale(folder: Path) -> None:
    """Remove scratch in ``folder`` whose maker is gone; what is not ours stays."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if SCRATCH_NAME.fullmatch(entry.name) and not entry.is_symlink():
                with suppress(OSError):
                    _sweep_one(Path(entry.path), entry.is_dir(follow_symlinks=False))


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a reader sees all of it or nothing."""
    with scratch_folder(folder) as inner:
        os.replace(folder, inner / "gone")


def _name(target: Path) -> str:
    return f".{target.name[:40]}.{secrets.token_hex(4)}.exhume"


def _sweep_one(path: Path, is_folder: bool) -> None:
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
