"""Pictures of circuits: a Plotly figure, and text for Graphviz."""

import math
from typing import TYPE_CHECKING

import numpy as np

from attribution.circuits.circuit import Circuit
from attribution.circuits.edge_scores import EdgeScores
from attribution.circuits.graph import EdgeGraph
from evidence.errors import InputError

if TYPE_CHECKING:
    import plotly.graph_objects as go

# An answer hangs on edges that lower the metric when corrupted; others work against it.
SUPPORTING_COLOR, OPPOSING_COLOR = "#2a6fbb", "#c8553d"
READER_NAMES = {"q": "query", "k": "key", "v": "value"}
MAX_EDGES = 2000  # edges a picture can show and still be read


def draw_circuit(circuit: Circuit, scores: EdgeScores) -> "go.Figure":
    """The circuit layer by layer, embedding below and logits above.

    Blue edges carry the answer, red ones work against it; the wider, the larger the
    score. Points tell what they are, and lines which input they go into.

    Args:
        circuit: What to draw.
        scores: Of the same graph.

    Raises:
        InputError: another graph's scores, or too many edges to see anything.
    """
    import plotly.graph_objects as go

    links = _drawn_edges(circuit, scores)
    spots = _node_positions(
        circuit.graph, {node for link in links for node in link[:2]}
    )
    figure = go.Figure()
    for start, end, name, score, width in links:
        (x, y), (to_x, to_y) = spots[start], spots[end]
        figure.add_trace(
            go.Scatter(
                x=[x, (x + to_x) / 2, to_x],
                y=[y, (y + to_y) / 2, to_y],
                mode="lines",
                line={
                    "width": width,
                    "color": SUPPORTING_COLOR if score < 0 else OPPOSING_COLOR,
                },
                opacity=0.6,
                hoverinfo="text",
                text=f"{name}: {score:.3g}",
                showlegend=False,
            )
        )
    figure.add_trace(
        go.Scatter(
            x=[x for x, _ in spots.values()],
            y=[y for _, y in spots.values()],
            mode="markers+text",
            marker={"size": 12, "color": "#444"},
            text=list(spots),
            textposition="top center",
            hoverinfo="text",
            showlegend=False,
        )
    )
    figure.update_layout(
        title=f"{len(links)} of {circuit.graph.n_edges} edges, faithfulness "
        f"{circuit.measured.faithfulness:.2f} ({circuit.ablation} ablation)",
        template="plotly_white",
        xaxis={"visible": False},
        yaxis={"title": "depth in the network", "showticklabels": False},
    )
    return figure


def to_dot(circuit: Circuit, scores: EdgeScores) -> str:
    """The circuit in Graphviz's language, from bottom to top.

    Args:
        circuit: What to draw.
        scores: Of the same graph.

    Raises:
        InputError: as ``draw_circuit``.
    """
    links = _drawn_edges(circuit, scores)
    lines = ["digraph circuit {", "  rankdir=BT;", "  node [shape=box];"]
    nodes = list(dict.fromkeys(node for link in links for node in link[:2]))
    lines += [f'  "{node}";' for node in nodes]
    for start, end, name, score, width in links:
        kind = READER_NAMES.get(name.partition("->")[2].split(".")[0], "")
        colour = SUPPORTING_COLOR if score < 0 else OPPOSING_COLOR
        lines.append(
            f'  "{start}" -> "{end}" [color="{colour}", penwidth={width:.2f}, '
            f'label="{kind}", tooltip="{name}: {score:.4g}"];'
        )
    return "\n".join([*lines, "}"]) + "\n"


def _drawn_edges(
    circuit: Circuit, scores: EdgeScores
) -> list[tuple[str, str, str, float, float]]:
    """(from, to, edge, score, width); an input of several heads leads to each."""
    graph = circuit.graph
    if graph != scores.graph:
        raise InputError(
            "circuit and scores belong to different graphs",
            expected=repr(graph),
            got=repr(scores.graph),
        )
    chosen = np.flatnonzero(circuit.edge_mask)
    if not 0 < len(chosen) <= MAX_EDGES:
        raise InputError(
            "this circuit cannot be drawn",
            expected=f"1 to {MAX_EDGES} edges",
            got=str(len(chosen)),
            fix="Select a smaller one",
        )
    mean = scores.mean
    largest = float(np.abs(mean[chosen]).max()) or 1.0
    found = []
    for edge in chosen.tolist():
        reader = int(graph.edge_readers[edge])
        ends = [graph.writers[w] for w in graph.sources[reader]] or ["logits"]
        width = 0.5 + 4.5 * math.sqrt(abs(mean[edge]) / largest)
        start = graph.writers[graph.edge_writers[edge]]
        found += [
            (start, end, graph.edges[edge], float(mean[edge]), width) for end in ends
        ]
    return found


def _node_positions(
    graph: EdgeGraph, nodes: set[str]
) -> dict[str, tuple[float, float]]:
    """Where each node goes: heads of a layer side by side, its MLP above them."""
    spots = {}
    for node in [*graph.writers, "logits"]:
        if node not in nodes:
            continue
        kind, *rest = node.split(".")
        if kind == "embed":
            spots[node] = (0.0, -1.0)
        elif kind == "logits":
            last = max(int(w.split(".")[1]) for w in graph.writers if "." in w)
            spots[node] = (0.0, 2.0 * last + 2)
        elif kind == "head":
            spots[node] = (1.0 + int(rest[1]), 2.0 * int(rest[0]))
        else:
            above = 1.0 if kind == "mlp" else 0.0
            spots[node] = (0.5, 2.0 * int(rest[0]) + above)
    return spots
