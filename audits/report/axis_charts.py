"""The charts of a report, one function each, with their numbers as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from audits.report.charts import (
    MAX_POINTS,
    Plot,
    band,
    base_layout,
    color_of,
    line,
    name_of,
    numbers,
    plain_axis,
    shade,
    ticks,
    x_positions,
)
from audits.report.formatting import figure, in_plot, interval, p_text, percent, plain, step_of
from evidence.typed_json import Json

# Log-probabilities below this share the last bin: the answer is practically impossible.
MIN_LOGPROB_SHOWN = -20.0
# Maximum number of models drawn.
MAX_MODELS = 20


def reading_plot(reading: Mapping[str, Any], as_percent: bool) -> Plot | None:
    """Candidate, floor and original over the columns (layers, steps) of a reading.

    Returns:
        None for a reading with fewer than two columns, whose table row says everything.
    """
    columns = reading["columns"]
    if len(columns) < 2:
        return None
    names = [column["name"] for column in columns]
    x, axis = x_positions(names)
    used = [column["used"] for column in columns]

    def values(key: str) -> list[Any]:
        return [column[key] for column in columns]

    shades = [shade(x, index) for index, counts in enumerate(used) if not counts]
    data = [
        *band(x, values("interval"), "candidate"),
        # Larger markers, so that the original stays visible under the candidate.
        line(x, values("ceiling"), "original", "solid", "original", as_percent)
        | {"marker": {"color": "var(--original)", "size": 10 if len(x) < 13 else 6}},
        line(x, values("floor"), "floor", "dash", "floor", as_percent),
        line(x, values("statistic"), "candidate", "solid", "candidate", as_percent)
        | {
            "marker": {
                "color": "var(--candidate)",
                "size": [10 if name == reading["where"] else 7 for name in names],
                "symbol": ["circle" if counts else "circle-open" for counts in used],
            }
        },
    ]
    floor = {
        "reference": "floor (reference)",
        "never_taught": "floor (never taught)",
        "permuted": "floor (answers of others)",
    }
    top = max(columns, key=lambda column: column["statistic"])
    keys = [
        ("candidate", "solid", "candidate, 95\u202f% interval"),
        ("original", "solid", "original"),
        ("floor", "dash", floor.get(reading["floor_kind"], "floor")),
    ]
    if shades:
        keys.append(("unused", "patch", "not used: the original is not read there"))
    if step_of(names[0]) is not None and shades:
        keys[-1] = ("unused", "patch", "not used: before any teaching")
    return Plot(
        title=reading["name"],
        summary=(
            f"Line chart of {reading['name']} over {len(columns)} columns. The "
            f"candidate is highest at {top['name']} with "
            f"{figure(top['statistic'], as_percent)}, where the floor is "
            f"{figure(top['floor'], as_percent)} and the original "
            f"{figure(top['ceiling'], as_percent)}."
        ),
        data=data,
        layout=base_layout(axis, as_percent, shapes=shades),
        keys=tuple(keys),
        head=(
            "where",
            "used",
            "candidate",
            "95\u202f% interval",
            "floor",
            "original",
            "p, corrected over columns",
        ),
        rows=tuple(
            (
                column["name"],
                "yes" if column["used"] else "no",
                figure(column["statistic"], as_percent),
                interval(column["interval"], as_percent),
                figure(column["floor"], as_percent),
                figure(column["ceiling"], as_percent),
                p_text(column["p_value"]),
            )
            for column in columns
        ),
    )


def relearning_plots(axis: Mapping[str, Any]) -> list[Plot]:
    """Learning curves of every fine-tuned model, the candidate first.

    One chart per model and metric, with the held-out half and never-taught items.
    """
    details = axis["details"]
    steps, curves = numbers(details.get("steps")), details.get("curves")
    if not steps or not isinstance(curves, dict):
        return []
    plots = []
    roles = sorted(curves, key=lambda role: (role != "unlearned", role))
    for role in roles[:MAX_MODELS]:
        table = curves[role] if isinstance(curves[role], dict) else {}
        curve_names = [name for name in sorted(table) if name.startswith("held_out")]
        for name in curve_names:
            plot = _relearning_plot(role, table, name.removeprefix("held_out"), steps)
            if plot is not None:
                plots.append(plot)
    return plots


def _relearning_plot(
    role: str, table: Mapping[str, Any], metric: str, steps: list[float]
) -> Plot | None:
    """One model, one metric."""
    as_percent = metric != "_contrast"
    words = {"_contrast": "contrast (chance 0.5)", "_exact_match": "exact match", "": ""}
    title = ": ".join(filter(None, (name_of(role), words.get(metric, metric.strip("_")))))
    color = color_of(role)
    # Never-taught items are drawn as the floor in every model.
    parts = [
        (f"held_out{metric}", "held-out half", "solid", color),
        (f"never_taught{metric}", "never-taught items", "dash", "floor"),
    ]
    if as_percent:  # training items have an exact match only
        parts.append(("training_accuracy", "training half", "dot", color))
    lines = [
        (y, label, dash, color_role)
        for part, label, dash, color_role in parts
        if (y := numbers(table.get(part), len(steps))) is not None
    ]
    if not lines or lines[0][1] != "held-out half":
        return None
    curve = lines[0][0]
    return Plot(
        title=title,
        summary=(
            f"Line chart over training steps, {title}. The held-out half "
            f"starts at {figure(curve[0], as_percent)} and reaches at most "
            f"{figure(max(curve), as_percent)}."
        ),
        data=[
            line(steps, y, color_role, dash, name, as_percent)
            for y, name, dash, color_role in lines
        ],
        layout=base_layout({"title": {"text": "training step"}}, as_percent),
        keys=tuple((color_role, dash, label) for _, label, dash, color_role in lines),
        head=("step", *(label for _, label, _, _ in lines)),
        rows=tuple(
            (f"{step:g}", *(figure(y[index], as_percent) for y, _, _, _ in lines))
            for index, step in enumerate(steps)
        ),
    )


def wording_plot(axis: Mapping[str, Any]) -> Plot | None:
    """Share of answers given before and after unlearning, by prompt."""
    table = axis["details"].get("accuracy_by_wording")
    if not isinstance(table, dict):
        return None
    before = numbers(table.get("original"))
    if not before:
        return None
    references = sorted(set(table) - {"original", "unlearned"})
    order = ["original", "unlearned", *references]
    bars = {role: numbers(table.get(role), len(before)) for role in order}
    shown_bars = {role: y for role, y in bars.items() if y is not None}
    labels = ["own wording", *(f"wording {i}" for i in range(2, len(before) + 1))]
    ticks = labels if len(before) <= 3 else ["own", *map(str, range(2, len(labels) + 1))]
    data = [
        {
            "type": "bar",
            "x": list(range(len(y))),
            "y": y,
            "name": in_plot(name_of(role)),
            "marker": {"color": f"var(--{color_of(role)})"},
            "text": [percent(value) for value in y],
            "textposition": "outside" if len(y) * len(shown_bars) <= 16 else "none",
            "cliponaxis": False,
            "hovertemplate": "%{y:.0%}",
        }
        for role, y in shown_bars.items()
    ]
    axis_x = {
        "tickmode": "array",
        "tickvals": list(range(len(labels))),
        "ticktext": ticks,
        "title": {"text": "prompt"},
    }
    layout = base_layout(axis_x, True, top=22) | {
        "barmode": "group",
        "bargap": 0.35,
        "bargroupgap": 0.08,
    }
    return Plot(
        title="Answers given, by paraphrase",
        summary="Bar chart of the share of forgotten answers each model gives: "
        + "; ".join(
            f"{name_of(role)} {', '.join(percent(each) for each in y)}"
            for role, y in shown_bars.items()
        )
        + ".",
        data=data,
        layout=layout,
        keys=tuple((color_of(role), "patch", name_of(role)) for role in shown_bars),
        head=("wording", *(name_of(role) for role in shown_bars)),
        rows=tuple(
            (label, *(percent(y[index]) for y in shown_bars.values()))
            for index, label in enumerate(labels)
        ),
    )


def logprob_plot(items: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Log-probability of the answers before and after unlearning, as two histograms.

    Of very many items, evenly spaced ones are counted.
    """
    items = items[:: max(1, -(-len(items) // MAX_POINTS))]
    pairs = {
        role: numbers([item.get(f"logprob_{role}") for item in items])
        for role in ("original", "unlearned")
    }
    if not items or any(values is None for values in pairs.values()):
        return None
    clipped = {
        role: [min(max(value, MIN_LOGPROB_SHOWN), 0.0) for value in y or []]
        for role, y in pairs.items()
    }
    width = 1.0
    lowest = min(min(y) for y in clipped.values())
    count = max(1, int(-(lowest // width)))
    edges = [-width * (count - i) for i in range(count)]
    tables = {role: [0] * count for role in clipped}
    for role, y in clipped.items():
        for value in y:
            tables[role][min(int((value + width * count) / width), count - 1)] += 1
    medians = {role: sorted(y)[len(y) // 2] for role, y in clipped.items()}
    data = [
        {
            "type": "bar",
            "x": [edge + width / 2 for edge in edges],
            "y": tables[role],
            "name": name_of(role),
            "marker": {"color": f"var(--{color_of(role)})"},
            "hovertemplate": "%{y} answers",
        }
        for role in clipped
    ]
    axis_x: dict[str, Json] = {"title": {"text": "log-probability of a token, nats"}}
    layout = base_layout(axis_x, False) | {"barmode": "group", "bargap": 0.1}
    layout["yaxis"] = plain_axis("answers") | {"rangemode": "tozero"}
    return Plot(
        title="How likely the answers are",
        summary=(
            "Histogram of the log-probability of the forgotten answers: median "
            f"{plain(medians['original'], 1)} in the original and "
            f"{plain(medians['unlearned'], 1)} in the candidate."
        ),
        data=data,
        layout=layout,
        keys=tuple((color_of(role), "patch", name_of(role)) for role in clipped),
        head=("from", "to", *(name_of(role) for role in clipped)),
        rows=tuple(
            (
                ("below " if edge == MIN_LOGPROB_SHOWN else "") + plain(edge, 0),
                plain(edge + width, 0),
                *(str(tables[role][index]) for role in clipped),
            )
            for index, edge in enumerate(edges)
        ),
    )


def weights_plot(layers: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Relative weight change of the candidate, block by block."""
    if not layers or not any(layer["relative"] > 0 for layer in layers):
        return None
    names = ["rest" if layer["layer"] < 0 else str(layer["layer"]) for layer in layers]
    values = [layer["relative"] for layer in layers]
    largest = max(range(len(values)), key=values.__getitem__)
    axis_x = ticks(names) | {"title": {"text": "block (rest: embeddings, last norm, head)"}}
    layout = base_layout(axis_x, False) | {"bargap": 0.25}
    layout["yaxis"] = plain_axis("relative change") | {"rangemode": "tozero", "tickformat": ".2~g"}
    return Plot(
        title="Weight change by block",
        summary=(
            f"Bar chart of the relative change of the weights over {len(names)} "
            f"groups; the largest, {values[largest]:.2g}, is in {names[largest]}."
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
        keys=(("candidate", "patch", "candidate against original, relative Frobenius norm"),),
        head=("block", "relative change"),
        rows=tuple((name, f"{value:.3g}") for name, value in zip(names, values, strict=True)),
    )
