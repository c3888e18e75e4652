"""The report of ``exhume pga``: one offline page with both protocols side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from audits.report.formatting import flatten_settings, in_plot
from audits.report.templates import style_sheet, template

HEAD = (
    "model",
    "published, lowest",
    "published, highest",
    "sound, best AUC",
    "p",
    "reading",
    "trained readers, best AUC",
    "recall, erased",
    "recall, not erased",
    "perplexity",
    "role swap",
)


def render(document: Mapping[str, Any]) -> str:
    """The page as text; deterministic."""
    from plotly.offline import get_plotlyjs

    rows, world = document["rows"], document["world"]
    sound = next(row["sound"] for row in rows if "sound" in row)
    return template("pga.html.j2").render(
        css=style_sheet(),
        plotly=Markup(get_plotlyjs()),
        claims=document["claims"],
        families=len(world["families"]),
        views=len(world["views"]),
        head=HEAD,
        table=table(rows),
        sequences=sound["sequences"],
        smallest=f"{sound['smallest_p']:.3g}",
        interventions=_interventions(document["interventions"]),
        uncertified=_uncertified(document),
        settings=[
            *flatten_settings(document["config"]),
            *flatten_settings({"model": world["card"]}),
        ],
        figures=[_published_figure(rows), _sound_figure(rows)],
    )


def table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row per model or eraser, as text in the order of ``HEAD``."""
    lines = []
    for name, parts in _merged(rows).items():
        published, held_out = parts.get("published"), parts.get("sound")
        true = [] if published is None else published["true"]
        cost = held_out if held_out is not None and "utility" in held_out else published
        useful = (cost or {}).get("utility")
        unseen_recall = (held_out or {}).get("recall_test")
        lines.append(
            (
                name,
                f"{min(true):.2f}" if true else "",
                f"{max(true):.2f}" if true else "",
                "" if held_out is None else f"{held_out['best']:.2f}",
                "" if held_out is None else f"{held_out['p']:.3g}",
                "" if held_out is None else held_out["reading"],
                _trained(held_out),
                "" if not cost or "recall" not in cost else f"{cost['recall']['mean']:.3g}",
                "" if unseen_recall is None else f"{unseen_recall['mean']:.3g}",
                "" if useful is None else f"{useful['ratio']:.3f} times",
                "" if useful is None else ("yes" if useful["role_swap"] else "no"),
            )
        )
    return lines


def _interventions(interventions: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Both interventions in words."""
    test, attack = interventions["projection"], interventions["refit"]
    depth = test["depth"]
    path = " to ".join(f"{value:.2f}" for value in attack["accuracy"])
    return [
        (
            f"projecting the probe's direction out at depth {depth}",
            f"accuracy {test['before'][depth]:.2f} to {test['after'][depth]:.2f}, "
            f"recall {-test['recall_drop']:+.2f} nats a digit, clean codes "
            f"{-test['other_drop']:+.2f}; published rule: {test['reading']}",
        ),
        (
            f"{attack['rank']} rounds of a re-fitting attacker, all depths",
            f"best fresh probe {path}, recall {-attack['recall_drop']:+.2f} nats a "
            f"digit; {'beaten' if attack['beaten'] else 'not beaten'} at 0.55",
        ),
    ]


def _uncertified(document: Mapping[str, Any]) -> int:
    """Number of logistic fits without a certificate of optimality."""
    parts = [row[key] for row in document["rows"] for key in ("published", "sound") if key in row]
    return sum(part.get("uncertified", 0) for part in [*parts, document["interventions"]])


def _trained(tested: Mapping[str, Any] | None) -> str:
    trained = None if tested is None else tested["trained"]
    return "" if not trained else f"{max(trained.values()):.2f}"


def _merged(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Both protocols' results by the name of the model or eraser."""
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row["eraser"] or row["model"]
        merged.setdefault(name, {}).update(
            {key: row[key] for key in ("published", "sound") if key in row}
        )
    return merged


def _lines(rows: list[dict[str, Any]], protocol: str, values) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for name, parts in _merged(rows).items():
        if protocol not in parts:
            continue
        y = values(parts[protocol])
        untrained = name.startswith("untrained")
        traces.append(
            {
                "type": "scatter",
                "x": list(range(len(y))),
                "y": y,
                "mode": "lines" if untrained else "lines+markers",
                "name": "untrained" if untrained else in_plot(name),
                "legendgroup": "untrained" if untrained else in_plot(name),
                "showlegend": not untrained or name == "untrained 1",
                "line": {"width": 1, "color": "#bbb"} if untrained else {"width": 2},
            }
        )
    return traces


def _published_figure(rows: list[dict[str, Any]]) -> dict[str, Any]:
    data = _lines(rows, "published", lambda part: part["true"])
    return {"data": data, "layout": _layout("accuracy")}


def _sound_figure(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def best(part: dict[str, Any]) -> list[float]:
        return np.max(part["auc"], axis=(0, 1)).tolist()

    layout = _layout("AUC")
    bands = [
        parts["sound"]["band"]
        for name, parts in _merged(rows).items()
        if "sound" in parts
        and not name.startswith("untrained")
        and parts["sound"]["band"] is not None
    ]
    layout["shapes"] += [_level(band, "dot") for band in bands]
    return {"data": _lines(rows, "sound", best), "layout": layout}


def _level(y: float, dash: str) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "line": {"width": 1, "dash": dash, "color": "#888"},
    }


def _layout(title: str) -> dict[str, Any]:
    return {
        "height": 380,
        "margin": {"l": 50, "r": 10, "t": 10, "b": 40},
        "xaxis": {"title": {"text": "depth (0 is the embeddings)"}, "dtick": 1},
        "yaxis": {"title": {"text": title}, "range": [-0.03, 1.03]},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#777"},
        "shapes": [_level(0.5, "solid")],
    }
