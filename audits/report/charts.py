"""Building blocks of all charts: plain Plotly JSON with colors named by role.

A color is written ``var(--candidate)`` and resolved by the page's style sheet, so that a role
has one color everywhere, in light, dark and print.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from audits.report.formatting import in_plot, short_label, step_of
from evidence.typed_json import Json

MAX_TICKS = 14
# Longer lists and larger values are not drawn.
MAX_POINTS, MAX_VALUE = 10_000, 1e12


@dataclass(frozen=True)
class Plot:
    """One chart with everything needed to read it without seeing it.

    Attributes:
        title: Heading.
        summary: One sentence for screen readers.
        data: Plotly traces.
        layout: Plotly layout.
        keys: (role, line style, label) of each legend entry.
        head: Column names of the underlying numbers.
        rows: These numbers, as text.
    """

    title: str
    summary: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    keys: tuple[tuple[str, str, str], ...]
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def color_of(role: str) -> str:
    """The color role of a model: candidate, original, planted, reference or other."""
    if role.startswith("reference"):
        return "reference"
    return {"unlearned": "candidate"}.get(
        role, role if role in ("original", "planted") else "other"
    )


def name_of(role: str) -> str:
    """Display name of a role."""
    return {"unlearned": "candidate", "planted": "planted suppression"}.get(role, role)


def numbers(value: Any, length: int | None = None) -> list[float] | None:
    """``value`` where it is a list of finite numbers (of the given length), else None.

    Details are free-form: a report drops a chart rather than fail on one.
    """
    if not isinstance(value, list) or (length is not None and len(value) != length):
        return None
    if len(value) > MAX_POINTS:
        return None
    real = all(
        isinstance(number, (int, float))
        and not isinstance(number, bool)
        and abs(number) <= MAX_VALUE
        for number in value
    )
    return value if real else None


def line(
    x: Sequence[float], y: list[float], role: str, dash: str, name: str, as_percent: bool
) -> dict[str, Json]:
    """A curve with its points, in the colour of a role."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(x),
        "y": y,
        "name": in_plot(name),
        "line": {
            "color": f"var(--{role})",
            "dash": dash,
            "width": 2.5 if role == "candidate" and dash == "solid" else 2,
        },
        "marker": {"color": f"var(--{role})", "size": 5},
        "hovertemplate": "%{y:.0%}" if as_percent else "%{y:.2f}",
    }


def band(x: Sequence[float], bounds: Sequence[Sequence[float]], role: str) -> list[dict[str, Json]]:
    """A shaded interval behind a line."""
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [*x, *reversed(x)],
            "y": [high for _, high in bounds] + [low for low, _ in reversed(bounds)],
            "fill": "toself",
            "fillcolor": f"var(--{role}-soft)",
            "line": {"width": 0},
            "hoverinfo": "skip",
            "name": "",
        }
    ]


def x_positions(names: Sequence[str]) -> tuple[list[float], dict[str, Json]]:
    """X positions and axis settings of columns: steps are numbers, others are categories."""
    steps = [step_of(name) for name in names]
    if all(step is not None for step in steps) and len(set(steps)) == len(steps):
        return [float(step or 0) for step in steps], {"title": {"text": "training step"}}
    all_layers = all(name == "embed" or name.startswith("resid.") for name in names)
    title = "block (emb: the embedding)" if all_layers else ""
    axis = ticks([short_label(name) for name in names]) | {"title": {"text": title}}
    return [float(position) for position in range(len(names))], axis


def ticks(labels: Sequence[str]) -> dict[str, Json]:
    """Tick labels for positions 0, 1, ..., thinned so that they do not overlap."""
    step = -(-len(labels) // MAX_TICKS)
    chosen = list(range(0, len(labels), step))
    return {
        "tickmode": "array",
        "tickvals": chosen,
        "ticktext": [labels[position] for position in chosen],
    }


def shade(x: Sequence[float], index: int) -> dict[str, Json]:
    """A gray strip over one column, half-way to its neighbors."""
    left = x[index - 1] if index else 2 * x[0] - x[1]
    right = x[index + 1] if index + 1 < len(x) else 2 * x[-1] - x[-2]
    return {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": (left + x[index]) / 2,
        "x1": (right + x[index]) / 2,
        "y0": 0,
        "y1": 1,
        "line": {"width": 0},
        "fillcolor": "var(--unused)",
        "layer": "below",
    }


def plain_axis(title: str) -> dict[str, Json]:
    """An axis without zoom, so that touch scrolling over a chart scrolls the page."""
    return {
        "title": {"text": title},
        "gridcolor": "var(--line)",
        "zerolinecolor": "var(--line)",
        "fixedrange": True,
        "automargin": True,
    }


def base_layout(
    x_axis: dict[str, Json],
    as_percent: bool,
    *,
    shapes: Sequence[dict[str, Json]] = (),
    top: int = 10,
) -> dict[str, Json]:
    """The shared layout; y runs from 0 to 1, so that charts are comparable."""
    return {
        "xaxis": plain_axis("") | {"zeroline": False, "showgrid": False} | x_axis,
        "yaxis": plain_axis("")
        | {
            "range": [-0.03, 1.03],
            "tickformat": ".0%" if as_percent else ".2~f",
            "zeroline": False,
        },
        "shapes": list(shapes),
        "showlegend": False,
        "hovermode": "x unified",
        "height": 290,
        "margin": {"l": 48, "r": 10, "t": top, "b": 46},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--muted)", "size": 12, "family": "system-ui, sans-serif"},
        "hoverlabel": {
            "bgcolor": "var(--card)",
            "bordercolor": "var(--line)",
            "font": {"color": "var(--ink)"},
        },
    }


def residual_bar(
    value: float | None, bounds: tuple[float, float] | None, margin: float
) -> dict[str, Json]:
    """Positions (in 0..200) of a residual bar that spans -0.5 to 1.5.

    Args:
        value: The residual, or None for an empty scale.
        bounds: Its interval.
        margin: Equivalence margin.
    """

    def position(residual: float) -> float:
        return round(min(max((residual + 0.5) * 100, 3.0), 197.0), 1)

    bar: dict[str, Json] = {
        "margin": (position(-margin), round(position(margin) - position(-margin), 1))
    }
    if value is not None and bounds is not None:
        low, high = position(bounds[0]), position(bounds[1])
        bar |= {
            "value": position(value),
            "low": low,
            "width": round(max(high - low, 1.0), 1),
            "cut_low": bounds[0] < -0.5,
            "cut_high": bounds[1] > 1.5,
        }
    return bar
