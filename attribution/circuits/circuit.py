"""Circuits: the few edges that carry an answer, held to real ablation.

Edges are taken in order of absolute score, those without a path to the logits are left
out, and the smallest set counts that keeps enough of the metric when *only* its edges
carry what they carry and every other edge is cut. Selection by score and measure by
intervention are two things: a score never vouches for itself.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn

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
from attribution.circuits.metrics import (
    MetricName,
    check_metric,
    make_batch,
    make_metric,
)
from attribution.circuits.prompt_pairs import PromptPairs
from attribution.circuits.structure import TransformerStructure, find_structure
from capture.network.hooks import evaluation_mode
from capture.network.structure import model_device
from evidence.errors import InputError

# Sizes tried: this many, evenly apart on a logarithmic scale, from this share up.
N_SIZES, MIN_SHARE = 24, 0.002


@dataclass(frozen=True)
class Faithfulness:
    """What a circuit does under real ablation; means over pairs, in metric units.

    Attributes:
        full: The metric with no edge cut.
        empty: The metric with every edge cut.
        kept: With every edge cut but the circuit's.
        without: With the circuit's edges cut and no other.
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
        """Share of the metric that goes when the circuit goes: 1 for all of it."""
        return (self.full - self.without) / (self.full - self.empty)


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """Edges that carry an answer, with what ablation says of them.

    Attributes:
        graph: The graph they are part of.
        edge_mask: (edge,) bool, read-only.
        measured: Under the ablation it was selected by.
        ablation: Which.
        target: The faithfulness that was asked for.
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

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the chosen edges, in the order of the graph."""
        return tuple(
            self.graph.edges[place] for place in np.flatnonzero(self.edge_mask)
        )


def top_edges(scores: EdgeScores, count: int) -> np.ndarray:
    """(edge,) bool: the ``count`` best edges, those that lead to the logits."""
    return scores.graph.connected_to_logits(
        scores.graph.mask(scores.top(count).tolist())
    )


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
    """The smallest top-|score| circuit whose faithfulness reaches ``target``.

    Sizes lie on a grid that is searched by halving, as faithfulness grows with size
    but for small dips; the circuit found does reach the target.

    Args:
        model: The model that was scored.
        pairs: Prompt pairs to measure on; other ones than the scores were made with
            give an honest figure.
        scores: Of ``score_edges``; its metric is what is measured.
        target: Share of the metric the circuit must carry, above 0 and at most 1.
        ablation: What cut edges carry: the "corrupt" run, the "mean", or "zero".
        structure: The model's, if already found.
        max_bytes: Bytes that the values of one batch may take.

    Raises:
        InputError: the target or the ablation is not one; the scores are another
            model's; or as ``measure_circuit``.
    """
    if not 0 < target <= 1:
        raise InputError(
            "a circuit cannot carry that share of the metric",
            expected="a target above 0 and at most 1",
            got=str(target),
        )
    cutter = _AblationRuns(model, pairs, scores.metric, ablation, structure, max_bytes)
    if cutter.graph != scores.graph:
        raise InputError(
            "the scores belong to another graph",
            expected=repr(cutter.graph),
            got=repr(scores.graph),
        )
    grid = np.geomspace(MIN_SHARE, 1, N_SIZES) * scores.graph.n_edges
    sizes = np.unique(grid.round().astype(int).clip(min=1))
    low, high = -1, len(sizes) - 1  # the largest holds every edge
    best: tuple[np.ndarray, Faithfulness] | None = None
    while high - low > 1:
        middle = (low + high) // 2
        chosen = top_edges(scores, int(sizes[middle]))
        measured = cutter.measure(chosen)
        if measured.faithfulness >= target:
            high, best = middle, (chosen, measured)
        else:
            low = middle
    if best is None:
        chosen = top_edges(scores, scores.graph.n_edges)
        best = chosen, cutter.measure(chosen)
    return Circuit(scores.graph, *best, ablation, target)


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
    """What a set of edges carries, and what is left without it, by real ablation.

    Args:
        model: The model.
        pairs: Prompt pairs.
        edge_mask: (edge,) bool.
        metric: What is measured.
        ablation: What cut edges carry.
        structure: The model's, if already found.
        max_bytes: Bytes that the values of one batch may take.

    Raises:
        InputError: cutting every edge does not lower the metric, so that no share of
            it can be stated; ``edge_mask`` does not fit; or as ``score_edges``.
    """
    return _AblationRuns(model, pairs, metric, ablation, structure, max_bytes).measure(
        edge_mask
    )


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
    """(cut, pair) the metric with edges cut.

    Args:
        model: The model.
        pairs: Prompt pairs.
        edge_masks: Each an (edge,) bool mask of the edges to cut.
        metric: What is measured.
        ablation: What cut edges carry.
        structure: The model's, if already found.
        max_bytes: Bytes that the values of one batch may take.

    Raises:
        InputError: as ``measure_circuit``.
    """
    return _AblationRuns(model, pairs, metric, ablation, structure, max_bytes).values(
        edge_masks
    )


class _AblationRuns:
    """A model, pairs and a way to ablate: asked again and again with other cuts."""

    def __init__(
        self,
        model: nn.Module,
        pairs: PromptPairs,
        metric: MetricName,
        ablation: AblationName,
        anatomy: TransformerStructure | None,
        memory: int,
    ):
        self.pairs, self.memory = pairs, memory
        self.metric: MetricName = check_metric(metric)
        self.ablation: AblationName = check_ablation(ablation)
        parts = anatomy or find_structure(model)
        self.graph = build_graph(parts)
        self.subject = InstrumentedModel(model, parts, self.graph, parts.readout)
        none = np.zeros(self.graph.n_edges, dtype=bool)
        self.full, self.empty = self.values([none, ~none]).mean(1).tolist()

    def values(self, cuts: list[np.ndarray]) -> np.ndarray:
        """(cut, pair) metric."""
        found = np.zeros((len(cuts), len(self.pairs)))
        device = model_device(self.subject.model)
        with evaluation_mode(self.subject.model):
            parts = [
                (rows, make_batch(self.pairs, rows, self.metric, device))
                for rows in row_batches(self.subject, self.pairs, self.memory)
            ]
            mean = None
            if self.ablation == "mean":
                mean = mean_values(self.subject, [batch for _, batch in parts])
            for rows, batch in parts:
                clean = run_forward(self.subject, batch.clean, batch.metric_mask).logits
                metric = make_metric(self.metric, batch, clean)
                values = ablated_values(self.subject, batch, self.ablation, mean)
                for place, cut in enumerate(cuts):
                    logits = run_ablated(self.subject, batch, cut, values).logits
                    found[place, rows] = metric(logits).double().cpu()
        return found

    def measure(self, chosen: np.ndarray) -> Faithfulness:
        """Full, empty, kept and without."""
        if not self.full - self.empty > 1e-6 * abs(self.full):
            raise InputError(
                "the metric does not fall when every edge is cut, so no share of it "
                "can be stated",
                expected="a model that gives the answers of these pairs",
                got=f"{self.full:.3g} with every edge, {self.empty:.3g} with none",
            )
        kept, without = self.values([~chosen, chosen]).mean(1).tolist()
        return Faithfulness(self.full, self.empty, kept, without)
