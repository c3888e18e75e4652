"""Progress reports of library code: silent, as bars, or as log lines."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Thread
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars

from evidence import moved
from evidence.errors import printable

Advance = Callable[[float], None]

# Without a terminal: longest pause between lines, and shortest between lines of nested tasks.
MAX_SILENCE_SECONDS, MIN_LINE_SECONDS = 30.0, 5.0


class Progress(Protocol):
    """Interface of a progress display."""

    def task(self, label: str, total: float) -> AbstractContextManager[Advance]:
        """Open a task of ``total`` units; call the result with the units done."""
        ...

    def note(self, text: str) -> None:
        """Write a message to the log; displays without a log ignore it."""
        ...


class Silent:
    """Displays nothing; the default of every function."""

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Advance]:
        """Open a task that is not displayed."""
        yield lambda amount: None

    def note(self, text: str) -> None:
        """Ignore the message."""


class Bars:
    """Nested rich progress bars on stderr, in a terminal or in Jupyter.

    Bars of nested tasks disappear when done; the outermost bar stays. If stderr is a file or a
    pipe, log lines are written instead (``Lines``). Use as a context manager:
    ``with Bars() as progress: ...``.

    Examples:
        >>> with exhume.Bars() as progress:
        ...     scores = exhume.score_answers(model, rows, progress=progress)
    """

    def __init__(self, console: Console | None = None):
        console = console or Console(stderr=True)
        drawn = console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)
        self._lines = None if drawn else Lines(console)
        self._bars = RichBars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=False,
        )
        self._open = 0

    def __enter__(self) -> "Bars":
        (self._lines or self._bars).start()
        return self

    def __exit__(self, *exc: object) -> None:
        (self._lines or self._bars).stop()

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Advance]:
        """Show a bar while the block runs."""
        if self._lines is not None:
            with self._lines.task(label, total) as advance:
                yield advance
            return
        identifier = self._bars.add_task("  " * self._open + printable(label, 100), total=total)
        self._open += 1

        def advance_bar(amount: float) -> None:
            self._bars.advance(identifier, amount)

        try:
            yield advance_bar
            self._bars.update(identifier, completed=total)
        finally:
            self._open -= 1
            if self._open:
                self._bars.remove_task(identifier)

    def note(self, text: str) -> None:
        """Write the message if log lines are in use."""
        if self._lines is not None:
            self._lines.note(text)


@dataclass
class _Task:
    label: str
    total: float
    done: float = 0.0

    def __str__(self) -> str:
        share = self.done / self.total if self.total else 0.0
        return f"{self.label} {share:.0%}" if self.done else self.label


class Lines:
    """Progress as log lines with the time since the start.

    Lines are written when the outermost task begins and, if it was long, when it ends, and for
    nested tasks at most every ``MIN_LINE_SECONDS``. A background thread repeats the status after
    ``MAX_SILENCE_SECONDS`` without a line.
    """

    def __init__(self, console: Console):
        self._console = console
        self._tasks: list[_Task] = []
        self._start = self._last = monotonic()
        self._stopped = Event()
        self._timer: Thread | None = None

    def start(self) -> None:
        """Start the clock and the background thread."""
        self._start = self._last = monotonic()
        self._stopped.clear()
        self._timer = Thread(target=self._repeat, daemon=True)
        self._timer.start()

    def stop(self) -> None:
        """Stop the background thread."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.join()

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Advance]:
        """Report a task while the block runs."""
        task, begun = _Task(label, total), monotonic()
        outermost = not self._tasks
        self._tasks.append(task)
        self._print_tasks(0.0 if outermost else MIN_LINE_SECONDS)

        def advance(amount: float) -> None:
            task.done += amount
            self._print_tasks(MAX_SILENCE_SECONDS)

        try:
            yield advance
            if outermost and monotonic() - begun > MIN_LINE_SECONDS:
                self.note(f"{label}: done")
        finally:
            self._tasks.remove(task)

    def note(self, text: str) -> None:
        """Write one line."""
        self._last = monotonic()
        since = timedelta(seconds=round(self._last - self._start))
        line = f"{since} {printable(text, 200)}"
        self._console.print(line, markup=False, highlight=False)

    def _print_tasks(self, min_seconds: float) -> None:
        if monotonic() - self._last >= min_seconds and self._tasks:
            self.note(", ".join(map(str, tuple(self._tasks))))

    def _repeat(self) -> None:
        while not self._stopped.wait(MAX_SILENCE_SECONDS / 10):
            self._print_tasks(MAX_SILENCE_SECONDS)


SILENT = Silent()

__getattr__ = moved.names_of("evidence.progress")
