"""Results as small HTML tables, for the ``_repr_html_`` that Jupyter calls.

Names in a result come from untrusted files and models. All text is escaped: markup as
HTML, invisible and control characters as in a Python string.
"""

import html
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import pandas as pd

MAX_ROWS, MAX_CHARACTERS = 20, 600
_NUMBER = ' style="text-align: right"'


def frame_html(caption: object, frame: pd.DataFrame, max_rows: int = MAX_ROWS) -> str:
    """The first rows of a table under a caption.

    Args:
        caption: What stands above the table; its text has one line or more.
        frame: The table, without its index.
        max_rows: How many rows are shown; the number of those left out is.
    """
    rows = frame.head(max_rows).itertuples(index=False, name=None)
    return table_html(caption, list(frame.columns), rows, len(frame) - max_rows)


def table_html(
    caption: object, header: Sequence[object], rows: Iterable[Sequence[Any]], left_out: int = 0
) -> str:
    """A table under a caption.

    Args:
        caption: What stands above the table; its text has one line or more.
        header: Names of the columns.
        rows: One value a column, text or numbers.
        left_out: How many more rows there are, to be said below; none if below 1.
    """
    title = "<br>".join(map(_text, str(caption).splitlines()))
    head = "".join(f"<th>{_text(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    more = f"<p>and {left_out:,} more rows</p>" if left_out > 0 else ""
    return (
        f"<div><p>{title}</p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{more}</div>"
    )


def _text(value: object) -> str:
    text = str(value)
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]} ..."
    return html.escape(text if text.isprintable() else repr(text)[1:-1])


def _cell(value: Any) -> str:
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return f"<td{_NUMBER}>&ndash;</td>"
    if isinstance(value, Real) and not isinstance(value, bool):
        number = f"{int(value):,}" if isinstance(value, Integral) else f"{value:.3g}"
        return f"<td{_NUMBER}>{number}</td>"
    return f"<td>{_text(value)}</td>"
