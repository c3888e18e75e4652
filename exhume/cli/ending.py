"""How a command ends: one line for every cause, an exit code, and no child left running."""

import io
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from evidence.errors import ExhumeError, InputError
from exhume.cli.terminal import errors, show

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
STAGES_KEPT = "Finished stages are kept; run the same command again to resume."
TRACEBACK = "EXHUME_TRACEBACK"
"""Environment variable: set to 1, tracebacks are printed instead of written to a file."""


class Interrupted(BaseException):
    """A signal to stop; no ``KeyboardInterrupt``, which typer would handle itself."""


def run_and_exit(command: Callable[[], Any]) -> NoReturn:
    """Run a command, then end the process with an exit code and one line.

    For the start of a process only: signal handlers are installed and not restored, so that a
    signal during Python's shutdown is reported too.

    Args:
        command: May end by ``SystemExit``.
    """
    _open_standard_files()
    _meet_signals(_stop)
    with _streams():
        code = _code_of(command)
    _meet_signals(lambda *_: os._exit(code))
    sys.exit(code)


def _code_of(command: Callable[[], Any]) -> int:
    def say(text: str) -> None:
        show(f"exhume: {text}", style="red", where=errors)

    try:
        try:
            command()
            code = 0
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else int(bool(done.code))
        sys.stdout.flush()
        return code
    except ExhumeError as error:
        say(str(error))
        return error.exit_code
    except Interrupted:
        say(f"interrupted. {STAGES_KEPT}")
        return 2
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        file_name = f" ({error.filename})" if error.filename else ""
        say(f"the operating system reported: {reason}{file_name}. {STAGES_KEPT}{_filed(error)}")
        return 2
    except Exception as error:
        if _lacks_memory(error):
            say(f"out of memory. exhume plan estimates what an audit needs. {STAGES_KEPT}")
            return 2
        name = type(error).__name__
        reason = " ".join(str(error).split())[:200]
        say(
            f"this is a fault in exhume ({name}: {reason}), not in its input. "
            f"Please report it.{_filed(error)}"
        )
        return 1


def _lacks_memory(error: Exception) -> bool:
    # Matched by message: importing PyTorch for its error class could be slow here.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in str(error) or "can't allocate memory" in str(error))
    )


def _filed(error: Exception) -> str:
    """Write the traceback to a file for a bug report, and name the file."""
    text = "".join(traceback.format_exception(error))
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        print(text, file=sys.stderr)
        return ""
    moment = time.strftime("%Y%m%d-%H%M%S")
    try:
        handle, name = tempfile.mkstemp(".txt", f"exhume-fault-{moment}-")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(f"{sys.argv}\n{sys.version}\n{text}")
    except OSError:
        return f" Run it again with {TRACEBACK}=1 to see the traceback."
    return f" The traceback is in {name}."


def _stop(*_: object) -> None:
    _meet_signals(_stop_at_once)
    raise Interrupted


def _stop_at_once(*_: object) -> None:
    """The second signal: exit without cleanup. Locks are released by the system."""
    import psutil

    with suppress(OSError):
        os.write(2, f"\nexhume: stopped at once. {STAGES_KEPT}\n".encode())
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    os._exit(2)


def _meet_signals(handler: Callable[..., Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # Python handles signals in the main thread alone.
    for number in SIGNALS:
        # A process started to ignore a signal (nohup, a shell's &) keeps ignoring it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _open_standard_files() -> None:
    """Open closed standard streams; else the next opened file would get their number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextmanager
def _streams() -> Iterator[None]:
    """Turn failing output into an ``InputError``, and ignore failing error output."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Output(sys.stdout), _Errors(sys.stderr)  # pyright: ignore
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Stream:
    """A text stream that escapes characters its encoding lacks."""

    def __init__(self, stream: Any):
        self._stream = stream if stream is not None else io.StringIO()
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Output(_Stream):
    """Standard output; a failing write is an ``InputError``."""

    def write(self, text: str) -> int:
        with self._told():
            return self._stream.write(text)
        raise AssertionError

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Redirect to null: the rest of the buffer would fail again when Python exits.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            reason = (error.strerror or str(error)).lower()
            raise InputError(
                f"standard output could not be written: {reason}",
                fix="Files that were written are kept",
            ) from error


class _Errors(_Stream):
    """Standard error; a run continues where it cannot be written."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()
