"""The report of ``exhume pga``: one offline page with both protocols side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from audits.report.formatting import flatten_settings, in_plot
from audits.report.templates import style_sheet, template
from evidence.typed_json import Json
from experiments.pga.results import Document, HeldOutScores, Interventions, ModelRow

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


def render(document: Document) -> str:
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


def table(rows: Sequence[ModelRow]) -> list[tuple[str, ...]]:
    """One row per model or eraser, as text in the order of ``HEAD``."""
    lines = []
    for name, parts in _merged(rows).items():
        published, held_out = parts.get("published"), parts.get("sound")
        true = [] if published is None else published["true"]
        cost = held_out if held_out is not None and "utility" in held_out else published
        useful = None if cost is None else cost.get("utility")
        recalled = None if cost is None else cost.get("recall")
        unseen_recall = None if held_out is None else held_out.get("recall_test")
        lines.append(
            (
                name,
                f"{min(true):.2f}" if true else "",
                f"{max(true):.2f}" if true else "",
                "" if held_out is None else f"{held_out['best']:.2f}",
                "" if held_out is None else f"{held_out['p']:.3g}",
                "" if held_out is None else held_out["reading"],
                _trained(held_out),
                "" if recalled is None else f"{recalled['mean']:.3g}",
                "" if unseen_recall is None else f"{unseen_recall['mean']:.3g}",
                "" if useful is None else f"{useful['ratio']:.3f} times",
                "" if useful is None else ("yes" if useful["role_swap"] else "no"),
            )
        )
    return lines


def _interventions(interventions: Interventions) -> list[tuple[str, str]]:
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


def _uncertified(document: Document) -> int:
    """Number of logistic fits without a certificate of optimality."""
    published = [row["published"]["uncertified"] for row in document["rows"] if "published" in row]
    held_out = [row["sound"]["uncertified"] for row in document["rows"] if "sound" in row]
    return sum(published) + sum(held_out) + document["interventions"]["uncertified"]


def _trained(tested: HeldOutScores | None) -> str:
    trained = None if tested is None else tested["trained"]
    return "" if not trained else f"{max(trained.values()):.2f}"


def _merged(rows: Sequence[ModelRow]) -> dict[str, ModelRow]:
    """Both protocols' results by the name of the model or eraser."""
    merged: dict[str, ModelRow] = {}
    for row in rows:
        merged.setdefault(
            row["eraser"] or row["model"], {"model": row["model"], "eraser": row["eraser"]}
        ).update(row)
    return merged


def _lines(values: Mapping[str, Sequence[float]]) -> list[Json]:
    """Plotly traces over depths, by the name of the model or eraser."""
    traces: list[Json] = []
    for name, y in values.items():
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


def _published_figure(rows: Sequence[ModelRow]) -> Json:
    accuracies = {
        name: parts["published"]["true"]
        for name, parts in _merged(rows).items()
        if "published" in parts
    }
    return {"data": _lines(accuracies), "layout": _layout("accuracy")}


def _sound_figure(rows: Sequence[ModelRow]) -> Json:
    scores = {name: parts["sound"] for name, parts in _merged(rows).items() if "sound" in parts}
    best = {name: np.max(part["auc"], axis=(0, 1)).tolist() for name, part in scores.items()}
    bands = [
        part["band"]
        for name, part in scores.items()
        if not name.startswith("untrained") and part["band"] is not None
    ]
    return {"data": _lines(best), "layout": _layout("AUC", bands)}


def _level(y: float, dash: str) -> Json:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "line": {"width": 1, "dash": dash, "color": "#888"},
    }


def _layout(title: str, bands: Sequence[float] = ()) -> Json:
    """A figure's layout.

    Args:
        bands: Levels of dotted lines.
    """
    return {
        "height": 380,
        "margin": {"l": 50, "r": 10, "t": 10, "b": 40},
        "xaxis": {"title": {"text": "depth (0 is the embeddings)"}, "dtick": 1},
        "yaxis": {"title": {"text": title}, "range": [-0.03, 1.03]},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#777"},
        "shapes": [_level(0.5, "solid"), *(_level(band, "dot") for band in bands)],
    }
