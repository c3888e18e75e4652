"""The command ``exhume compare``; in Python: ``audits.comparison.compare.compare``."""

from pathlib import Path
from typing import Annotated

import typer

from exhume.cli.terminal import errors, show, show_table


def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Output folders of two or more audits.")
    ],
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
        shares = [percent(row[name]) for name in ("said", "retain_kept")]
        retained_axes = [axis for axis in comparison.axes if row[axis] == "retained"]
        rows.append(
            (row["audit"], row["verdict"], *shares, ", ".join(retained_axes) or "none")
        )
    head = ("audit", "verdict", "says", "keeps", "still there by")
    show_table("exhume compare", head, rows)
    for sentence in comparison.differences:
        show(f"not alike: {sentence}", style="yellow", where=errors)
    show(f"Page: {page.resolve()}")
