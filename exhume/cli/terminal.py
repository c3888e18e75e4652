"""Printing. What is shown may come from outside, so nothing in it is obeyed.

Control characters are written out (``evidence.errors.printable``), square brackets are
never rich's markup, and a character that the terminal lacks is written as its number.
"""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evidence.errors import printable

MAX_CHARS = 4000
"""Characters of a line that are shown."""

output = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
errors = Console(
    stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False
)


def show(text: object, *, style: str = "", where: Console = output) -> None:
    """Print one line, whatever line breaks are in it."""
    where.print(_safe(text, where), style=style)


def show_lines(text: str, *, where: Console = output) -> None:
    """Print a text of ours that has lines; what is quoted in it was escaped before."""
    for line in text.split("\n"):
        show(line, where=where)


def show_table(
    title: str,
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    where: Console = output,
) -> None:
    """Print a table; cells are cut to what a person reads."""
    table = Table(*map(printable, head), title=_safe(title, where))
    for row in rows:
        table.add_row(*(_safe(cell, where, 500) for cell in row))
    where.print(table)


def _safe(text: object, where: Console, longest: int = MAX_CHARS) -> Text:
    shown = printable(text, longest)
    encoding = where.encoding or "utf-8"
    return Text(shown.encode(encoding, "backslashreplace").decode(encoding))
