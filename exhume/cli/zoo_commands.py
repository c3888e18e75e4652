"""Commands on models of known state: zoo build and selftest."""

from pathlib import Path
from typing import Annotated

import typer

from exhume.cli.options import DeviceOption, OutOption, split_names, split_numbers
from exhume.cli.terminal import errors, show, show_table


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
    only: Annotated[str | None, typer.Option(help="Comma-separated kinds; all by default.")] = None,
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
            seeds=split_numbers(seeds, "--seeds"),
            world=world,
            families=split_names(families, "--families"),
            only=split_names(only, "--only"),
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
    families: Annotated[str, typer.Option(help="Comma-separated: llama, gpt2, neox.")] = "llama",
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
            families=known_families(split_names(families, "--families")),
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
        target = "" if row["target"] is None else f" ({row['sense']} {row['target']:.3g})"
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
