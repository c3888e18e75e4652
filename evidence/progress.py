"""Progress that library code reports and the caller chooses how to show."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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

from evidence.errors import printable

Advance = Callable[[float], None]


class Progress(Protocol):
    """Something that can show how far a task is."""

    def task(self, label: str, total: float) -> AbstractContextManager[Advance]:
        """Open a task of ``total`` units; call the result with the units done."""
        ...


class Silent:
    """Shows nothing; the default of every function."""

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Advance]:
        """Open a task that nobody sees."""
        yield lambda amount: None


class Bars:
    """Rich progress bars with elapsed and remaining time, nested as tasks are.

    The outermost bar stays when it is done; those inside it go, or a long run would
    scroll its own progress away. Use as a context manager: ``with Bars() as
    progress: ...``. In a terminal and in Jupyter alike; writes to stderr so that
    output stays clean for pipes.
    """

    def __init__(self, console: Console | None = None):
        self._bars = RichBars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            transient=False,
        )
        self._open = 0

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Advance]:
        """Open a bar for the length of a block."""
        identifier = self._bars.add_task(
            "  " * self._open + printable(label, 100), total=total
        )
        self._open += 1

        def advance(amount: float) -> None:
            self._bars.advance(identifier, amount)

        try:
            yield advance
            self._bars.update(identifier, completed=total)
        finally:
            self._open -= 1
            if self._open:
                self._bars.remove_task(identifier)


SILENT = Silent()
