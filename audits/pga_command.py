"""The command line of ``exhume pga``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def pga(
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")] = Path(
        "exhume-pga"
    ),
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings; else the small preset.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="small, published, medium, large, forty or two_hundred."),
    ] = None,
    erasers: Annotated[
        str | None, typer.Option(help="Comma-separated; else those of the settings.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything.", min=0)] = None,
    device: Annotated[
        str | None, typer.Option(help="Where models are trained: auto, cpu, cuda, mps.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Replace another experiment in the folder.")
    ] = False,
) -> None:
    """Erase membership, and see which claims survive a sound evaluation."""
    from audits.pga import pga as run
    from audits.pga_config import make_config, read_config
    from evidence.progress import Bars

    base = make_config({}) if config is None else read_config(config)
    named = None if erasers is None else [each.strip() for each in erasers.split(",")]
    given = {"size": size, "erasers": named, "seed": seed, "device": device}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = base.model_dump() | chosen
    with Bars(Console(stderr=True)) as progress:
        done = run(
            make_config(settings, "the command line"),
            out,
            fresh=fresh,
            progress=progress,
        )
    table = Table("claim", "published", "sound", "outcome", title="exhume pga")
    for claim in done["claims"]:
        table.add_row(
            *(claim[key] for key in ("claim", "published", "sound", "outcome"))
        )
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"Report: {(out / 'report.html').resolve()}", markup=False)
