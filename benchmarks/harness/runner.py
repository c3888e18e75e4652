"""Suites of benchmarks: what they measure, and how a run of them is kept.

A suite has parts; a part is a function that takes the run and yields rows. After each
part its rows take the place of the part's earlier ones in the suite's result, with the
commit and the machine, and the suite's pages are written again.
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
from evidence.progress import SILENT, Bars, Display

Measure = Callable[["Run"], Iterable[Row]]


@dataclass
class Run:
    """One run of some parts.

    Attributes:
        args: Options of the command line.
        clock: For all times.
        document: The result so far.
        part: The part that is measured, with its key.
        payload: What that part keeps besides its rows.
        start: When it began, on ``time.perf_counter``.
        keep: Keeps the part with these rows; a long part calls it on its way.
        progress: Where progress is shown.
    """

    args: argparse.Namespace
    clock: Clock
    document: dict[str, Any]
    part: str = ""
    payload: dict[str, Any] = field(default_factory=dict)
    start: float = 0.0
    keep: Callable[[Sequence[Row]], None] = lambda rows: None
    progress: Display = SILENT

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
        turn, processes = self.args.take
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
        divided: Whether it divides its own work where processes share a run.
        devices: Where it can be measured; wherever its suite can where empty.
    """

    name: str
    measure: Measure
    default: bool = True
    always: bool = False
    keyed: bool = False
    keys: tuple[str, ...] = ()
    divided: bool = False
    devices: tuple[str, ...] = ()

    def names(self, device: str) -> list[str]:
        """What is measured of it where none is named."""
        if not self.default or not self.runs_on(device):
            return []
        return [f"{self.name}:{key}" for key in self.keys] if self.keyed else [self.name]

    def runs_on(self, device: str) -> bool:
        """Whether it can be measured there."""
        return not self.devices or device in self.devices

    @property
    def about(self) -> str:
        """Its first line."""
        return (self.measure.__doc__ or "").strip().split("\n")[0]


Keep = Callable[[Run, "Suite", list[Row], dict[str, Any]], dict[str, Any]]


def by_part(run: Run, suite: "Suite", rows: list[Row], stamps: dict[str, Any]) -> dict[str, Any]:
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

    def path(self, args: argparse.Namespace) -> Path:
        """Where the result is kept."""
        name = self.result if isinstance(self.result, str) else self.result(args)
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
        add("--dry", action="store_true", help="only say what would be measured")
        add("--no-result", action="store_true", help="measure and print, write nothing")
        divided = "this share of the parts alone, such as 0/4: processes divide them"
        add("--take", type=share_option, default=(0, 1), metavar="I/N", help=divided)
        add("--threads", type=int, default=self.threads)
        add("--repeats", type=int, default=3, help="of each measurement")
        add("--result", type=Path, help="another file; no page is written then")
        add("--page", action="store_true", help="only write the pages again")
        self.options(parser)
        return parser

    def lines(self) -> list[str]:
        """One line a part."""
        width = max(map(len, self.parts))
        return [f"  {part.name:{width}}  {part.about}" for part in self.parts.values()]

    def chosen(self, parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
        """Parts to measure, in order: those asked for, or all of the device."""
        for name in args.only:
            part = self.parts.get(name.split(":")[0])
            if part is None or (":" in name) != part.keyed:
                every = ", ".join(self.parts)
                parser.error(f"there is no part {name!r}; parts: {every}")
            if not part.runs_on(args.device):
                parser.error(f"{name} is not measured on {args.device}")
        parts = self.parts.values()
        always = [part.name for part in parts if part.always]
        default = [name for part in parts for name in part.names(args.device)]
        turn, processes = args.take
        names = [name for name in args.only or default if name not in always]
        undivided = [name for name in names if not self.part_of(name).divided]
        skipped = set(undivided) - set(undivided[turn::processes])
        return always + [name for name in names if name not in skipped]

    def part_of(self, name: str) -> Part:
        """The part that a name with its key means."""
        return self.parts[name.split(":")[0]]

    def run(self, arguments: Sequence[str]) -> None:
        """Measure the parts asked for, and keep each as it is done."""
        parser = self.parser()
        args = parser.parse_args(arguments)
        if args.page:
            self.write_pages()
            return
        if args.device == "cuda" and not torch.cuda.is_available():
            parser.error("--device cuda needs a CUDA device, and there is none here")
        if args.threads:
            torch.set_num_threads(args.threads)
        clock = Clock(torch.get_num_threads(), args.repeats, args.device)
        path = args.result or self.path(args)
        parts = self.chosen(parser, args)
        if args.dry:
            pages = [] if args.result else [page.path for page in self.pages]
            places = ", ".join(map(str, (path, *pages)))
            print(f"{self.name}: {', '.join(parts)} on {args.device}, into {places}")
            return
        run = Run(args, clock, read(path))
        command = f"python -m benchmarks {self.name} {_shown(arguments)}".strip()

        def keep(rows: Sequence[Row]) -> None:
            stamps = {"command": command, "commit": commit(), "machine": machine()}
            stamps |= {"device": clock.device, "clock": clock.name}
            stamps["threads"] = clock.threads
            # Another process may have kept parts of its own.
            run.document = before = read(path)
            stamp = {"part": run.part, "commit": stamps["commit"]}
            rows = [stamp | self.as_kept(row, clock.device) for row in rows]
            run.document = self.keep(run, self, rows, stamps)
            if run.document != before:
                write(path, run.document)

        if not args.no_result:
            run.keep = keep
        bars = Bars() if self.bars else nullcontext(SILENT)
        with threadpool_limits(args.threads), bars as run.progress:
            for run.part in parts:
                run.payload, run.start = {}, time.perf_counter()
                rows = []
                for row in self.part_of(run.part).measure(run):
                    print(describe(self.as_kept(row, clock.device)), flush=True)
                    rows.append(row)
                run.keep(rows)
                if path == self.path(args) and not args.no_result:
                    self.write_pages()

    def as_kept(self, row: Row, device: str) -> Row:
        """A row as it is kept: rounded, and without a target that is another device's."""
        value, target = row["value"], row["target"]
        if self.digits is not None and value is not None:
            value = round(float(value), self.digits)
        if self.cpu_targets and device != "cpu":
            target = None
        return row | {"value": value, "target": target}

    def write_pages(self) -> None:
        """Write its pages again."""
        for page in self.pages:
            page.write()


def describe(row: Row) -> str:
    """One line about a row."""
    value = "-" if row["value"] is None else f"{row['value']:.4g}"
    line = f"{row['figure']}: {value} {row['unit']}"
    if row["target"] is None:
        return line
    return f"{line} (target {row['sense']} {row['target']:g})"


def share_option(text: str) -> tuple[int, int]:
    """A share of the work, such as "0/4"."""
    turn, _, processes = text.partition("/")
    if not (turn.isdecimal() and processes.isdecimal() and int(turn) < int(processes)):
        raise argparse.ArgumentTypeError(f"{text!r} is no share such as 0/4 or 3/4")
    return int(turn), int(processes)


def list_option(kind: Callable[[str], Any] = str) -> Callable[[str], list[Any]]:
    """For an option with several values: "a,b"."""
    return lambda text: [kind(each) for each in text.split(",") if each]


def _shown(arguments: Sequence[str]) -> str:
    """Arguments as a result names them: of a folder of this machine the last part."""
    names = [Path(each).name if Path(each).is_absolute() else each for each in arguments]
    return shlex.join(names)
