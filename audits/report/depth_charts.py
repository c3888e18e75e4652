"""Charts of causal depth and of the weight change."""

from collections.abc import Mapping, Sequence
from typing import Any

from audits.report.charts import Plot, base_layout, numbers, plain_axis, x_positions
from audits.report.formatting import in_plot, plain
from evidence.typed_json import Json

# Maximum number of items drawn: more rows would be too thin to see.
MAX_ROWS = 120


def depth_plot(axis: Mapping[str, Any]) -> Plot | None:
    """Heat map of the original's loss with the candidate's states, by item and layer.

    The color scale ends at the mean loss with an unrelated entity's states.

    Returns:
        None where the details hold no such table.
    """
    details = axis["details"]
    sites, items = details.get("sites"), details.get("loss_items")
    losses = details.get("losses")
    if not isinstance(losses, dict) or not isinstance(sites, list):
        return None
    candidate = _table(losses.get("unlearned"), len(sites))
    unrelated_losses = _table(losses.get("unrelated"), len(sites))
    if not candidate or not isinstance(items, list) or len(items) != len(candidate):
        return None
    items, candidate = items[:MAX_ROWS], candidate[:MAX_ROWS]
    labels = [_label(item, row) for row, item in enumerate(items)]
    scale_values = [value for row in unrelated_losses or candidate for value in row]
    scale_max = max(sum(scale_values) / len(scale_values), 1e-6)
    _, x_axis = x_positions([str(site) for site in sites])
    layout = base_layout(x_axis, False) | {
        "height": 150 + 14 * min(len(candidate), 40),
        "hovermode": "closest",
    }
    layout["yaxis"] = plain_axis("") | {
        "autorange": "reversed",
        "showticklabels": False,
        "title": {"text": "item"},
    }
    means = [sum(column) / len(candidate) for column in zip(*candidate, strict=True)]
    lowest = min(range(len(means)), key=means.__getitem__)
    return Plot(
        title="Loss by item and layer",
        summary=(
            f"Heat map of the loss of {len(candidate)} items at {len(sites)} layers when the "
            "candidate's states replace the original's. The smallest mean loss is "
            f"{plain(means[lowest])} nats at {sites[lowest]}; an unrelated entity's states lose "
            f"{plain(scale_max)} nats on average."
        ),
        data=[
            {
                "type": "heatmap",
                "z": candidate,
                "x": list(range(len(sites))),
                "y": list(range(len(candidate))),
                "text": [[in_plot(label)] * len(sites) for label in labels],
                "zmin": 0,
                "zmax": scale_max,
                "colorscale": [[0, "var(--card)"], [1, "var(--candidate)"]],
                "showscale": False,
                "xgap": 1,
                "hovertemplate": "%{text}<br>%{z:.2f} nats<extra></extra>",
            }
        ],
        layout=layout,
        keys=(("candidate", "patch", "full color: lost as with an unrelated entity's states"),),
        head=("item", *map(str, sites)),
        rows=tuple(
            (label, *(plain(value) for value in row))
            for label, row in zip(labels, candidate, strict=True)
        ),
    )


def _table(value: Any, width: int) -> list[list[float]] | None:
    """``value`` where it is rows of the given width, else None."""
    if not isinstance(value, list) or not value:
        return None
    rows = [numbers(row, width) for row in value]
    return [row for row in rows if row] if all(rows) else None


def _label(item: Any, row: int) -> str:
    complete = isinstance(item, dict) and {"prompt", "answer"} <= item.keys()
    return f"{item['prompt']} {item['answer']}" if complete else f"item {row + 1}"


def component_rows(components: Any) -> Sequence[tuple[str, ...]]:
    """Weight geometry as text, one row a component."""
    if not isinstance(components, list):
        return ()
    return tuple(
        (
            str(row["component"]),
            str(len(row["layers"]) or ""),
            f"{row['norm']:.3g}",
            f"{row['relative']:.3g}",
            plain(row["stable_rank"]),
            f"{plain(row['input_share'])} ({plain(row['input_chance'])})",
            f"{plain(row['output_share'])} ({plain(row['output_chance'])})",
            *(_along(row, set_name) for set_name in ("forget", "retain")),
        )
        for row in components
        if isinstance(row, dict)
    )


def _along(row: dict[str, Json], set_name: str) -> str:
    """Cosine with a gradient and share in its directions; empty where unknown."""
    cosine, share = row.get(f"{set_name}_cosine"), row.get(f"{set_name}_share")
    if cosine is None or share is None:
        return ""
    return f"{cosine:+.2f}; {plain(share)} ({plain(row['input_chance'])})"
