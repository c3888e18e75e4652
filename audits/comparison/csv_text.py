"""Tables as CSV text that is safe to open in a spreadsheet."""

import re

import pandas as pd

from evidence.errors import printable

# A cell with such a start is a formula, or becomes one when a program trims it.
_FORMULA = re.compile("^[\\s\\x00]*[=+\\-@\uff1d\uff0b\uff0d\uff20\u2212|%]|^[\\t\\r\\n\\x00]")


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV; numbers stay numbers.

    A text that a spreadsheet would read as a formula gets a leading apostrophe, which marks it
    as text; control characters are escaped.
    """
    safe = frame.map(_cell)
    safe.columns = [_cell(str(name)) for name in frame.columns]
    return safe.to_csv(index=False)


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    mark = "'" if _FORMULA.match(value) else ""
    return mark + printable(value, None)
