"""Print to the terminal. Printed text may be untrusted, so nothing in it is interpreted.

Control characters are escaped (``evidence.errors.printable``), square brackets are never rich
markup, and characters that the terminal's encoding lacks are escaped.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evidence.errors import printable

MAX_CHARS = 4000
"""Maximum number of characters printed per line."""

output = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def show(text: object, *, style: str = "", where: Console = output) -> None:
    """Print one line; line breaks in it are escaped."""
    where.print(_safe(text, where), style=style)


def show_lines(text: str, *, where: Console = output) -> None:
    """Print a multi-line text of our own, whose quotations are escaped already."""
    for line in text.split("\n"):
        show(line, where=where)


def show_table(
    title: str, head: Sequence[str], rows: Iterable[Sequence[object]], *, where: Console = output
) -> None:
    """Print a table; long cells are truncated."""
    table = Table(*map(printable, head), title=_safe(title, where))
    for row in rows:
        table.add_row(*(_safe(cell, where, 500) for cell in row))
    where.print(table)


def show_audit(done: Any) -> None:
    """Print the verdict, its two strongest reasons, the axes, and the path of the report."""
    color = {"deleted": "green", "inconclusive": "yellow"}.get(done.verdict, "red")
    output.print("\nVerdict: ", end="")
    show(done.verdict, style=f"bold {color}")
    for reason in done.reasons[:2]:
        show(f"  - {reason}")
    for axis in done.axes.values():
        show(f"  {axis}")
    show(f"Report: {done.report.resolve()}")


def _safe(text: object, where: Console, longest: int = MAX_CHARS) -> Text:
    printed = printable(text, longest)
    encoding = where.encoding or "utf-8"
    return Text(printed.encode(encoding, "backslashreplace").decode(encoding))
