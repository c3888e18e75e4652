"""Edge attribution patching, and its integrated-gradients forms.

An edge's score is the difference between what its writer adds in the corrupt and in
the clean prompt, times the slope of the metric at its reader. Plain attribution takes
the slope in the clean run (EAP, Syed et al., arXiv 2310.10348); integrated gradients
average it between corrupt and clean (EAP-IG, Hanna et al., arXiv 2403.17806), over
interpolated embeddings ("inputs") or over interpolated outputs of the writer's own
layer part ("activations", after Marks et al., arXiv 2403.19647).
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
from capture.network.hooks import Edit, evaluation_mode
from capture.network.structure import model_device
from evidence.errors import InputError
from evidence.progress import SILENT, Progress

MethodName = Literal["eap", "inputs", "activations"]
RuleName = Literal["midpoint", "right"]
GIB = 2**30


@dataclass(frozen=True)
class EapMethod:
    """How edges are scored.

    Attributes:
        name: "eap" takes the slope in the clean run; "inputs" and "activations"
            average it along a path from corrupt to clean.
        steps: Points of the path; "eap" has one.
        rule: Where the points lie: in the middle of each step, or at its end towards
            clean, as published. The middle needs fewer for the same error.
        qk_fix: Follow a changed query or key through the softmax of its attention,
            instead of along its tangent there (AtP*, arXiv 2403.00745).
        grad_drop: Average absolute scores over runs in which one block after another
            passes no gradient, so that effects that cancel do not hide (the same).

    Raises:
        InputError: a name is unknown, steps below one, or options that exclude each
            other.
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
                "integrated gradients need steps",
                expected="1 or more",
                got=str(self.steps),
            )
        if self.qk_fix and self.name == "activations":
            raise InputError(
                "the query and key fix needs one path for all edges",
                expected='"eap" or "inputs"',
                got=repr(self.name),
            )

    def __str__(self) -> str:
        steps = "" if self.name == "eap" else f", {self.steps} {self.rule} steps"
        fixes = [", QK fix"] * self.qk_fix + [", gradient drop"] * self.grad_drop
        base = "EAP" if self.name == "eap" else f"EAP-IG ({self.name}{steps})"
        return base + "".join(fixes)

    @property
    def path_fractions(self) -> list[float]:
        """Shares of clean, from corrupt at 0 to clean at 1, that are averaged over."""
        shift = 0.5 if self.rule == "midpoint" else 0.0
        return [(step - shift) / self.steps for step in range(1, self.steps + 1)]


def score_edges(
    model: nn.Module,
    pairs: PromptPairs,
    *,
    metric: MetricName = "logit_difference",
    method: EapMethod | None = None,
    readout: Readout | None = None,
    structure: TransformerStructure | None = None,
    max_bytes: int = 2 * GIB,
    progress: Progress = SILENT,
) -> EdgeScores:
    """Score every edge on every pair.

    Neither the model nor its parameters' gradients are changed, and no hook stays.

    Args:
        model: A causal language model of the Llama, GPT-2 or GPT-NeoX shape.
        pairs: Aligned prompt pairs.
        metric: What to attribute.
        method: How; EAP-IG over inputs in five steps by default.
        readout: Final norm and head of another model, to read the last residual
            stream with; the model's own by default.
        structure: The model's, if already found.
        max_bytes: Bytes that the values of one batch may take.
        progress: Where to show progress.

    Raises:
        InputError: the model's edges cannot be followed, one pair needs more than
            ``max_bytes``, the metric has no slope or no finite value; or as
            ``check_metric``.
    """
    how = method or EapMethod()
    check_metric(metric)
    if metric == "kl" and how.name == "eap":
        raise InputError(
            "the divergence from the clean run has no slope in the clean run",
            expected="integrated gradients, or another metric",
            got='metric "kl" with method "eap"',
        )
    with evaluation_mode(model):
        parts = structure or find_structure(model)
        if how.grad_drop and parts.n_layers < 2:
            raise InputError("gradient drop needs a model of two blocks or more")
        graph = build_graph(parts)
        subject = InstrumentedModel(model, parts, graph, readout or parts.readout)
        values = np.zeros((len(pairs), graph.n_edges), dtype=np.float32)
        clean, corrupt = np.zeros((2, len(pairs)))
        with progress.task("score edges", len(pairs)) as done:
            for rows in row_batches(subject, pairs, max_bytes):
                batch = make_batch(pairs, rows, metric, model_device(model))
                job = _prepare(subject, batch, metric)
                clean[rows] = job.metric(job.clean.logits).double().cpu()
                corrupt[rows] = job.metric(job.corrupt.logits).double().cpu()
                _check_finite(clean[rows], corrupt[rows], pairs, rows)
                values[rows] = _score(job, how).cpu().numpy()
                done(len(rows))
    return EdgeScores(
        graph, values, clean, corrupt, pairs.entities, pairs.ids, metric, str(how)
    )


def bytes_per_position(structure: TransformerStructure) -> int:
    """Bytes that one position of one pair takes while its edges are scored.

    What every writer adds, three times over (clean, corrupt, their difference), and
    what the backward pass keeps: about forty vectors of the stream's width a block.
    """
    graph = build_graph(structure)
    kept = 3 * len(graph.writers) + 40 * structure.n_layers
    return 4 * structure.d_model * kept


def row_batches(
    instrumented: InstrumentedModel, pairs: PromptPairs, max_bytes: int
) -> Iterator[list[int]]:
    """Rows that fit the memory together, of like length.

    Raises:
        InputError: one pair alone does not fit.
    """
    each = bytes_per_position(instrumented.structure)
    longest = max(len(ids) for ids in pairs.clean.ids)
    if longest * each > max_bytes:
        raise InputError(
            "scoring the edges of one prompt pair needs more memory than allowed",
            expected=f"at most {max_bytes / GIB:.1f} GiB",
            got=f"{longest * each / GIB:.1f} GiB for {longest} tokens",
            fix="Shorten the prompts, or raise the memory budget",
        )
    plain = Sequences(pairs.clean.ids, pairs.clean.answer_start)
    for batch in batches(plain, batch_tokens=max(longest, max_bytes // each)):
        yield batch.rows.tolist()


@dataclass(frozen=True)
class PreparedBatch:
    """One batch on its way.

    Attributes:
        instrumented: The model.
        batch: Padded pairs.
        metric: Their metric.
        clean: Values of the clean run.
        corrupt: Values of the corrupt run.
        delta: (row, writer, position * d_model) corrupt less clean.
    """

    instrumented: InstrumentedModel
    batch: PairBatch
    metric: Metric
    clean: ForwardPass
    corrupt: ForwardPass
    delta: Tensor


def _prepare(
    subject: InstrumentedModel, batch: PairBatch, metric: MetricName
) -> PreparedBatch:
    clean = run_forward(subject, batch.clean, batch.metric_mask)
    corrupt = run_forward(subject, batch.corrupt, batch.metric_mask)
    delta = writer_outputs(subject, corrupt.by_site)
    delta -= writer_outputs(subject, clean.by_site)
    # Padding has no slope; a value that is not finite there must not count either.
    delta *= batch.token_mask[:, None, :, None]
    function = make_metric(metric, batch, clean.logits)
    return PreparedBatch(subject, batch, function, clean, corrupt, delta.flatten(2))


@dataclass(frozen=True)
class PathPoint:
    """One place on a path: what to change there, how much it counts, and for whom.

    Attributes:
        edits: Changes that lead there.
        weight: Share of the average.
        writers: Which writers' edges it speaks of.
    """

    edits: Mapping[str, Edit]
    weight: float
    writers: slice


def _path(job: PreparedBatch, how: EapMethod) -> Iterator[PathPoint]:
    everyone = slice(0, len(job.instrumented.graph.writers))
    if how.name == "eap":
        yield PathPoint({}, 1.0, everyone)
        return
    places = writer_sites(job.instrumented.structure)
    first = 0
    for place in places if how.name == "activations" else places[:1]:
        count = job.instrumented.structure.n_heads if place.startswith("z.") else 1
        own = slice(first, first + count)
        for share in how.path_fractions:
            blend = _blend(job.clean.by_site[place], job.corrupt.by_site[place], share)
            writers = everyone if how.name == "inputs" else own
            yield PathPoint({place: blend}, 1 / how.steps, writers)
        first += count


def _blend(clean: Tensor, corrupt: Tensor, share: float) -> Edit:
    return lambda value: torch.lerp(corrupt, clean, share)


def _score(job: PreparedBatch, how: EapMethod) -> Tensor:
    """(row, edge) scores of one batch."""
    if not how.grad_drop:
        return _integrate(job, how, {})
    graph, layers = job.instrumented.graph, job.instrumented.structure.n_layers
    total = job.delta.new_zeros(len(job.delta), graph.n_edges)
    for layer in range(layers):
        drop: dict[str, Edit] = {
            f"{part}.{layer}": torch.detach for part in ("attn", "mlp")
        }
        total += _integrate(job, how, drop).abs()
    # A reader in the block that passes no gradient has no score in that run.
    counts = np.full(graph.n_edges, layers - 1)
    counts[graph.edges_into(len(graph.readers) - 1)] = layers
    return total / torch.as_tensor(counts, device=total.device)


def _integrate(job: PreparedBatch, how: EapMethod, edits: Mapping[str, Edit]) -> Tensor:
    """(row, edge) difference times average slope."""
    subject, graph = job.instrumented, job.instrumented.graph
    rows = len(job.delta)
    scores = job.delta.new_zeros(rows, graph.n_edges)
    layers = range(subject.structure.n_layers)
    heads = tuple(f"z.{layer}" for layer in layers) if how.qk_fix else ()
    behind: dict[str, Tensor] = {}
    for point in _path(job, how):
        slopes = run_backward(
            subject,
            job.batch.clean,
            job.batch.metric_mask,
            job.metric,
            {**edits, **point.edits},
            heads,
        )
        for reader, count, slope in reader_gradients(subject, slopes):
            own = slice(point.writers.start, min(point.writers.stop, count))
            if own.start >= own.stop:
                continue
            part = slope.flatten(2) @ job.delta[:, own].transpose(1, 2)
            start = graph.edge_offsets[reader]
            here = scores[:, start : start + slope.shape[1] * count]
            by_reader = here.unflatten(1, (-1, count))
            by_reader[:, :, own] += point.weight * part
        for name in heads:
            slope = slopes.by_site[name]
            if slope is not None:
                before = behind.get(name, torch.zeros_like(slope))
                behind[name] = before + point.weight * slope
    if heads:
        apply_qk_fix(subject, job.batch.clean, job.delta, behind, scores)
    return scores


def _check_finite(
    clean: np.ndarray, corrupt: np.ndarray, pairs: PromptPairs, rows: list[int]
) -> None:
    bad = ~(np.isfinite(clean) & np.isfinite(corrupt))
    if bad.any():
        raise InputError(
            f"the metric of pair {pairs.ids[rows[int(bad.argmax())]]!r} is not finite",
            expected="a model whose logits are numbers",
            got=f"{int(bad.sum())} such pairs",
        )
