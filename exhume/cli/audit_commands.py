"""Commands on audits: audit, plan, validate, report and compare."""

from pathlib import Path
from typing import Annotated

import typer

from exhume.cli.options import (
    AxesOption,
    BaseOption,
    ChatOption,
    ColumnsOption,
    DeviceOption,
    FreshOption,
    NeverTaughtOption,
    OutOption,
    ProfileOption,
    ReferenceOption,
    ScorerOption,
    SeedOption,
    SystemOption,
    known_names,
    split_names,
)
from exhume.cli.terminal import errors, show, show_audit, show_lines, show_table

VERDICTS = ("not_unlearned", "suppressed", "deleted", "damaged", "inconclusive")


def audit(
    original: Annotated[
        str, typer.Option(help="Model before unlearning: folder, hub id, GGUF, adapter.")
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
    reference: ReferenceOption = None,
    never_taught: NeverTaughtOption = None,
    columns: ColumnsOption = None,
    chat: ChatOption = "auto",
    system: SystemOption = "",
    scorer: ScorerOption = "auto",
    base: BaseOption = None,
    profile: ProfileOption = "quick",
    axes: AxesOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    fail_on: Annotated[
        str | None, typer.Option(help="Comma-separated verdicts that exit with code 3.")
    ] = None,
    fresh: FreshOption = False,
) -> None:
    """Audit an unlearned checkpoint against its original."""
    from audits.run.api import audit as run_audit
    from capture.data.formats.columns import parse_columns
    from evidence.progress import Bars

    failing = known_names(fail_on, VERDICTS, "--fail-on")
    with Bars(errors) as progress:
        done = run_audit(
            original,
            unlearned,
            forget,
            retain,
            out,
            reference=reference or (),
            never_taught=never_taught,
            columns=parse_columns(columns) if columns is not None else None,
            chat=chat,
            system=system,
            scorer=scorer,
            base=base,
            profile=profile,
            axes=split_names(axes, "--axes"),
            seed=seed,
            device=device,
            fresh=fresh,
            progress=progress,
        )
    show_audit(done)
    if done.verdict in failing:
        raise typer.Exit(3)


def plan(
    original: Annotated[str, typer.Option(help="Model before unlearning.")],
    unlearned: Annotated[str, typer.Option(help="Model after unlearning.")],
    forget: Annotated[Path, typer.Option(help="Items that should be gone.")],
    retain: Annotated[Path, typer.Option(help="Items that should still be known.")],
    reference: ReferenceOption = None,
    never_taught: NeverTaughtOption = None,
    columns: ColumnsOption = None,
    chat: ChatOption = "auto",
    system: SystemOption = "",
    scorer: ScorerOption = "auto",
    base: BaseOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder of the audit, to check its free space.")
    ] = None,
    profile: ProfileOption = "quick",
    axes: AxesOption = None,
    memory: Annotated[
        float | None, typer.Option(help="GiB that may be used; free memory by default.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Estimate memory, disk and time of an audit; fail if it does not fit."""
    from audits.run.planning import plan as make_plan
    from capture.data.formats.columns import parse_columns
    from evidence.progress import Bars

    with Bars(errors) as progress:
        estimate = make_plan(
            original,
            unlearned,
            forget,
            retain,
            reference=reference or (),
            never_taught=never_taught,
            columns=parse_columns(columns) if columns is not None else None,
            chat=chat,
            system=system,
            scorer=scorer,
            base=base,
            out=out,
            memory=memory,
            progress=progress,
            profile=profile,
            axes=split_names(axes, "--axes"),
            device=device,
        )
    show_table("An audit of this pair", ("quantity", "amount"), estimate.rows())
    estimate.check()


def validate(
    forget: Annotated[Path, typer.Argument(help="Items that should be gone.")],
    retain: Annotated[Path, typer.Argument(help="Items that should still be known.")],
    original: Annotated[str | None, typer.Option(help="Model to score on the items.")] = None,
    never_taught: NeverTaughtOption = None,
    columns: ColumnsOption = None,
    chat: ChatOption = "auto",
    system: SystemOption = "",
    scorer: ScorerOption = "auto",
    base: BaseOption = None,
    profile: Annotated[str, typer.Option(help="Profile of the intended audit.")] = "quick",
) -> None:
    """Check two item files, and show how they were read."""
    from audits.run.item_check import check_items
    from capture.data.formats.columns import parse_columns
    from evidence.progress import Bars

    with Bars(errors) as progress:
        checked = check_items(
            forget,
            retain,
            original,
            never_taught=never_taught,
            columns=parse_columns(columns) if columns is not None else None,
            chat=chat,
            system=system,
            scorer=scorer,
            base=base,
            profile=profile,
            progress=progress,
        )
    show_lines(str(checked))
    checked.check()


def report(out: Annotated[Path, typer.Argument(help="Output folder of an audit.")]) -> None:
    """Rewrite the HTML report of a finished audit."""
    from audits.report.page import write_report
    from audits.run.api import load
    from evidence.storage.locks import run_lock

    finished = load(out)
    with run_lock(finished.path):
        path = write_report(finished.path, finished.document)
    show(f"Report: {path}")


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Output folders of two or more audits.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")] = Path(
        "exhume-compare"
    ),
) -> None:
    """Compare finished audits side by side, and list what differs between them."""
    from audits.comparison.compare import compare as put_together
    from audits.comparison.page import write_page
    from audits.report.formatting import percent

    comparison = put_together(folders)
    page = write_page(comparison, out)
    rows = []
    for row in comparison.to_frame().to_dict("records"):
        shares = [percent(row[name]) for name in ("exact_match", "retain_kept")]
        retained_axes = [axis for axis in comparison.axes if row[axis] == "retained"]
        rows.append((row["audit"], row["verdict"], *shares, ", ".join(retained_axes) or "none"))
    head = ("audit", "verdict", "exact match", "retain kept", "retained by")
    show_table("exhume compare", head, rows)
    for sentence in comparison.differences:
        show(f"different: {sentence}", style="yellow", where=errors)
    show(f"Page: {page.resolve()}")
