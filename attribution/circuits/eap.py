"""Edge attribution patching (EAP) and its variants with integrated gradients (EAP-IG).

The score of an edge is the writer's output in the corrupt prompt minus that in the clean prompt,
times the gradient of the metric at the reader. EAP takes the gradient in the clean run (Syed et
al., arXiv 2310.10348). EAP-IG averages it between corrupt and clean (Hanna et al., arXiv
2403.17806), over interpolated embeddings ("inputs") or over interpolated outputs of the writer's
own component ("activations", after Marks et al., arXiv 2403.19647).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from attribution.circuits.edge_scores import EdgeScores
from attribution.circuits.forward_backward import (
    ForwardPass,
    InstrumentedModel,
    reader_gradients,
    run_backward,
    run_forward,
    writer_outputs,
    writer_sites,
)
from attribution.circuits.graph import build_graph
from attribution.circuits.metrics import (
    Metric,
    MetricName,
    PairBatch,
    check_metric,
    make_batch,
    make_metric,
)
from attribution.circuits.prompt_pairs import PromptPairs
from attribution.circuits.qk_attribution import apply_qk_fix
from attribution.circuits.structure import Readout, TransformerStructure, find_structure
from capture.data.sequences import Sequences, batches
from capture.network.discovery.modes import gradients_on
from capture.network.edits.row_order import refuse_row_edits
from capture.network.hooks import Edit, evaluation_mode
from capture.network.model_inputs import reads_weights
from capture.network.structure import model_device
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress

MethodName = Literal["eap", "inputs", "activations"]
RuleName = Literal["midpoint", "right"]
GIB = 2**30


@dataclass(frozen=True)
class EapMethod:
    """Attribution method and its options.

    Attributes:
        name: "eap" takes the gradient in the clean run; "inputs" and "activations" average it along
            a path from corrupt to clean.
        steps: Points of the path; not used by "eap".
        rule: Quadrature rule: "midpoint", or "right" as published. The midpoint rule needs fewer
            steps for the same error.
        qk_fix: Recompute the attention pattern for a changed query or key instead of linearizing
            the softmax (AtP*, arXiv 2403.00745).
        grad_drop: Average absolute scores over runs in which one block after another passes no
            gradient, so that canceling effects show (AtP*).

    Raises:
        InputError: A name is unknown, steps is below 1, or two options exclude each other.

    Examples:
        >>> str(exhume.EapMethod("inputs", steps=3))
        'EAP-IG (inputs, 3 midpoint steps)'
    """

    name: MethodName = "inputs"
    steps: int = 5
    rule: RuleName = "midpoint"
    qk_fix: bool = False
    grad_drop: bool = False

    def __post_init__(self) -> None:
        for value, kind in ((self.name, MethodName), (self.rule, RuleName)):
            if value not in get_args(kind):
                raise InputError(
                    "a method of attribution is not known",
                    expected=", ".join(get_args(kind)),
                    got=repr(value),
                )
        if self.steps < 1:
            raise InputError(
                "integrated gradients need steps", expected="1 or more", got=str(self.steps)
            )
        if self.qk_fix and self.name == "activations":
            raise InputError(
                "the query and key fix needs one path for all edges",
                expected='"eap" or "inputs"',
                got=repr(self.name),
            )

    def __str__(self) -> str:
        steps = "" if self.name == "eap" else f", {self.steps} {self.rule} steps"
        options = [", QK fix"] * self.qk_fix + [", gradient drop"] * self.grad_drop
        base = "EAP" if self.name == "eap" else f"EAP-IG ({self.name}{steps})"
        return base + "".join(options)

    @property
    def path_fractions(self) -> list[float]:
        """Positions on the path, from 0 (corrupt) to 1 (clean), that are averaged over."""
        shift = 0.5 if self.rule == "midpoint" else 0.0
        return [(step - shift) / self.steps for step in range(1, self.steps + 1)]


@reads_weights
@gradients_on()
def score_edges(
    model: nn.Module,
    pairs: PromptPairs,
    *,
    metric: MetricName = "logit_difference",
    method: EapMethod | None = None,
    readout: Readout | None = None,
    structure: TransformerStructure | None = None,
    max_bytes: int = 2 * GIB,
    progress: Progress = AUTO,
) -> EdgeScores:
    """Score every edge of the model's graph on every prompt pair.

    The model, its gradients and its hooks are unchanged afterwards.

    Args:
        model: A causal language model of the Llama, GPT-2 or GPT-NeoX type.
        pairs: Aligned prompt pairs.
        metric: The metric to attribute.
        method: By default EAP-IG over inputs with five steps.
        readout: Final norm and head of another model, applied to the last residual stream; the
            model's own by default.
        structure: The model's structure, if already found.
        max_bytes: Memory limit for the values of one batch.

    Raises:
        InputError: The structure is not supported, one pair exceeds ``max_bytes``, or the metric
            has no gradient or no finite value; or as ``check_metric``.

    Examples:
        >>> pairs = exhume.pair_items(tokenizer, births[:8], np.random.default_rng(0))
        >>> scores = exhume.score_edges(model, pairs)
        >>> scores.graph
        EdgeGraph(11 writers, 27 readers, 110 edges)
        >>> scores.values.shape
        (8, 110)
    """
    refuse_row_edits("edge attribution")
    method = method or EapMethod()
    check_metric(metric)
    if metric == "kl" and method.name == "eap":
        raise InputError(
            "the divergence from the clean run has no gradient in the clean run",
            expected="integrated gradients, or another metric",
            got='metric "kl" with method "eap"',
        )
    with evaluation_mode(model):
        structure = structure or find_structure(model)
        if method.grad_drop and structure.n_layers < 2:
            raise InputError("gradient drop needs a model of two blocks or more")
        graph = build_graph(structure)
        instrumented = InstrumentedModel(model, structure, graph, readout or structure.readout)
        values = np.zeros((len(pairs), graph.n_edges), dtype=np.float32)
        clean, corrupt = np.zeros((2, len(pairs)))
        with as_progress(progress).task("score edges", len(pairs)) as done:
            for rows in row_batches(instrumented, pairs, max_bytes):
                batch = make_batch(pairs, rows, metric, model_device(model))
                prepared = _prepare(instrumented, batch, metric)
                clean[rows] = prepared.metric(prepared.clean.logits).double().cpu()
                corrupt[rows] = prepared.metric(prepared.corrupt.logits).double().cpu()
                _check_finite(clean[rows], corrupt[rows], pairs, rows)
                values[rows] = _score(prepared, method).cpu().numpy()
                done(len(rows))
    return EdgeScores(graph, values, clean, corrupt, pairs.entities, pairs.ids, metric, str(method))


def bytes_per_position(structure: TransformerStructure) -> int:
    """Bytes that one position of one pair needs while its edges are scored.

    Three copies of all writers' outputs (clean, corrupt and their difference), and about forty
    vectors of the stream's width per block for the backward pass.
    """
    graph = build_graph(structure)
    n_vectors = 3 * len(graph.writers) + 40 * structure.n_layers
    return 4 * structure.d_model * n_vectors


def row_batches(
    instrumented: InstrumentedModel, pairs: PromptPairs, max_bytes: int
) -> Iterator[list[int]]:
    """Batches of pairs of similar length that fit into the memory limit.

    Raises:
        InputError: A single pair does not fit.
    """
    per_position = bytes_per_position(instrumented.structure)
    longest = max(len(ids) for ids in pairs.clean.ids)
    if longest * per_position > max_bytes:
        raise InputError(
            "scoring the edges of one prompt pair needs more memory than allowed",
            expected=f"at most {max_bytes / GIB:.1f} GiB",
            got=f"{longest * per_position / GIB:.1f} GiB for {longest} tokens",
            fix="Shorten the prompts, or raise the memory budget",
        )
    prompts = Sequences(pairs.clean.ids, pairs.clean.answer_start)
    for batch in batches(prompts, batch_tokens=max(longest, max_bytes // per_position)):
        yield batch.rows.tolist()


@dataclass(frozen=True)
class PreparedBatch:
    """One batch with its clean and corrupt forward passes.

    Attributes:
        batch: Padded pairs.
        metric: Metric of the batch.
        clean: Clean forward pass.
        corrupt: Corrupt forward pass.
        delta: (row, writer, position * d_model) corrupt minus clean.
    """

    instrumented: InstrumentedModel
    batch: PairBatch
    metric: Metric
    clean: ForwardPass
    corrupt: ForwardPass
    delta: Tensor


def _prepare(
    instrumented: InstrumentedModel, batch: PairBatch, metric: MetricName
) -> PreparedBatch:
    clean = run_forward(instrumented, batch.clean, batch.metric_mask)
    corrupt = run_forward(instrumented, batch.corrupt, batch.metric_mask)
    delta = writer_outputs(instrumented, corrupt.by_site)
    delta -= writer_outputs(instrumented, clean.by_site)
    # Gradients are 0 at padding, but a NaN times 0 would still be NaN.
    delta *= batch.token_mask[:, None, :, None]
    batch_metric = make_metric(metric, batch, clean.logits)
    return PreparedBatch(instrumented, batch, batch_metric, clean, corrupt, delta.flatten(2))


@dataclass(frozen=True)
class PathPoint:
    """One point of an integration path.

    Attributes:
        edits: Edits that move the run to the point.
        weight: Weight in the average.
        writers: Writers whose edges the point contributes to.
    """

    edits: Mapping[str, Edit]
    weight: float
    writers: slice


def _path(prepared: PreparedBatch, method: EapMethod) -> Iterator[PathPoint]:
    all_writers = slice(0, len(prepared.instrumented.graph.writers))
    if method.name == "eap":
        yield PathPoint({}, 1.0, all_writers)
        return
    sites = writer_sites(prepared.instrumented.structure)
    first = 0
    for site in sites if method.name == "activations" else sites[:1]:
        count = prepared.instrumented.structure.n_heads if site.startswith("z.") else 1
        own_writers = slice(first, first + count)
        for share in method.path_fractions:
            blend = _blend(prepared.clean.by_site[site], prepared.corrupt.by_site[site], share)
            writers = all_writers if method.name == "inputs" else own_writers
            yield PathPoint({site: blend}, 1 / method.steps, writers)
        first += count


def _blend(clean: Tensor, corrupt: Tensor, share: float) -> Edit:
    return lambda value: torch.lerp(corrupt, clean, share)


def _score(prepared: PreparedBatch, method: EapMethod) -> Tensor:
    """(row, edge) scores of one batch."""
    if not method.grad_drop:
        return _integrate(prepared, method, {})
    graph, layers = (prepared.instrumented.graph, prepared.instrumented.structure.n_layers)
    total = prepared.delta.new_zeros(len(prepared.delta), graph.n_edges)
    for layer in range(layers):
        drop: dict[str, Edit] = {f"{part}.{layer}": torch.detach for part in ("attn", "mlp")}
        total += _integrate(prepared, method, drop).abs()
    # Edges into a block have no score in the run that drops the block's gradient.
    counts = np.full(graph.n_edges, layers - 1)
    counts[graph.edges_into(len(graph.readers) - 1)] = layers
    return total / torch.as_tensor(counts, device=total.device)


def _integrate(prepared: PreparedBatch, method: EapMethod, edits: Mapping[str, Edit]) -> Tensor:
    """(row, edge) difference of the writers' outputs times the averaged gradient."""
    instrumented, graph = prepared.instrumented, prepared.instrumented.graph
    rows = len(prepared.delta)
    scores = prepared.delta.new_zeros(rows, graph.n_edges)
    layers = range(instrumented.structure.n_layers)
    heads = tuple(f"z.{layer}" for layer in layers) if method.qk_fix else ()
    head_gradients: dict[str, Tensor] = {}
    for point in _path(prepared, method):
        gradients = run_backward(
            instrumented,
            prepared.batch.clean,
            prepared.batch.metric_mask,
            prepared.metric,
            {**edits, **point.edits},
            heads,
        )
        for reader, count, gradient in reader_gradients(instrumented, gradients):
            usable = slice(point.writers.start, min(point.writers.stop, count))
            if usable.start >= usable.stop:
                continue
            contribution = gradient.flatten(2) @ prepared.delta[:, usable].transpose(1, 2)
            start = graph.edge_offsets[reader]
            block_scores = scores[:, start : start + gradient.shape[1] * count]
            by_reader = block_scores.unflatten(1, (-1, count))
            by_reader[:, :, usable] += point.weight * contribution
        for name in heads:
            gradient = gradients.by_site[name]
            if gradient is not None:
                before = head_gradients.get(name, torch.zeros_like(gradient))
                head_gradients[name] = before + point.weight * gradient
    if heads:
        apply_qk_fix(instrumented, prepared.batch.clean, prepared.delta, head_gradients, scores)
    return scores


def _check_finite(
    clean: np.ndarray, corrupt: np.ndarray, pairs: PromptPairs, rows: list[int]
) -> None:
    not_finite = ~(np.isfinite(clean) & np.isfinite(corrupt))
    if not_finite.any():
        raise InputError(
            f"the metric of pair {pairs.ids[rows[int(not_finite.argmax())]]!r} is not finite",
            expected="a model whose logits are numbers",
            got=f"{int(not_finite.sum())} such pairs",
        )
