"""The command ``exhume pga``; in Python: ``experiments.pga.run.pga``."""

from pathlib import Path
from typing import Annotated

import typer

from exhume.cli.terminal import errors, show, show_table


def pga(
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")] = Path("exhume-pga"),
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings; the small preset by default.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="small, published, medium, large, forty or two_hundred.")
    ] = None,
    erasers: Annotated[
        str | None, typer.Option(help="Comma-separated; those of the settings by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.", min=0)] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or mps; models are trained there.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Replace another experiment in the folder.")
    ] = False,
) -> None:
    """Compare erasers of membership under the published and a held-out protocol."""
    from evidence.progress import Bars
    from experiments.pga.config import make_config, read_config
    from experiments.pga.run import pga as run

    base = make_config({}) if config is None else read_config(config)
    eraser_names = None if erasers is None else [part.strip() for part in erasers.split(",")]
    given = {"size": size, "erasers": eraser_names, "seed": seed, "device": device}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = base.model_dump() | chosen
    with Bars(errors) as progress:
        done = run(make_config(settings, "the command line"), out, fresh=fresh, progress=progress)
    head = ("claim", "published", "sound", "outcome")
    show_table("exhume pga", head, ([c[key] for key in head] for c in done["claims"]))
    show(f"Report: {(out / 'report.html').resolve()}")
