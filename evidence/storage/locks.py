"""Locks between processes: one run per output folder, one maker per cached artifact.

Locks of the operating system end with the process. The lock file names the holder and is
removed at the end.
"""

import json
import os
import shlex
import socket
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.storage.files import disk_errors, read_json
from evidence.storage.scratch import OPEN_FLAGS, is_same_file, remove_stale, try_lock

LOCK = ".exhume.lock"
POLL_SECONDS = 0.2
MAX_COMMAND_CHARACTERS = 200
"""Maximum length of the stored command line."""


@dataclass(frozen=True)
class LockHolder:
    """The process that holds a lock, as stored in the lock file."""

    process: int
    host: str
    since: str
    command: str

    @classmethod
    def this_process(cls) -> "LockHolder":
        """This process."""
        program, *arguments = sys.argv or [""]
        path = Path(program)
        name = path.parent.name if path.name == "__main__.py" else path.name
        command = shlex.join([name, *arguments])[:MAX_COMMAND_CHARACTERS]
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(os.getpid(), socket.gethostname(), since, command)

    @classmethod
    def read(cls, path: Path) -> "LockHolder | None":
        """The holder stored in ``path``; None if the file cannot be read (yet)."""
        try:
            fields = read_json(path, max_bytes=1 << 14)
            host, since, command = (
                _printable(str(fields[name])) for name in ("host", "since", "command")
            )
            return cls(int(fields["process"]), host, since, command)
        except (InputError, KeyError, TypeError, ValueError):
            return None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}, running {self.command}"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock ``folder`` for a run that writes into it.

    Creates the folder if needed, and removes it again if the block leaves it empty. Removes
    scratch files of killed runs. On a file system without locks it warns and continues.

    Raises:
        InputError: another run holds the lock (nothing was changed), or the folder is not
            writable.
    """
    path = folder / LOCK
    handle, created = _create_and_lock(folder, path)
    if handle is None:
        _remove_empty(created)
        holder = LockHolder.read(path)
        raise InputError(
            f"another run is writing to {folder}" + (f" ({holder})" if holder else ""),
            fix="Wait until it ends, or choose another folder",
        )
    try:
        remove_stale(folder)
        yield
    finally:
        _release(handle, path)
        _remove_empty(created)


@contextmanager
def creation_lock(target: Path, progress: Progress = AUTO) -> Iterator[None]:
    """Lock the creation of ``target``, which several runs may need at the same time.

    Waits while another process holds the lock; the block must check whether ``target`` exists.

    Raises:
        InputError: its folder is not writable.
    """
    path = target.parent / f".{target.name[:40]}{LOCK}"
    handle, created = _create_and_lock(target.parent, path)
    if handle is None:
        holder = LockHolder.read(path)
        label = f"waiting for {target.name}" + (f" ({holder})" if holder else "")
        with as_progress(progress).task(label, 1):
            while handle is None:
                time.sleep(POLL_SECONDS)
                handle, _ = _create_and_lock(target.parent, path)
    try:
        yield
    finally:
        _release(handle, path)
        _remove_empty(created)


def _create_and_lock(folder: Path, path: Path) -> tuple[int | None, list[Path]]:
    """Create ``folder`` and lock ``path`` in it; also return the created folders."""
    with disk_errors(folder):
        created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        return _lock_file(path), created


def _lock_file(path: Path) -> int | None:
    """Descriptor of the locked file, or None if another process holds the lock."""
    while True:
        handle = os.open(path, OPEN_FLAGS | os.O_CREAT, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise InputError(f"{path} is not a regular file", fix="Delete it")
            locked = try_lock(handle)
            if locked is False:
                os.close(handle)
                return None
            # The previous holder may have removed the file after we opened it.
            if is_same_file(handle, path):
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps(asdict(LockHolder.this_process())).encode())
                if locked is None:
                    warnings.warn(
                        f"{path.parent} is on a file system without locks: make sure "
                        "that no other run writes to it",
                        stacklevel=4,
                    )
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _release(handle: int, path: Path) -> None:
    # Removed while locked, so that others who opened it notice that it is gone.
    with suppress(OSError):
        if is_same_file(handle, path):
            path.unlink()
    os.close(handle)


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _printable(text: str) -> str:
    """Replace characters of untrusted text that could control a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)[
        :MAX_COMMAND_CHARACTERS
    ]
