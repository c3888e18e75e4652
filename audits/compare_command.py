"""``exhume compare``, the command; ``audits.compare.compare`` is its Python twin."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Output folders of two or more audits.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")] = Path(
        "exhume-compare"
    ),
) -> None:
    """Put finished audits side by side, and say whether they may be compared."""
    from audits.compare import compare as put_together
    from audits.compare_page import write_page
    from audits.report_text import percent

    found = put_together(folders)
    page = write_page(found, out)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    table = Table("audit", "verdict", "says", "keeps", "still there by")
    for row in found.to_frame().to_dict("records"):
        shares = [percent(row[name]) for name in ("said", "retain_kept")]
        there = [axis for axis in found.axes if row[axis] == "retained"]
        table.add_row(row["audit"], row["verdict"], *shares, ", ".join(there) or "none")
    console.print(table)
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    for sentence in found.differences:
        errors.print(f"not alike: {sentence}", style="yellow")
    console.print(f"Page: {page.resolve()}")
