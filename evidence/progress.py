"""Progress that library code reports and the caller chooses how to show."""

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

# Without a terminal: most seconds from one line to the next, and least between those
# that a task inside another begins.
MAX_SILENCE_SECONDS, MIN_LINE_SECONDS = 30.0, 5.0


class Progress(Protocol):
    """Something that can show how far a task is."""

    def task(self, label: str, total: float) -> AbstractContextManager[Advance]:
        """Open a task of ``total`` units; call the result with the units done."""
        ...

    def note(self, text: str) -> None:
        """Say something that belongs into a log; bars have no room for it."""
        ...


class Silent:
    """Shows nothing; the default of every function."""

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Advance]:
        """Open a task that nobody sees."""
        yield lambda amount: None

    def note(self, text: str) -> None:
        """Say nothing."""


class Bars:
    """Rich progress bars with elapsed and remaining time, nested as tasks are.

    The outermost bar stays when it is done; those inside it go, or a long run would
    scroll its own progress away. Use as a context manager: ``with Bars() as
    progress: ...``. In a terminal and in Jupyter alike; writes to stderr so that
    output stays clean for pipes. Where stderr is a file or a pipe, lines take the
    place of bars (``Lines``).
    """

    def __init__(self, console: Console | None = None):
        console = console or Console(stderr=True)
        drawn = console.is_jupyter or (
            console.is_terminal and not console.is_dumb_terminal
        )
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
        """Open a bar for the length of a block."""
        if self._lines is not None:
            with self._lines.task(label, total) as advance:
                yield advance
            return
        identifier = self._bars.add_task(
            "  " * self._open + printable(label, 100), total=total
        )
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
        """Say it where there are no bars."""
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
    """A line now and then for a log: the time since the start, and what is done.

    The outermost task is told when it begins and, if it took a while, when it ends;
    those inside it when the last line is a while ago. Where nothing happens for longer
    the last line comes again.
    """

    def __init__(self, console: Console):
        self._console = console
        self._tasks: list[_Task] = []
        self._start = self._last = monotonic()
        self._stopped = Event()
        self._waker: Thread | None = None

    def start(self) -> None:
        """Begin to count, and to speak where nobody else does."""
        self._start = self._last = monotonic()
        self._stopped.clear()
        self._waker = Thread(target=self._wake, daemon=True)
        self._waker.start()

    def stop(self) -> None:
        """Say no more."""
        self._stopped.set()
        if self._waker is not None:
            self._waker.join()

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Advance]:
        """Tell of a task for the length of a block."""
        task, begun = _Task(label, total), monotonic()
        outermost = not self._tasks
        self._tasks.append(task)
        self._tell(0.0 if outermost else MIN_LINE_SECONDS)

        def advance(amount: float) -> None:
            task.done += amount
            self._tell(MAX_SILENCE_SECONDS)

        try:
            yield advance
            if outermost and monotonic() - begun > MIN_LINE_SECONDS:
                self.note(f"{label}: done")
        finally:
            self._tasks.remove(task)

    def note(self, text: str) -> None:
        """A line of its own."""
        self._last = monotonic()
        since = timedelta(seconds=round(self._last - self._start))
        line = f"{since} {printable(text, 200)}"
        self._console.print(line, markup=False, highlight=False)

    def _tell(self, after: float) -> None:
        if monotonic() - self._last >= after and self._tasks:
            self.note(", ".join(map(str, tuple(self._tasks))))

    def _wake(self) -> None:
        while not self._stopped.wait(MAX_SILENCE_SECONDS / 10):
            self._tell(MAX_SILENCE_SECONDS)


SILENT = Silent()

__getattr__ = moved.names_of("evidence.progress")
