"""Circuits: the smallest set of edges that carries an answer, measured by ablation.

Edges are ordered by absolute score and edges without a path to the logits are dropped. The smallest
set is selected whose faithfulness reaches a target, with every other edge ablated. Scores only
order the edges; faithfulness is always measured by intervention.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attribution.circuits.ablation import (
    AblationName,
    ablated_values,
    check_ablation,
    mean_values,
    run_ablated,
)
from attribution.circuits.eap import GIB, row_batches
from attribution.circuits.edge_scores import EdgeScores
from attribution.circuits.forward_backward import InstrumentedModel, run_forward
from attribution.circuits.graph import EdgeGraph, build_graph
from attribution.circuits.metrics import MetricName, check_metric, make_batch, make_metric
from attribution.circuits.prompt_pairs import PromptPairs
from attribution.circuits.structure import TransformerStructure, find_structure
from capture.network.edits.row_order import refuse_row_edits
from capture.network.hooks import evaluation_mode
from capture.network.model_inputs import reads_weights
from capture.network.structure import is_transposed, model_device
from evidence.display.html_table import frame_html
from evidence.errors import InputError

# Circuit sizes tried: a logarithmic grid of this many, from this share of the edges to all.
N_SIZES, MIN_SHARE = 24, 0.002


@dataclass(frozen=True)
class Faithfulness:
    """A metric under ablation, mean over pairs.

    Attributes:
        full: No edge ablated.
        empty: Every edge ablated.
        kept: Every edge ablated except the circuit's.
        without: Only the circuit's edges ablated.
    """

    full: float
    empty: float
    kept: float
    without: float

    @property
    def faithfulness(self) -> float:
        """Share of the metric that the circuit alone carries: 1 for all of it."""
        return (self.kept - self.empty) / (self.full - self.empty)

    @property
    def completeness(self) -> float:
        """Share of the metric that is lost without the circuit: 1 for all of it."""
        return (self.full - self.without) / (self.full - self.empty)


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """Edges that carry an answer, with their faithfulness under ablation.

    Attributes:
        graph: The graph of all edges.
        edge_mask: (edge,) bool, read-only.
        measured: The metric under the ablation that the circuit was selected by.
        ablation: That ablation.
        target: The requested faithfulness.

    Examples:
        >>> pairs = exhume.pair_items(tokenizer, births[:8], np.random.default_rng(0))
        >>> scores = exhume.score_edges(model, pairs)
        >>> circuit = exhume.select_circuit(model, pairs, scores, target=0.5)
        >>> circuit.to_frame().columns.tolist()
        ['edge', 'writer', 'reader']
    """

    graph: EdgeGraph
    edge_mask: np.ndarray
    measured: Faithfulness
    ablation: AblationName
    target: float

    def __post_init__(self) -> None:
        self.edge_mask.setflags(write=False)

    def __repr__(self) -> str:
        return (
            f"Circuit({int(self.edge_mask.sum())} of {self.graph.n_edges} edges, "
            f"faithfulness {self.measured.faithfulness:.2f}, "
            f"completeness {self.measured.completeness:.2f}, {self.ablation})"
        )

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def to_frame(self) -> pd.DataFrame:
        """One row a chosen edge: its name, writer and reader."""
        pairs = [edge.split("->") for edge in self.edges]
        frame = pd.DataFrame(pairs, columns=["writer", "reader"])
        frame.insert(0, "edge", self.edges)
        return frame

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the circuit's edges, in graph order."""
        return tuple(self.graph.edges[index] for index in np.flatnonzero(self.edge_mask))


def top_edges(scores: EdgeScores, count: int) -> np.ndarray:
    """(edge,) mask of the ``count`` edges of largest |score|, without dead ends.

    Examples:
        >>> pairs = exhume.pair_items(tokenizer, births[:8], np.random.default_rng(0))
        >>> scores = exhume.score_edges(model, pairs)
        >>> bool(0 < exhume.top_edges(scores, 20).sum() <= 20)
        True
    """
    return scores.graph.connected_to_logits(scores.graph.mask(scores.top(count).tolist()))


@reads_weights
def select_circuit(
    model: nn.Module,
    pairs: PromptPairs,
    scores: EdgeScores,
    *,
    target: float = 0.85,
    ablation: AblationName = "corrupt",
    structure: TransformerStructure | None = None,
    max_bytes: int = 2 * GIB,
) -> Circuit:
    """The smallest set of top-|score| edges whose faithfulness reaches ``target``.

    Bisection over a grid of sizes, which assumes that faithfulness grows with size up to small
    dips; the selected circuit itself is measured to reach the target.

    Args:
        model: The model that was scored.
        pairs: Prompt pairs to measure on. Use other pairs than those of the scores for an unbiased
            figure.
        scores: From ``score_edges``; its metric is measured.
        target: Share of the metric that the circuit must carry, in (0, 1].
        ablation: What ablated edges carry: values of the "corrupt" run, the "mean", or "zero".
        structure: The model's structure, if already found.
        max_bytes: Memory limit for the values of one batch.

    Raises:
        InputError: The target or ablation is invalid, or the scores belong to another graph; or as
            ``measure_circuit``.

    Examples:
        >>> pairs = exhume.pair_items(tokenizer, births[:8], np.random.default_rng(0))
        >>> scores = exhume.score_edges(model, pairs)
        >>> circuit = exhume.select_circuit(model, pairs, scores, target=0.8)
        >>> circuit.measured.faithfulness >= 0.8, len(circuit.edges) < scores.graph.n_edges
        (True, True)
    """
    refuse_row_edits("the measurement of a circuit")
    if not 0 < target <= 1:
        raise InputError(
            "a circuit cannot carry that share of the metric",
            expected="a target above 0 and at most 1",
            got=str(target),
        )
    runs = _AblationRuns(model, pairs, scores.metric, ablation, structure, max_bytes)
    if runs.graph != scores.graph:
        raise InputError(
            "the scores belong to another graph", expected=repr(runs.graph), got=repr(scores.graph)
        )
    grid = np.geomspace(MIN_SHARE, 1, N_SIZES) * scores.graph.n_edges
    sizes = np.unique(grid.round().astype(int).clip(min=1))
    low, high = -1, len(sizes) - 1  # the largest holds every edge
    best: tuple[np.ndarray, Faithfulness] | None = None
    while high - low > 1:
        middle = (low + high) // 2
        edge_mask = top_edges(scores, int(sizes[middle]))
        measured = runs.measure(edge_mask)
        if measured.faithfulness >= target:
            high, best = middle, (edge_mask, measured)
        else:
            low = middle
    if best is None:
        edge_mask = top_edges(scores, scores.graph.n_edges)
        best = edge_mask, runs.measure(edge_mask)
    return Circuit(scores.graph, *best, ablation, target)


@reads_weights
def measure_circuit(
    model: nn.Module,
    pairs: PromptPairs,
    edge_mask: np.ndarray,
    *,
    metric: MetricName = "logit_difference",
    ablation: AblationName = "corrupt",
    structure: TransformerStructure | None = None,
    max_bytes: int = 2 * GIB,
) -> Faithfulness:
    """Measure the faithfulness and completeness of a set of edges by ablation.

    Args:
        edge_mask: (edge,) bool.
        metric: The metric to measure.
        ablation: What ablated edges carry.
        structure: The model's structure, if already found.
        max_bytes: Memory limit for the values of one batch.

    Raises:
        InputError: Ablating every edge does not lower the metric, so no share of it is defined;
            ``edge_mask`` has another length; or as ``score_edges``.

    Examples:
        >>> pairs = exhume.pair_items(tokenizer, births[:8], np.random.default_rng(0))
        >>> scores = exhume.score_edges(model, pairs)
        >>> everything = np.ones(scores.graph.n_edges, dtype=bool)
        >>> exhume.measure_circuit(model, pairs, everything).faithfulness
        1.0
    """
    refuse_row_edits("the measurement of a circuit")
    return _AblationRuns(model, pairs, metric, ablation, structure, max_bytes).measure(edge_mask)


def ablated_metric(
    model: nn.Module,
    pairs: PromptPairs,
    edge_masks: list[np.ndarray],
    *,
    metric: MetricName = "logit_difference",
    ablation: AblationName = "corrupt",
    structure: TransformerStructure | None = None,
    max_bytes: int = 2 * GIB,
) -> np.ndarray:
    """(mask, pair) metric with the edges of each mask ablated.

    Args:
        edge_masks: (edge,) bool masks of the edges to ablate.
        metric: The metric to measure.
        ablation: What ablated edges carry.
        structure: The model's structure, if already found.
        max_bytes: Memory limit for the values of one batch.

    Raises:
        InputError: As ``measure_circuit``.
    """
    return _AblationRuns(model, pairs, metric, ablation, structure, max_bytes).values(edge_masks)


class _AblationRuns:
    """A model with pairs, metric and ablation, measured under many edge masks."""

    def __init__(
        self,
        model: nn.Module,
        pairs: PromptPairs,
        metric: MetricName,
        ablation: AblationName,
        structure: TransformerStructure | None,
        max_bytes: int,
    ):
        self.pairs, self.max_bytes = pairs, max_bytes
        self.metric: MetricName = check_metric(metric)
        self.ablation: AblationName = check_ablation(ablation)
        structure = structure or find_structure(model)
        self.graph = build_graph(structure)
        self.instrumented = InstrumentedModel(model, structure, self.graph, structure.readout)
        no_edges = np.zeros(self.graph.n_edges, dtype=bool)
        self.full, self.empty = self.values([no_edges, ~no_edges]).mean(1).tolist()

    def values(self, edge_masks: list[np.ndarray]) -> np.ndarray:
        """(mask, pair) metric with the edges of each mask ablated."""
        metrics = np.zeros((len(edge_masks), len(self.pairs)))
        device = model_device(self.instrumented.model)
        with evaluation_mode(self.instrumented.model):
            prepared = [
                (rows, make_batch(self.pairs, rows, self.metric, device))
                for rows in row_batches(self.instrumented, self.pairs, self.max_bytes)
            ]
            mean = None
            if self.ablation == "mean":
                mean = mean_values(self.instrumented, [batch for _, batch in prepared])
            for rows, batch in prepared:
                clean = run_forward(self.instrumented, batch.clean, batch.metric_mask).logits
                metric = make_metric(self.metric, batch, clean)
                values = ablated_values(self.instrumented, batch, self.ablation, mean)
                for number, edge_mask in enumerate(edge_masks):
                    logits = run_ablated(self.instrumented, batch, edge_mask, values).logits
                    metrics[number, rows] = metric(logits).double().cpu()
        return metrics

    def measure(self, edge_mask: np.ndarray) -> Faithfulness:
        """The metric with all edges, with none, with the circuit alone and without it."""
        if not self.full - self.empty > 1e-6 * abs(self.full):
            raise InputError(
                "the metric does not fall when every edge is cut, so no share of it can be stated",
                expected="a model that gives the answers of these pairs",
                got=f"{self.full:.3g} with every edge, {self.empty:.3g} with none",
            )
        kept, without = self.values([~edge_mask, edge_mask]).mean(1).tolist()
        return Faithfulness(self.full, self.empty, kept, without)


def circuit_weights(
    model: nn.Module, edge_mask: np.ndarray, *, structure: TransformerStructure | None = None
) -> dict[str, Tensor]:
    """Boolean masks of the weights that implement a circuit, by parameter name.

    They are the columns of the output projection that belong to a writing head, the rows of the
    query, key or value projection that belong to a reading head or group, and all matrices of an
    MLP at either end. The embedding and the output head belong to no circuit.

    Args:
        edge_mask: (edge,) bool.
        structure: The model's structure, if already found.

    Raises:
        InputError: The model's heads cannot be separated, or ``edge_mask`` belongs to another
            graph.
    """
    structure = structure or find_structure(model)
    graph = build_graph(structure)
    if not structure.n_heads:
        raise InputError(
            "a circuit's weights need separate heads",
            expected="queries, keys and values that can be told apart",
            got=structure.note,
        )
    if edge_mask.shape != (graph.n_edges,):
        raise InputError(
            "the circuit belongs to another graph",
            expected=f"{graph.n_edges} edges",
            got=str(edge_mask.shape),
        )
    names = {id(p): name for name, p in model.named_parameters()}
    masks: dict[str, Tensor] = {}
    nodes = {graph.writers[i] for i in graph.edge_writers[edge_mask]}
    nodes |= {graph.readers[i] for i in graph.edge_readers[edge_mask]}
    for node in sorted(nodes):
        kind, *indices = node.split(".")
        if kind in ("embed", "logits"):
            continue
        block = structure.blocks[int(indices[0])]
        if kind == "mlp":
            for parameter in block.mlp.parameters():
                if parameter.dim() == 2:
                    _mask(masks, names, parameter).fill_(True)
            continue
        head = int(indices[1])
        if kind == "head":
            linear = block.output_projection
            weight = cast(Tensor, linear.weight)
            mask = _oriented(_mask(masks, names, weight), linear)
            head_width = mask.shape[1] // structure.n_heads
            mask[:, head * head_width : (head + 1) * head_width] = True
        else:
            assert block.qkv is not None
            linear = block.qkv.linears[kind]
            rows = block.qkv.columns[kind][head]
            weight = cast(Tensor, linear.weight)
            _oriented(_mask(masks, names, weight), linear)[rows] = True
    return masks


def _mask(masks: dict[str, Tensor], names: dict[int, str], weight: Tensor) -> Tensor:
    """The mask of one matrix, created on first use."""
    name = names[id(weight)]
    if name not in masks:
        masks[name] = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    return masks[name]


def _oriented(mask: Tensor, linear: nn.Module) -> Tensor:
    """(out, in) view of the mask of a linear map."""
    return mask.T if is_transposed(linear) else mask
