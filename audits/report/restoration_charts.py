"""Charts of the restoration axis: restored answers by strength, with controls."""

from collections.abc import Mapping
from typing import Any

from audits.report.charts import Plot, band, base_layout, line, numbers, ticks
from audits.report.formatting import figure, in_plot, interval, percent, plain
from evidence.typed_json import Json

SHOWN = (
    ("steered", "candidate", "solid", "forgotten items, steered"),
    ("random", "other", "dot", "as much, in randomly rotated directions"),
    ("others", "planted", "dash", "as much, read from other items"),
    ("never", "floor", "dash", "never-taught items, steered"),
    ("retain", "reference", "solid", "retain items, steered (side effect)"),
)
"""Curve, color, line style, label; all but the first and last are controls."""


def restoration_plots(axis: Mapping[str, Any]) -> list[Plot]:
    """The curve over strength, and the published test; empty where details lack them."""
    if axis["name"] != "restoration":
        return []
    details = axis["details"]
    plots = [_curve(details.get("curve")), _published(details.get("state_injection"))]
    return [plot for plot in plots if plot is not None]


def _curve(saved: Any) -> Plot | None:
    """Exact match at each strength, with 95 % bands of the edit and its controls."""
    rows = saved.get("unlearned") if isinstance(saved, dict) else None
    if not isinstance(rows, list) or len(rows) < 2:
        return None
    strengths = numbers([_of(row, "strength") for row in rows])
    parts = {name: [numbers(_of(row, name), 3) for row in rows] for name, *_ in SHOWN}
    if strengths is None or any(None in part for part in parts.values()):
        return None
    x = [float(position) for position in range(len(rows))]
    tables = {name: [values or [] for values in part] for name, part in parts.items()}
    data: list[dict[str, Json]] = []
    for name, color, *_ in SHOWN[:-1]:
        bounds = [values[1:] for values in tables[name]]
        data += [
            trace | {"fillcolor": f"var(--{_band_of(color)})"} for trace in band(x, bounds, color)
        ]
    for name, color, dash, label in reversed(SHOWN):
        shares = [values[0] for values in tables[name]]
        data.append(line(x, shares, color, dash, label, True))
    best = max(range(len(rows)), key=lambda position: tables["steered"][position][0])
    best_strength = plain(strengths[best])
    controls = ", ".join(
        f"{label} {percent(tables[name][best][0])}" for name, _, _, label in SHOWN[1:]
    )
    axis_x = ticks([plain(strength) for strength in strengths])
    axis_x |= {"title": {"text": "steering strength, at the chosen sites"}}
    return Plot(
        title="Restoration over strength",
        summary=(
            f"Line chart of the share of answers given over {len(rows)} strengths. "
            f"Steered, the candidate gives most at {best_strength}: "
            f"{percent(tables['steered'][best][0])}; there, {controls}."
        ),
        data=data,
        layout=base_layout(axis_x, True),
        keys=tuple((color, dash, label) for _, color, dash, label in SHOWN),
        head=("strength", *(label for *_, label in SHOWN)),
        rows=tuple(
            (
                plain(strength),
                *(
                    f"{figure(tables[name][position][0], True)} "
                    f"{interval(tables[name][position][1:], True)}"
                    for name, *_ in SHOWN
                ),
            )
            for position, strength in enumerate(strengths)
        ),
    )


def _published(saved: Any) -> Plot | None:
    """Share of the lost answers that each arm of the published test restores."""
    roles = saved.get("roles") if isinstance(saved, dict) else None
    arms = _of(_of(roles, "unlearned"), "arms")
    if not isinstance(arms, dict):
        return None
    best = {name: _of(arm, "best") for name, arm in arms.items()}
    rates = numbers(list(best.values()))
    if not rates:
        return None
    return Plot(
        title="State injection: the published test, which does not vote",
        summary=(
            "Bar chart of the share of the lost answers that come back when the "
            "original's states are patched in by the true answer: "
            + "; ".join(f"{name} {percent(rate)}" for name, rate in zip(best, rates, strict=True))
            + "."
        ),
        data=[
            {
                "type": "bar",
                "x": list(range(len(rates))),
                "y": rates,
                "name": "restored",
                "marker": {"color": "var(--original)"},
                "text": [percent(rate) for rate in rates],
                "textposition": "outside",
                "cliponaxis": False,
                "hovertemplate": "%{y:.0%}",
            }
        ],
        layout=base_layout(ticks([in_plot(name) for name in best]), True, top=22)
        | {"bargap": 0.35},
        keys=(("original", "patch", "share of the lost answers restored, best alpha"),),
        head=("patched in", "restored"),
        rows=tuple((str(name), percent(rate)) for name, rate in zip(best, rates, strict=True)),
    )


def _band_of(color: str) -> str:
    """The color of a band: the candidate has its own, controls share one."""
    return "candidate-soft" if color == "candidate" else "band"


def _of(table: Any, name: str) -> Any:
    """An entry of a saved table, or None: details are free-form."""
    return table.get(name) if isinstance(table, dict) else None
