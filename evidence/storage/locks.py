"""One run at a time: who writes into a folder, and who makes a thing that is shared.

The locks are the operating system's, so they go when the process does; the files that
carry them say who holds them, and are removed at the end.
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
from evidence.progress import SILENT, Progress
from evidence.storage.files import disk_errors, read_json
from evidence.storage.scratch import OPEN_FLAGS, is_same_file, remove_stale, try_lock

LOCK = ".exhume.lock"
POLL_SECONDS = 0.2
MAX_COMMAND_CHARACTERS = 200
"""Characters of a holder's command that are kept and shown."""


@dataclass(frozen=True)
class LockHolder:
    """Who holds a lock, as it wrote down itself."""

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
        """Who wrote ``path``; None where it cannot be read, or not yet."""
        try:
            found = read_json(path, max_bytes=1 << 14)
            host, since, command = (
                _shown(str(found[name])) for name in ("host", "since", "command")
            )
            return cls(int(found["process"]), host, since, command)
        except (InputError, KeyError, TypeError, ValueError):
            return None

    def __str__(self) -> str:
        return (
            f"process {self.process} on {self.host}, since {self.since}, "
            f"running {self.command}"
        )


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for a run that writes into it, for the length of a block.

    Scratch that a run left there that was killed is swept.
    The folder is made if it is not there; where the block puts nothing into it, what
    was made is taken away again. On a file system without locks a warning says so, and
    the run goes on.

    Raises:
        InputError: another run holds it, and nothing was touched; or it cannot be
            written.
    """
    path = folder / LOCK
    handle, made = _open(folder, path)
    if handle is None:
        _unmake(made)
        holder = LockHolder.read(path)
        raise InputError(
            f"another run is writing into {folder}"
            + (f" ({holder})" if holder else ""),
            fix="Wait until it ends, or choose another folder",
        )
    try:
        remove_stale(folder)
        yield
    finally:
        _release(handle, path)
        _unmake(made)


@contextmanager
def creation_lock(target: Path, progress: Progress = SILENT) -> Iterator[None]:
    """Hold the right to make ``target``, which several runs may want at once.

    Waits for another maker. Whether it is made by then is for the block to look.

    Raises:
        InputError: its folder cannot be written.
    """
    path = target.parent / f".{target.name[:40]}{LOCK}"
    handle, made = _open(target.parent, path)
    if handle is None:
        who = LockHolder.read(path)
        label = f"waiting for {target.name}" + (f" ({who})" if who else "")
        with progress.task(label, 1):
            while handle is None:
                time.sleep(POLL_SECONDS)
                handle, _ = _open(target.parent, path)
    try:
        yield
    finally:
        _release(handle, path)
        _unmake(made)


def _open(folder: Path, path: Path) -> tuple[int | None, list[Path]]:
    """Make ``folder`` and lock ``path`` in it; also the folders that were made."""
    with disk_errors(folder):
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        return _acquire(path), made


def _acquire(path: Path) -> int | None:
    """An open file that holds the lock, or None where another process has it."""
    while True:
        handle = os.open(path, OPEN_FLAGS | os.O_CREAT, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise InputError(f"{path} is not a regular file", fix="Delete it")
            got = try_lock(handle)
            if got is False:
                os.close(handle)
                return None
            # Its holder removes the file at the end, perhaps after we opened it.
            if is_same_file(handle, path):
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps(asdict(LockHolder.this_process())).encode())
                if got is None:
                    warnings.warn(
                        f"{path.parent} lies on a file system without locks: make sure "
                        "that no other run writes into it",
                        stacklevel=4,
                    )
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _release(handle: int, path: Path) -> None:
    # Removed while it is held: who opened it before sees that the name is gone.
    with suppress(OSError):
        if is_same_file(handle, path):
            path.unlink()
    os.close(handle)


def _unmake(made: list[Path]) -> None:
    with suppress(OSError):
        for each in made:
            each.rmdir()


def _shown(text: str) -> str:
    """Anybody may have written it: nothing in it may move a terminal's cursor."""
    return "".join(each if each.isprintable() else "?" for each in text)[
        :MAX_COMMAND_CHARACTERS
    ]
