"""HTML tables escape all text, and count the rows they leave out."""

import numpy as np
import pandas as pd

from evidence.display.html_table import frame_html, table_html


def test_all_text_is_escaped_and_nothing_is_invisible():
    evil = "<script>alert(1)</script>"
    shown = table_html(f"{evil}\n& more", [evil], [(evil,), ("right\u202eleft\x1b[31m",)])
    assert "<script>" not in shown
    assert shown.count("&lt;script&gt;") == 3
    assert "&amp; more" in shown and "<br>" in shown
    assert "\u202e" not in shown and "\x1b" not in shown and r"\u202e" in shown


def test_numbers_are_short_and_what_is_missing_is_a_dash():
    row = (1 / 3, np.float64(0.12345), 1234567, np.int64(7), float("nan"), None, True)
    shown = table_html("", [""] * len(row), [row])
    cells = [part.partition("</td>")[0] for part in shown.split("<td")[1:]]
    values = [cell.partition(">")[2] for cell in cells]
    assert values == ["0.333", "0.123", "1,234,567", "7", "&ndash;", "&ndash;", "True"]
    assert "text-align" in cells[0] and "text-align" not in cells[-1]


def test_a_long_frame_shows_its_first_rows_and_counts_the_others():
    frame = pd.DataFrame({"n": range(1300), "word": ["w"] * 1300})
    shown = frame_html("many", frame, max_rows=5)
    assert shown.count("<tr>") == 6 and "and 1,295 more rows" in shown
    assert "more rows" not in frame_html("few", frame.head(5), max_rows=5)
    empty = frame_html("none", frame.head(0))
    assert "<th>word</th>" in empty and "<td" not in empty


def test_missing_numbers_of_pandas_are_dashes():
    frame = pd.DataFrame({"layer": pd.array([1, None], dtype="Int64")})
    assert frame_html("", frame).count("&ndash;") == 1
