"""Progress reports of library code: automatic, silent, as bars, or as log lines.

Every function that takes ``progress`` has the default ``AUTO``: bars where a person is watching,
and nothing elsewhere. A person watches if stderr is a terminal, or in a notebook; not in a pipe, in
a test or on a CI machine. Work of less than a second shows no bar. ``True`` shows progress
everywhere, as lines where there is no terminal; ``False`` shows none.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from datetime import timedelta
from io import StringIO
from threading import Event, Thread
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars

from evidence import moved
from evidence.errors import InputError, printable, quoted

Advance = Callable[[float], None]

# Without a terminal: longest pause between lines, and shortest between lines of nested tasks.
MAX_SILENCE_SECONDS, MIN_LINE_SECONDS = 30.0, 5.0
MIN_BAR_SECONDS, MIN_DRAW_SECONDS = 1.0, 0.25
"""Age from which an automatic bar is shown, and time between drawings."""


class Display(Protocol):
    """Interface of a progress display."""

    def task(self, label: str, total: float) -> AbstractContextManager[Advance]:
        """Open a task of ``total`` units; call the result with the units done."""
        ...

    def note(self, text: str) -> None:
        """Write a message to the log; displays without a log ignore it."""
        ...


Progress = bool | Display
"""What a ``progress`` argument may be: True, False or a display; see ``as_progress``."""

_chosen: ContextVar["Display | None"] = ContextVar("chosen progress display", default=None)
"""The display that the running function was given; inner functions add nothing of their own."""


@contextmanager
def _running(display: Display) -> Iterator[None]:
    token = _chosen.set(display)
    try:
        yield
    finally:
        _chosen.reset(token)


class Silent:
    """Displays nothing, in inner functions either."""

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Advance]:
        """Open a task that is not displayed."""
        with _running(self):
            yield lambda amount: None

    def note(self, text: str) -> None:
        """Ignore the message."""


def _rich_bars(console: Console) -> RichBars:
    return RichBars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=False,
    )


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
        self._bars = _rich_bars(console)
        self._open = 0

    def __enter__(self) -> "Bars":
        (self._lines or self._bars).start()
        return self

    def __exit__(self, *exc: object) -> None:
        (self._lines or self._bars).stop()

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Advance]:
        """Show a bar while the block runs."""
        with _running(self), self._task(label, total) as advance:
            yield advance

    @contextmanager
    def _task(self, label: str, total: float) -> Iterator[Advance]:
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


@dataclass(eq=False)
class _Task:
    label: str
    total: float
    done: float = 0.0
    begun: float = field(default_factory=monotonic)

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


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


def is_watched() -> bool:
    """Whether a person can see progress: in a notebook, or if stderr is a terminal."""
    if any(name in os.environ for name in ("CI", "PYTEST_CURRENT_TEST")):
        return False
    if in_notebook():
        return True
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Auto:
    """Bars for work of more than a second, if a person is watching (``is_watched``).

    A thread draws, so that a task costs no more than a few counters. Tasks of inner functions are
    drawn below the outer ones and disappear when done.
    """

    def __init__(self, shown: Callable[[], bool] = is_watched):
        self._shown = shown
        self._tasks: list[_Task] = []

    @contextmanager
    def task(self, label: str, total: float) -> Iterator[Advance]:
        """Report a task while the block runs."""
        outer = _chosen.get()
        if (outer is None and not self._shown()) or not isinstance(outer, Auto | None):
            yield lambda amount: None
            return
        task = _Task(label, total)

        def advance(amount: float) -> None:
            task.done += amount

        if outer is not None:
            outer._tasks.append(task)
            try:
                yield advance
            finally:
                outer._tasks.remove(task)
            return
        with _running(self), self._drawn(task):
            yield advance

    @contextmanager
    def _drawn(self, task: _Task) -> Iterator[None]:
        """Draw while the block runs; the outermost task of this display."""
        self._tasks.append(task)
        stopped = Event()
        # The copied context tells a notebook which cell the drawing belongs to.
        arguments = (self._draw, stopped, task)
        thread = Thread(target=copy_context().run, args=arguments, daemon=True)
        thread.start()
        try:
            yield
            task.done = task.total
        finally:
            stopped.set()
            thread.join()
            self._tasks.remove(task)

    def note(self, text: str) -> None:
        """Ignore the message; bars have no log."""

    def _draw(self, stopped: Event, outermost: _Task) -> None:
        if stopped.wait(MIN_BAR_SECONDS):
            return
        console = _NotebookConsole() if in_notebook() else Console(stderr=True)
        if not console.is_terminal and not isinstance(console, _NotebookConsole):
            self._write_lines(stopped, console)
            return
        bars, drawn = _rich_bars(console), dict[_Task, TaskID]()
        if not isinstance(console, _NotebookConsole):
            bars.start()
        try:
            while True:
                done = stopped.wait(MIN_DRAW_SECONDS)
                now = monotonic()
                open_tasks = [outermost] if done else [*self._tasks]
                for gone in set(drawn) - set(open_tasks):
                    bars.remove_task(drawn.pop(gone))
                for depth, task in enumerate(open_tasks):
                    if task not in drawn and now - task.begun >= MIN_BAR_SECONDS:
                        label = "  " * depth + printable(task.label, 100)
                        drawn[task] = bars.add_task(label, total=task.total)
                        bars.tasks[-1].start_time = bars.get_time() - (now - task.begun)
                    if task in drawn:
                        bars.update(drawn[task], completed=task.done)
                if isinstance(console, _NotebookConsole):
                    console.show(bars)
                if done:
                    return
        finally:
            bars.stop()

    def _write_lines(self, stopped: Event, console: Console) -> None:
        """Log lines, where bars are wanted but stderr is no terminal."""
        while True:
            done = stopped.wait(MIN_LINE_SECONDS)
            text = ", ".join(map(str, [*self._tasks]))
            console.print(printable(text, 200), markup=False, highlight=False)
            if done:
                return


class _NotebookConsole(Console):
    """Renders bars to text and shows them in one output of the running cell.

    Rich draws in notebooks by ipywidgets, which may not be installed, and whose output a saved
    notebook does not show.
    """

    def __init__(self) -> None:
        super().__init__(file=StringIO(), width=90, force_jupyter=False, force_terminal=False)
        self._handle = None

    def show(self, bars: RichBars) -> None:
        """Draw the bars, over those drawn before."""
        from IPython.display import display

        with self.capture() as drawn:
            self.print(bars.get_renderable())
        data = {"text/plain": drawn.get().rstrip()}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


SILENT, AUTO = Silent(), Auto()
_ALWAYS = Auto(shown=lambda: True)


def as_progress(progress: Progress) -> Display:
    """The display that a ``progress`` argument means.

    Args:
        progress: True for bars, or lines without a terminal; False for nothing; or a display.

    Raises:
        InputError: something else.
    """
    if isinstance(progress, bool):
        return _ALWAYS if progress else SILENT
    if not callable(getattr(progress, "task", None)):
        raise InputError(
            "progress is not a display", expected="True, False or Bars()", got=quoted(progress)
        )
    return progress


def waiting_for(label: str) -> AbstractContextManager[Advance]:
    """A task of the running function's display, or of ``AUTO``, for a wait of unknown length."""
    return (_chosen.get() or AUTO).task(label, 1)


__getattr__ = moved.names_of("evidence.progress")
