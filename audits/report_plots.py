"""The figures of a report, as plain Plotly JSON with colours named by role.

A colour is written ``var(--candidate)``; the page looks it up in its style sheet, so
that a role has one colour everywhere, in light, dark and print.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from audits.report_text import (
    figure,
    in_plot,
    interval,
    p_text,
    percent,
    plain,
    short_label,
    step_of,
)

# Log-probabilities below this share the last bin: they all mean "never".
LEAST_SHOWN = -20.0
MOST_TICKS = 14


@dataclass(frozen=True)
class Plot:
    """One figure with everything needed to read it without seeing it.

    Attributes:
        title: Heading.
        summary: What it shows, in one sentence, for screen readers.
        data: Plotly traces.
        layout: Plotly layout.
        keys: (role, line style, label) of each thing drawn.
        head: Column names of the numbers behind it.
        rows: Those numbers, as text.
    """

    title: str
    summary: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    keys: tuple[tuple[str, str, str], ...]
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def colour_of(role: str) -> str:
    """The role whose colour a model wears: candidate, original, planted, reference."""
    if role.startswith("reference"):
        return "reference"
    return {"unlearned": "candidate"}.get(
        role, role if role in ("original", "planted") else "other"
    )


def name_of(role: str) -> str:
    """What a role is called in the report."""
    return {"unlearned": "candidate", "planted": "planted suppression"}.get(role, role)


def reading_plot(reading: Mapping[str, Any], shares: bool) -> Plot | None:
    """Candidate, floor and original over the columns (layers, steps) of a reading.

    Returns:
        None for a reading with fewer than two columns, which its table row says all of.
    """
    columns = reading["columns"]
    if len(columns) < 2:
        return None
    names = [each["name"] for each in columns]
    x, axis = _places(names)
    used = [each["used"] for each in columns]

    def values(key: str) -> list[float]:
        return [each[key] for each in columns]

    shades = [_shade(x, index) for index, counts in enumerate(used) if not counts]
    data = [
        *_band(x, values("interval"), "candidate"),
        _line(x, values("ceiling"), "original", "solid", "original", shares),
        _line(x, values("floor"), "floor", "dash", "floor", shares),
        _line(x, values("statistic"), "candidate", "solid", "candidate", shares)
        | {
            "marker": {
                "color": "var(--candidate)",
                "size": [10 if name == reading["where"] else 7 for name in names],
                "symbol": ["circle" if counts else "circle-open" for counts in used],
            }
        },
    ]
    floor = {"reference": "floor (reference)", "never_taught": "floor (never taught)"}
    top = max(columns, key=lambda each: each["statistic"])
    keys = [
        ("candidate", "solid", "candidate, 95\u202f% interval"),
        ("original", "solid", "original"),
        ("floor", "dash", floor.get(reading["floor_kind"], "floor")),
    ]
    if shades:
        keys.append(("unused", "block", "not used: the original is not read there"))
    if step_of(names[0]) is not None and shades:
        keys[-1] = ("unused", "block", "not used: before any teaching")
    return Plot(
        title=reading["name"],
        summary=(
            f"Line chart of {reading['name']} over {len(columns)} columns. The "
            f"candidate is highest at {top['name']} with "
            f"{figure(top['statistic'], shares)}, where the floor is "
            f"{figure(top['floor'], shares)} and the original "
            f"{figure(top['ceiling'], shares)}."
        ),
        data=data,
        layout=_layout(axis, shares, shapes=shades),
        keys=tuple(keys),
        head=("where", "used", "candidate", "95\u202f% interval", "floor", "original")
        + ("p, corrected over columns",),
        rows=tuple(
            (
                each["name"],
                "yes" if each["used"] else "no",
                figure(each["statistic"], shares),
                interval(each["interval"], shares),
                figure(each["floor"], shares),
                figure(each["ceiling"], shares),
                p_text(each["p_value"]),
            )
            for each in columns
        ),
    )


def relearning_plots(axis: Mapping[str, Any]) -> list[Plot]:
    """Curves by training step of every model that was taught, the candidate first."""
    details = axis["details"]
    steps, curves = numbers(details.get("steps")), details.get("curves")
    if steps is None or not isinstance(curves, dict):
        return []
    parts = (
        ("asked", "the half not taught", "solid"),
        ("never", "never-taught items", "dash"),
        ("taught", "the half taught", "dot"),
    )
    found = []
    for role in sorted(curves, key=lambda role: (role != "unlearned", role)):
        table = curves[role] if isinstance(curves[role], dict) else {}
        lines = {part: numbers(table.get(part), len(steps)) for part, _, _ in parts}
        if lines["asked"] is None:
            continue
        colour, data, keys = colour_of(role), [], []
        if role == "unlearned" and axis["readings"]:
            inside = {
                step_of(each["name"]): each["interval"]
                for each in axis["readings"][0]["columns"]
            }
            if all(step in inside for step in steps):
                data += _band(steps, [inside[step] for step in steps], "candidate")
        for part, label, dash in parts:
            y = lines[part]
            if y is None:
                continue
            # What never-taught items do is the floor, whichever model it is seen in.
            wears = "floor" if part == "never" else colour
            data.append(_line(steps, y, wears, dash, label, True))
            keys.append((wears, dash, label))
        best = max(lines["asked"])
        found.append(
            Plot(
                title=name_of(role),
                summary=(
                    f"Line chart of accuracy by training step for the "
                    f"{name_of(role)}. The half that is not taught starts at "
                    f"{percent(lines['asked'][0])} and reaches at most {percent(best)}."
                ),
                data=data,
                layout=_layout({"title": {"text": "training step"}}, True),
                keys=tuple(keys),
                head=("step", *(label for part, label, _ in parts if lines[part])),
                rows=tuple(
                    (
                        f"{step:g}",
                        *(percent(y[at]) for y in lines.values() if y is not None),
                    )
                    for at, step in enumerate(steps)
                ),
            )
        )
    return found


def wording_plot(axis: Mapping[str, Any]) -> Plot | None:
    """Share of answers said before and after, wording by wording."""
    table = axis["details"].get("accuracy_by_wording")
    if not isinstance(table, dict):
        return None
    before = numbers(table.get("original"))
    if not before:
        return None
    rest = sorted(set(table) - {"original", "unlearned"})
    order = ["original", "unlearned", *rest]
    bars = {role: numbers(table.get(role), len(before)) for role in order}
    kept = {role: y for role, y in bars.items() if y is not None}
    labels = ["own wording", *(f"wording {i}" for i in range(2, len(before) + 1))]
    ticks = (
        labels if len(before) <= 3 else ["own", *map(str, range(2, len(labels) + 1))]
    )
    data = [
        {
            "type": "bar",
            "x": list(range(len(y))),
            "y": y,
            "name": in_plot(name_of(role)),
            "marker": {"color": f"var(--{colour_of(role)})"},
            "text": [percent(each) for each in y],
            "textposition": "outside" if len(y) * len(kept) <= 16 else "none",
            "cliponaxis": False,
            "hovertemplate": "%{y:.0%}",
        }
        for role, y in kept.items()
    ]
    axis_x = {
        "tickmode": "array",
        "tickvals": list(range(len(labels))),
        "ticktext": ticks,
        "title": {"text": "how the question was put"},
    }
    layout = _layout(axis_x, True, top=22) | {
        "barmode": "group",
        "bargap": 0.35,
        "bargroupgap": 0.08,
    }
    return Plot(
        title="Answers said, by wording",
        summary="Bar chart of the share of forgotten answers each model says: "
        + "; ".join(
            f"{name_of(role)} {', '.join(percent(each) for each in y)}"
            for role, y in kept.items()
        )
        + ".",
        data=data,
        layout=layout,
        keys=tuple((colour_of(role), "block", name_of(role)) for role in kept),
        head=("wording", *(name_of(role) for role in kept)),
        rows=tuple(
            (label, *(percent(y[at]) for y in kept.values()))
            for at, label in enumerate(labels)
        ),
    )


def logprob_plot(items: Sequence[Mapping[str, Any]]) -> Plot | None:
    """How likely each answer was before and after, as two histograms."""
    pairs = {
        role: numbers([item.get(f"logprob_{role}") for item in items])
        for role in ("original", "unlearned")
    }
    if not items or any(each is None for each in pairs.values()):
        return None
    shown = {
        role: [min(max(each, LEAST_SHOWN), 0.0) for each in y or []]
        for role, y in pairs.items()
    }
    width = 1.0
    lowest = min(min(y) for y in shown.values())
    count = max(1, int(-(lowest // width)))
    edges = [-width * (count - i) for i in range(count)]
    tables = {role: [0] * count for role in shown}
    for role, y in shown.items():
        for each in y:
            tables[role][min(int((each + width * count) / width), count - 1)] += 1
    medians = {role: sorted(y)[len(y) // 2] for role, y in shown.items()}
    data = [
        {
            "type": "bar",
            "x": [edge + width / 2 for edge in edges],
            "y": tables[role],
            "name": name_of(role),
            "marker": {"color": f"var(--{colour_of(role)})"},
            "hovertemplate": "%{y} answers",
        }
        for role in shown
    ]
    axis_x = {"title": {"text": "mean log-probability of a token of the answer, nats"}}
    layout = _layout(axis_x, False) | {"barmode": "group", "bargap": 0.1}
    layout["yaxis"] = _plain_axis("answers") | {"rangemode": "tozero"}
    return Plot(
        title="How likely the answers are",
        summary=(
            "Histogram of the log-probability of the forgotten answers: median "
            f"{plain(medians['original'], 1)} in the original and "
            f"{plain(medians['unlearned'], 1)} in the candidate."
        ),
        data=data,
        layout=layout,
        keys=tuple((colour_of(role), "block", name_of(role)) for role in shown),
        head=("from", "to", *(name_of(role) for role in shown)),
        rows=tuple(
            (
                ("below " if edge == LEAST_SHOWN else "") + plain(edge, 0),
                plain(edge + width, 0),
                *(str(tables[role][at]) for role in shown),
            )
            for at, edge in enumerate(edges)
        ),
    )


def weights_plot(layers: Sequence[Mapping[str, Any]]) -> Plot | None:
    """How far the candidate's weights moved, block by block."""
    if not layers or not any(each["relative"] > 0 for each in layers):
        return None
    names = ["rest" if each["layer"] < 0 else str(each["layer"]) for each in layers]
    values = [each["relative"] for each in layers]
    most = max(range(len(values)), key=values.__getitem__)
    axis_x = _ticks(names) | {
        "title": {"text": "block (rest: embeddings, last norm, head)"}
    }
    layout = _layout(axis_x, False) | {"bargap": 0.25}
    layout["yaxis"] = _plain_axis("relative change") | {
        "rangemode": "tozero",
        "tickformat": ".2~g",
    }
    return Plot(
        title="Weight change by block",
        summary=(
            f"Bar chart of the relative change of the weights over {len(names)} "
            f"groups; the largest, {values[most]:.2g}, is in {names[most]}."
        ),
        data=[
            {
                "type": "bar",
                "x": list(range(len(names))),
                "y": values,
                "name": "candidate",
                "marker": {"color": "var(--candidate)"},
                "hovertemplate": "%{y:.3g}",
            }
        ],
        layout=layout,
        keys=(
            (
                "candidate",
                "block",
                "candidate against original, relative Frobenius norm",
            ),
        ),
        head=("block", "relative change"),
        rows=tuple(
            (name, f"{value:.3g}") for name, value in zip(names, values, strict=True)
        ),
    )


def numbers(value: Any, length: int | None = None) -> list[float] | None:
    """``value`` where it is a list of numbers (of a given length), or None.

    Details are free-form: a report drops a plot rather than fail on one.
    """
    if not isinstance(value, list) or (length is not None and len(value) != length):
        return None
    real = all(isinstance(each, (int, float)) and isfinite(each) for each in value)
    return value if real else None


def _line(
    x: Sequence[float], y: list[float], role: str, dash: str, name: str, shares: bool
) -> dict[str, Any]:
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
        "hovertemplate": "%{y:.0%}" if shares else "%{y:.2f}",
    }


def _band(
    x: Sequence[float], bounds: Sequence[Sequence[float]], role: str
) -> list[dict[str, Any]]:
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


def _places(names: Sequence[str]) -> tuple[list[float], dict[str, Any]]:
    """X positions and axis settings of columns: steps are numbers, others a row."""
    steps = [step_of(name) for name in names]
    if all(step is not None for step in steps) and len(set(steps)) == len(steps):
        return [float(step or 0) for step in steps], {
            "title": {"text": "training step"}
        }
    known = all(name == "embed" or name.startswith("resid.") for name in names)
    title = "block (emb: the embedding)" if known else ""
    axis = _ticks([short_label(name) for name in names]) | {"title": {"text": title}}
    return [float(at) for at in range(len(names))], axis


def _ticks(labels: Sequence[str]) -> dict[str, Any]:
    """Tick labels for the places 0, 1, ..., thinned so that they do not collide."""
    every = -(-len(labels) // MOST_TICKS)
    chosen = list(range(0, len(labels), every))
    return {
        "tickmode": "array",
        "tickvals": chosen,
        "ticktext": [labels[at] for at in chosen],
    }


def _shade(x: Sequence[float], index: int) -> dict[str, Any]:
    """A grey strip over one column, half-way to its neighbours."""
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


def _plain_axis(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title},
        "gridcolor": "var(--line)",
        "zerolinecolor": "var(--line)",
        "fixedrange": True,
        "automargin": True,
    }


def _layout(
    x_axis: dict[str, Any],
    shares: bool,
    *,
    shapes: Sequence[dict[str, Any]] = (),
    top: int = 10,
) -> dict[str, Any]:
    """What all figures share; y runs from 0 to 1, so that curves can be compared."""
    return {
        "xaxis": _plain_axis("") | {"zeroline": False, "showgrid": False} | x_axis,
        "yaxis": _plain_axis("")
        | {
            "range": [-0.03, 1.03],
            "tickformat": ".0%" if shares else ".2~f",
            "zeroline": False,
        },
        "shapes": list(shapes),
        "showlegend": False,
        "hovermode": "x unified",
        "height": 290,
        "margin": {"l": 48, "r": 10, "t": top, "b": 46},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {
            "color": "var(--muted)",
            "size": 12,
            "family": "system-ui, sans-serif",
        },
        "hoverlabel": {
            "bgcolor": "var(--card)",
            "bordercolor": "var(--line)",
            "font": {"color": "var(--ink)"},
        },
    }
