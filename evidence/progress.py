"""Progress that library code reports and the caller chooses how to show."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars

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

    Use as a context manager: ``with Bars() as progress: ...``. In a terminal and in
    Jupyter alike; writes to stderr so that output stays clean for pipes.
    """

    def __init__(self, console: Console | None = None):
        self._bars = RichBars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            transient=False,
        )

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Advance]:
        """Open a bar; it stays, marked done, when the block ends without error."""
        identifier = self._bars.add_task(label, total=total)

        def advance(amount: float) -> None:
            self._bars.advance(identifier, amount)

        yield advance
        self._bars.update(identifier, completed=total)


SILENT = Silent()
