"""Draw circuits: a Plotly figure and Graphviz source."""

import math
from typing import TYPE_CHECKING

import numpy as np

from attribution.circuits.circuit import Circuit
from attribution.circuits.edge_scores import EdgeScores
from attribution.circuits.graph import EdgeGraph
from evidence.errors import InputError

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Corrupting a supporting edge lowers the metric; corrupting an opposing edge raises it.
SUPPORTING_COLOR, OPPOSING_COLOR = "#2a6fbb", "#c8553d"
READER_NAMES = {"q": "query", "k": "key", "v": "value"}
MAX_EDGES = 2000  # more edges cannot be told apart in a picture


def draw_circuit(circuit: Circuit, scores: EdgeScores) -> "go.Figure":
    """Draw the circuit by layer, with the embedding at the bottom and the logits at the top.

    Blue edges support the answer and red edges oppose it; line width grows with the score. Hovering
    shows the name and score of an edge.

    Raises:
        InputError: The scores belong to another graph, or the circuit has too many edges to be
            legible.

    Examples:
        >>> pairs = exhume.pair_items(tokenizer, births[:8], np.random.default_rng(0))
        >>> scores = exhume.score_edges(model, pairs)
        >>> circuit = exhume.select_circuit(model, pairs, scores, target=0.5)
        >>> type(exhume.draw_circuit(circuit, scores)).__name__
        'Figure'
    """
    import plotly.graph_objects as go

    links = _drawn_edges(circuit, scores)
    positions = _node_positions(circuit.graph, {node for link in links for node in link[:2]})
    figure = go.Figure()
    for start, end, name, score, width in links:
        (x, y), (to_x, to_y) = positions[start], positions[end]
        figure.add_trace(
            go.Scatter(
                x=[x, (x + to_x) / 2, to_x],
                y=[y, (y + to_y) / 2, to_y],
                mode="lines",
                line={"width": width, "color": SUPPORTING_COLOR if score < 0 else OPPOSING_COLOR},
                opacity=0.6,
                hoverinfo="text",
                text=f"{name}: {score:.3g}",
                showlegend=False,
            )
        )
    figure.add_trace(
        go.Scatter(
            x=[x for x, _ in positions.values()],
            y=[y for _, y in positions.values()],
            mode="markers+text",
            marker={"size": 12, "color": "#444"},
            text=list(positions),
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
    """Return the circuit as Graphviz source, drawn from bottom to top.

    Raises:
        InputError: As ``draw_circuit``.
    """
    links = _drawn_edges(circuit, scores)
    lines = ["digraph circuit {", "  rankdir=BT;", "  node [shape=box];"]
    nodes = list(dict.fromkeys(node for link in links for node in link[:2]))
    lines += [f'  "{node}";' for node in nodes]
    for start, end, name, score, width in links:
        reader_name = READER_NAMES.get(name.partition("->")[2].split(".")[0], "")
        color = SUPPORTING_COLOR if score < 0 else OPPOSING_COLOR
        lines.append(
            f'  "{start}" -> "{end}" [color="{color}", penwidth={width:.2f}, '
            f'label="{reader_name}", tooltip="{name}: {score:.4g}"];'
        )
    return "\n".join([*lines, "}"]) + "\n"


def _drawn_edges(circuit: Circuit, scores: EdgeScores) -> list[tuple[str, str, str, float, float]]:
    """(start node, end node, edge, score, line width); shared inputs are drawn to every head."""
    graph = circuit.graph
    if graph != scores.graph:
        raise InputError(
            "circuit and scores belong to different graphs",
            expected=repr(graph),
            got=repr(scores.graph),
        )
    edge_idx = np.flatnonzero(circuit.edge_mask)
    if not 0 < len(edge_idx) <= MAX_EDGES:
        raise InputError(
            "this circuit cannot be drawn",
            expected=f"1 to {MAX_EDGES} edges",
            got=str(len(edge_idx)),
            fix="Select a smaller one",
        )
    mean = scores.mean
    largest = float(np.abs(mean[edge_idx]).max()) or 1.0
    drawn = []
    for edge in edge_idx.tolist():
        reader = int(graph.edge_readers[edge])
        readers = [graph.writers[w] for w in graph.sources[reader]] or ["logits"]
        width = 0.5 + 4.5 * math.sqrt(abs(mean[edge]) / largest)
        start = graph.writers[graph.edge_writers[edge]]
        drawn += [(start, end, graph.edges[edge], float(mean[edge]), width) for end in readers]
    return drawn


def _node_positions(graph: EdgeGraph, nodes: set[str]) -> dict[str, tuple[float, float]]:
    """(x, y) of each node: the heads of a layer side by side, its MLP above them."""
    positions = {}
    for node in [*graph.writers, "logits"]:
        if node not in nodes:
            continue
        kind, *indices = node.split(".")
        if kind == "embed":
            positions[node] = (0.0, -1.0)
        elif kind == "logits":
            last = max(int(w.split(".")[1]) for w in graph.writers if "." in w)
            positions[node] = (0.0, 2.0 * last + 2)
        elif kind == "head":
            positions[node] = (1.0 + int(indices[1]), 2.0 * int(indices[0]))
        else:
            offset = 1.0 if kind == "mlp" else 0.0
            positions[node] = (0.5, 2.0 * int(indices[0]) + offset)
    return positions
