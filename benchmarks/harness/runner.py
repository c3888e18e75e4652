"""Suites of benchmarks: what they measure, and how a run of them is kept.

A suite has parts; a part is a function that takes the run and yields rows. After each
part its rows take the place of the part's earlier ones in the suite's result, with the
commit and the machine, and the suite's pages are written anew.
"""

import argparse
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks.harness.clock import Clock
from benchmarks.harness.pages import RESULTS, Page
from benchmarks.harness.results import Row, commit, machine, merge, read, write
from evidence.progress import SILENT, Bars, Progress

Measure = Callable[["Run"], Iterable[Row]]


@dataclass
class Run:
    """One run of some parts.

    Attributes:
        asked: Options of the command line.
        clock: For all times.
        document: The result so far.
        part: The part that is measured, with its key.
        payload: What that part keeps besides its rows.
        start: When it began, on ``time.perf_counter``.
        keep: Keeps the part with these rows; a long part calls it on its way.
        progress: Where progress is shown.
    """

    asked: argparse.Namespace
    clock: Clock
    document: dict[str, Any]
    part: str = ""
    payload: dict[str, Any] = field(default_factory=dict)
    start: float = 0.0
    keep: Callable[[Sequence[Row]], None] = lambda rows: None
    progress: Progress = SILENT

    @property
    def key(self) -> list[str]:
        """What follows the part's name: size and seed of a world."""
        return self.part.split(":")[1:]

    @property
    def seconds(self) -> int:
        """Since the part began."""
        return round(time.perf_counter() - self.start)

    def share(self, tasks: Iterable[Any]) -> list[Any]:
        """Of tasks that can be divided, those of this process."""
        turn, processes = self.asked.take
        return list(tasks)[turn::processes]


@dataclass(frozen=True)
class Part:
    """A part of a suite.

    Attributes:
        name: Of the part.
        measure: Measures it.
        default: Whether it is measured where none is named.
        always: Whether it is measured in every run.
        keyed: Whether it is named with a key, such as "curve:forty:0".
        keys: Of a keyed part: those that are measured where none is named.
    """

    name: str
    measure: Measure
    default: bool = True
    always: bool = False
    keyed: bool = False
    keys: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """What is measured of it where none is named."""
        if self.keyed:
            return [f"{self.name}:{key}" for key in self.keys]
        return [self.name] if self.default else []

    @property
    def about(self) -> str:
        """Its first line."""
        return (self.measure.__doc__ or "").strip().split("\n")[0]


Keep = Callable[[Run, "Suite", list[Row], dict[str, Any]], dict[str, Any]]


def by_part(
    run: Run, suite: "Suite", rows: list[Row], stamps: dict[str, Any]
) -> dict[str, Any]:
    """The result with these rows in the place of the part's earlier ones.

    Args:
        run: With the result so far.
        suite: Says the order of the parts.
        rows: Of the part that was measured.
        stamps: Command, commit and machine.
    """
    order = list(suite.parts)

    def name(row: Row) -> str:
        return row.get("part", "").split(":")[0]

    known = [row for row in run.document.get("rows", ()) if name(row) in order]
    merged = merge(known, rows, ["part"], lambda row: order.index(name(row)))
    commands = run.document.get("commands", {}) | {run.part: stamps["command"]}
    return run.document | run.payload | stamps | {"commands": commands, "rows": merged}


@dataclass(frozen=True)
class Suite:
    """Figures that belong together, with their result and their pages.

    Attributes:
        name: On the command line.
        about: What it measures.
        result: Name of its file in benchmarks/results, or how it follows from the
            options.
        pages: Written from it.
        options: Adds options of its own.
        devices: Where it can run.
        threads: Of a run that names none; PyTorch's number where None.
        bars: Whether progress is shown, which takes time of its own.
        cpu_targets: Whether targets mean nothing on another device.
        digits: To which values are rounded, if they are.
        keep: Gives the result with a part's rows in it.
        parts: By name.
    """

    name: str
    about: str
    result: str | Callable[[argparse.Namespace], str]
    pages: tuple[Page, ...] = ()
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    devices: tuple[str, ...] = ("cpu",)
    threads: int | None = None
    bars: bool = False
    cpu_targets: bool = False
    digits: int | None = None
    keep: Keep = by_part
    parts: dict[str, Part] = field(default_factory=dict)

    def part(self, name: str = "", **more: Any) -> Callable[[Measure], Measure]:
        """Make a function a part of the suite, under its own name or another."""

        def add(measure: Measure) -> Measure:
            key = name or measure.__name__
            self.parts[key] = Part(key, measure, **more)
            return measure

        return add

    def path(self, asked: argparse.Namespace) -> Path:
        """Where the result is kept."""
        name = self.result if isinstance(self.result, str) else self.result(asked)
        return RESULTS / f"{name}.json"

    def parser(self) -> argparse.ArgumentParser:
        """All options."""
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks {self.name}",
            description=self.about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="parts:\n" + "\n".join(self.lines()),
        )
        add = parser.add_argument
        add("--only", nargs="+", metavar="PART", default=[], help="parts to measure")
        add("--device", choices=self.devices, default=self.devices[0])
        add("--dry", action="store_true", help="print, write nothing")
        add("--take", type=shares, default=(0, 1), metavar="I/N", help=(
            "this share alone of what can be divided among processes, such as 0/4"
        ))  # fmt: skip
        add("--threads", type=int, default=self.threads)
        add("--repeats", type=int, default=3, help="of each measurement")
        add(
            "--result",
            type=Path,
            help="another file for the result; no page is written",
        )
        add("--page", action="store_true", help="only write the pages anew")
        self.options(parser)
        return parser

    def lines(self) -> list[str]:
        """One line a part."""
        width = max(map(len, self.parts))
        return [f"  {part.name:{width}}  {part.about}" for part in self.parts.values()]

    def chosen(self, parser: argparse.ArgumentParser, only: Sequence[str]) -> list[str]:
        """Parts to measure, in order."""
        for name in only:
            part = self.parts.get(name.split(":")[0])
            if part is None or (":" in name) != part.keyed:
                parser.error(
                    f"there is no part {name!r}; parts: {', '.join(self.parts)}"
                )
        always = [part.name for part in self.parts.values() if part.always]
        default = [name for part in self.parts.values() for name in part.names]
        return list(dict.fromkeys([*always, *(only or default)]))

    def run(self, arguments: Sequence[str]) -> None:
        """Measure the parts asked for, and keep each as it is done."""
        parser = self.parser()
        asked = parser.parse_args(arguments)
        if asked.page:
            self.write_pages()
            return
        if asked.device == "cuda" and not torch.cuda.is_available():
            parser.error("--device cuda needs a CUDA device, and there is none here")
        if asked.threads:
            torch.set_num_threads(asked.threads)
        clock = Clock(torch.get_num_threads(), asked.repeats, asked.device)
        path = asked.result or self.path(asked)
        run = Run(asked, clock, read(path))
        command = f"python -m benchmarks {self.name} {_shown(arguments)}".strip()

        def keep(rows: Sequence[Row]) -> None:
            stamps = {"command": command, "commit": commit(), "machine": machine()}
            stamps |= {"device": clock.device, "clock": clock.name}
            stamps["threads"] = clock.threads
            run.document = self.keep(run, self, list(rows), stamps)
            write(path, run.document)

        if not asked.dry:
            run.keep = keep
        bars = Bars() if self.bars else nullcontext(SILENT)
        with threadpool_limits(asked.threads), bars as run.progress:
            for run.part in self.chosen(parser, asked.only):
                run.payload, run.start = {}, time.perf_counter()
                run.keep(list(self._measured(run)))
                if not asked.dry and path == self.path(asked):
                    self.write_pages()

    def _measured(self, run: Run) -> Iterable[Row]:
        """Rows of one part, printed as they come."""
        stamp = {"part": run.part, "commit": commit()}
        part = self.parts[run.part.split(":")[0]]
        for row in part.measure(run):
            if self.digits is not None and row["value"] is not None:
                row["value"] = round(float(row["value"]), self.digits)
            if self.cpu_targets and run.clock.device != "cpu":
                row["target"] = None
            goal = (
                ""
                if row["target"] is None
                else f" (target {row['sense']} {row['target']:g})"
            )
            value = "-" if row["value"] is None else f"{row['value']:.4g}"
            print(f"{row['figure']}: {value} {row['unit']}{goal}", flush=True)
            yield stamp | row

    def write_pages(self) -> None:
        """Write its pages anew."""
        for page in self.pages:
            page.write()


def shares(text: str) -> tuple[int, int]:
    """A share of the work, such as "0/4"."""
    turn, processes = map(int, text.split("/"))
    if not 0 <= turn < processes:
        raise ValueError(text)
    return turn, processes


def listed(kind: Callable[[str], Any] = str) -> Callable[[str], list[Any]]:
    """For an option with several values: "a,b"."""
    return lambda text: [kind(each) for each in text.split(",") if each]


def _shown(arguments: Sequence[str]) -> str:
    """Arguments as a result names them: of a folder of this machine the last part."""
    names = [
        Path(each).name if Path(each).is_absolute() else each for each in arguments
    ]
    return shlex.join(names)
