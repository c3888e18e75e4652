"""Text of numbers, sites and untrusted strings in a report."""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

# Longer texts are truncated: one hostile prompt must not make a report unreadable.
MAX_CHARS = 2000
# Maximum number of settings shown in one table.
MAX_ROWS = 500

# Control characters and bidirectional overrides can hide or reorder visible text; lone surrogates
# cannot be written as UTF-8.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
_SITE = re.compile(r"(resid|attn|mlp)\.(\d+)")
_STEP = re.compile(r"step (\d+)")

MINUS = "\u2212"
DASH = "\u2013"
NO_VALUE = "\u2014"


def clean(value: Any) -> Any:
    """Make an untrusted string safe to display; other values pass unchanged.

    Control characters, bidirectional overrides and lone surrogates become U+FFFD, and strings
    longer than ``MAX_CHARS`` characters are truncated with a note. HTML escaping is the
    template's task.
    """
    if type(value) is not str:
        return value
    if len(value) > MAX_CHARS:
        n_cut = len(value) - MAX_CHARS
        value = f"{value[:MAX_CHARS]} \u2026 ({n_cut:,} more characters)"
    return _HIDDEN.sub("\ufffd", value)


def in_plot(text: str) -> str:
    """``text`` for a Plotly label, where some HTML tags would otherwise be rendered."""
    safe = clean(text)
    safe = safe.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return safe if len(safe) <= 60 else safe[:59] + "\u2026"


def plain(value: Any, digits: int = 2) -> str:
    """A number with fixed decimals, e.g. "0.88"; a dash for None."""
    if not _is_number(value):
        return NO_VALUE
    text = f"{abs(value):,.{digits}f}"
    negative = value < 0 and float(text.replace(",", "")) != 0
    return MINUS + text if negative else text


def percent(value: Any) -> str:
    """A share, e.g. "8 %"; values near 0 or 100 % are never rounded to them."""
    if not _is_number(value):
        return NO_VALUE
    hundred = 100 * value
    near_edge = 0 < hundred < 1 or 99 < hundred < 100
    if near_edge and round(hundred, 1) in (0.0, 100.0):
        return "< 0.1\u202f%" if hundred < 1 else "> 99.9\u202f%"
    return f"{plain(hundred, 1 if near_edge else 0)}\u202f%"


def p_text(value: Any) -> str:
    """A p-value with two significant digits; "< 0.001" below that."""
    if not _is_number(value):
        return NO_VALUE
    if value < 0.001:
        return "< 0.001"
    if value < 0.01:
        return f"{value:.2g}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def figure(value: Any, as_percent: bool) -> str:
    """A statistic as a percentage (``as_percent``) or a plain number."""
    return percent(value) if as_percent else plain(value)


def interval(bounds: Any, as_percent: bool) -> str:
    """An interval, e.g. "[2, 30 %]" or "[0.41, 0.84]"; empty where there is none."""
    if not bounds:
        return ""
    low, high = (figure(bound, as_percent) for bound in bounds)
    return f"[{low.removesuffix(chr(0x202F) + '%') if as_percent else low}, {high}]"


def small(value: Any) -> str:
    """A number of unknown magnitude in at most three significant digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return NO_VALUE
    if isinstance(value, int):
        return str(value) if abs(value) < 10_000 else f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def seconds(value: Any) -> str:
    """A duration, e.g. "1 min 22 s"."""
    if not _is_number(value):
        return NO_VALUE
    if value < 1:
        return "under 1 s"
    minutes, remainder = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {remainder} s" if minutes else f"{remainder} s"


def share(value: Any, whole: Any) -> str:
    """A part of a whole, e.g. "12 %"."""
    if not _is_number(value) or not _is_number(whole) or whole <= 0:
        return NO_VALUE
    return "under 1 %" if value < 0.01 * whole else f"{100 * value / whole:.0f} %"


def memory(value: Any) -> str:
    """An amount of memory, e.g. "0.57 GB"."""
    return f"{value / 1e9:,.2f} GB" if _is_number(value) else NO_VALUE


def join_sites(names: Sequence[str]) -> str:
    """Site names with runs joined, e.g. "embed, resid.3\u2013resid.7"."""
    runs: list[list[str]] = []
    for name in names:
        now = _SITE.fullmatch(name)
        last = _SITE.fullmatch(runs[-1][-1]) if runs else None
        follows = (
            now is not None
            and last is not None
            and now[1] == last[1]
            and int(now[2]) == int(last[2]) + 1
        )
        if follows:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}{DASH}{run[-1]}" for run in runs)


def describe_site(name: str) -> str:
    """Description of a column, e.g. "output of block 3"; its name where unknown."""
    kinds = {"resid": "output of block", "attn": "attention of", "mlp": "MLP of"}
    fixed = {"embed": "embedding"}
    if site := _SITE.fullmatch(name):
        block = "" if site[1] == "resid" else "block "
        return f"{kinds[site[1]]} {block}{site[2]}"
    if step := _STEP.fullmatch(name):
        return f"after {step[1]} training steps"
    return fixed.get(name, name)


def at_site(name: str) -> str:
    """A column as the end of a phrase: "at resid.3", "after teaching"."""
    return name if name.startswith("after ") else f"at {name}"


def short_label(name: str) -> str:
    """Tick label of a column: "resid.12" is 12, "embed" is emb."""
    if name == "embed":
        return "emb"
    site = _SITE.fullmatch(name)
    return site[2] if site and site[1] == "resid" else in_plot(name)


def step_of(name: str) -> int | None:
    """The number in "step 4", or None for any other column."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def flatten_settings(value: Any, name: str = "", *, depth: int = 6) -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows; long lists and tables are truncated.

    Args:
        value: JSON value.
        name: Prefix of the names.
        depth: Maximum nesting.
    """
    if isinstance(value, dict) and depth:
        rows = (
            row
            for key in sorted(value)
            for row in flatten_settings(
                value[key], f"{name}.{key}" if name else str(key), depth=depth - 1
            )
        )
        shown_rows = list(islice(rows, MAX_ROWS))
        more = next(rows, None) is not None
        return [*shown_rows, ("\u2026", "more, in audit.json")] if more else shown_rows
    if isinstance(value, list):
        if any(isinstance(entry, (dict, list)) for entry in value):
            return [(name, f"{len(value)} entries, in audit.json")]
        entries = ", ".join(small(entry) for entry in value[:24])
        more = f", \u2026 ({len(value)} in all)" if len(value) > 24 else ""
        return [(name, (entries or "none") + more)]
    return [(name, "\u2026" if isinstance(value, dict) else small(value))]


def last_part(source: str) -> str:
    """The last part of a path or hub id, short enough for one line."""
    tail = next(filter(None, reversed(re.split(r"[/\\]", source))), source)
    return tail if len(tail) <= 40 else tail[:39] + "\u2026"


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and value == value  # Tables have NaN where there is nothing.
