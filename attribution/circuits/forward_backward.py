"""One pass over prompt pairs: what is written to the stream, and slopes at each reader.

A reader's slope is the gradient of the metric with respect to the residual stream *as
that reader alone reads it*. Attention parts read once for all their heads, so the
slope of one head's query is found behind the norm, at the output of the query map: the
gradient there, times that head's rows of the map, times the Jacobian of the norm. That
is exact. The norm belongs to the reader, its scale included: it is neither frozen nor
folded, so a writer that only stretches the stream has a slope along it of nearly zero.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attribution.circuits.graph import EdgeGraph
from attribution.circuits.metrics import Metric, at_least_float32
from attribution.circuits.qkv_projections import KINDS, weight_matrix
from attribution.circuits.structure import Readout, TransformerStructure, head_outputs
from capture.activations.passes import accepted_inputs
from capture.data.sequences import Padded
from capture.network.hooks import Edit, patch, record


@dataclass(frozen=True)
class InstrumentedModel:
    """A model with what is known of its structure.

    Attributes:
        model: The model, in evaluation mode.
        structure: Its parts.
        graph: Its edges.
        readout: The final norm and head that logits are read with; another model's
            where its readout is transplanted.
    """

    model: nn.Module
    structure: TransformerStructure
    graph: EdgeGraph
    readout: Readout


@dataclass(frozen=True)
class ForwardPass:
    """What one pass computed, without gradients.

    Attributes:
        by_site: "embed", "z.L" (or "attn.L" where heads cannot be told apart) and
            "mlp.L" to values (row, position, width).
        logits: (counted position, token).
    """

    by_site: Mapping[str, Tensor]
    logits: Tensor


def writer_sites(structure: TransformerStructure) -> list[str]:
    """Where the writers' values are, in the order of the writers."""
    kind = "z" if structure.n_heads else "attn"
    layers = range(structure.n_layers)
    return ["embed", *(f"{k}.{layer}" for layer in layers for k in (kind, "mlp"))]


def run_forward(
    instrumented: InstrumentedModel,
    batch: Padded,
    metric_mask: Tensor,
    edits: Mapping[str, Tensor | Edit] | None = None,
) -> ForwardPass:
    """Run a batch and keep what is written.

    Args:
        instrumented: The model.
        batch: Rows.
        metric_mask: (row, position) bool, whose logits are wanted.
        edits: Changes on the way, as for ``capture.network.hooks.patch``.
    """
    places = [*writer_sites(instrumented.structure), "final_read"]
    with torch.no_grad():
        got = _forward(instrumented, batch, places, edits or {})
        logits = instrumented.readout(got.pop("final_read")[metric_mask])
    return ForwardPass(got, logits)


def writer_outputs(
    instrumented: InstrumentedModel, raw: Mapping[str, Tensor]
) -> Tensor:
    """(row, writer, position, d_model) what every writer adds to the stream."""
    parts = []
    for place in writer_sites(instrumented.structure):
        value = raw[place]
        if place.startswith("z."):
            layer = int(place.split(".")[1])
            parts.append(
                head_outputs(instrumented.structure, layer, value).transpose(0, 1)
            )
        else:
            parts.append(value[:, None])
    return at_least_float32(torch.cat(parts, dim=1))


@dataclass(frozen=True)
class Gradients:
    """Gradients of one pass.

    Attributes:
        by_site: Place to gradient of the sum of the metric over rows, (row, position,
            width); None where the metric does not depend on the place.
        streams: "attn_read.L" and "mlp_read.L" to the stream the norms read.
    """

    by_site: Mapping[str, Tensor | None]
    streams: Mapping[str, Tensor]


@dataclass
class _ConsumerTaps:
    """Keeps a tensor as one consumer sees it, so that a slope is that consumer's."""

    captured: dict[str, Tensor] = field(default_factory=dict)

    def at(self, name: str) -> Callable[[Tensor], Tensor]:
        def keep(value: Tensor) -> Tensor:
            self.captured[name] = value.view_as(value)
            return self.captured[name]

        return keep


def _start_graph(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


def run_backward(
    instrumented: InstrumentedModel,
    batch: Padded,
    metric_mask: Tensor,
    metric: Metric,
    edits: Mapping[str, Tensor | Edit],
    extra_sites: tuple[str, ...] = (),
) -> Gradients:
    """Run a batch with gradients.

    Args:
        instrumented: The model; its parameters get no gradients.
        batch: Rows.
        metric_mask: (row, position) bool, whose logits the metric takes.
        metric: Logits to one value a row.
        edits: Changes on the way.
        extra_sites: Further places whose gradients are wanted.
    """
    anatomy, taps = instrumented.structure, _ConsumerTaps()
    reads = [
        f"{part}_read.{layer}"
        for layer in range(anatomy.n_layers)
        for part in ("attn", "mlp")
    ]
    names = [*gradient_sites(anatomy), *extra_sites]
    with torch.enable_grad(), ExitStack() as stack:
        # Of two edits of one place the one opened last acts first.
        watch = {"embed": _start_graph} | {name: taps.at(name) for name in names}
        stack.enter_context(patch(instrumented.model, watch, known_sites=anatomy.sites))
        got = _forward(instrumented, batch, [*reads, "final_read"], edits)
        final = got["final_read"]
        total = metric(instrumented.readout(final[metric_mask])).sum()
        wanted = [*taps.captured.items(), ("final_read", final)]
        slopes = torch.autograd.grad(
            total, [value for _, value in wanted], allow_unused=True
        )
    return Gradients(
        {name: slope for (name, _), slope in zip(wanted, slopes, strict=True)},
        {name: got[name].detach() for name in reads},
    )


def gradient_sites(structure: TransformerStructure) -> list[str]:
    """Where slopes are taken: maps' outputs, and inputs of feed-forward parts."""
    names = []
    for layer, block in enumerate(structure.blocks):
        names.append(f"mlp_in.{layer}")
        if block.qkv is None:
            names.append(f"attn_in.{layer}")
        else:
            names += [f"{kind}.{layer}" for kind in kinds_by_map(structure, layer)]
    return names


def kinds_by_map(
    structure: TransformerStructure, layer: int
) -> dict[str, tuple[str, ...]]:
    """Each map once, under the first kind it serves, and all the kinds it serves."""
    maps = structure.blocks[layer].qkv
    served: dict[int, list[str]] = {}
    for kind in KINDS if maps is not None else ():
        assert maps is not None
        served.setdefault(id(maps.linears[kind]), []).append(kind)
    return {kinds[0]: tuple(kinds) for kinds in served.values()}


def reader_gradients(
    instrumented: InstrumentedModel, gradients: Gradients
) -> Iterator[tuple[int, int, Tensor]]:
    """Slopes of readers that see the same writers, together.

    Yields:
        Number of the first reader, how many writers come before them, and slopes
        (row, reader, position, d_model).
    """
    anatomy, upstream = instrumented.structure, instrumented.graph.n_upstream
    reader = 0
    for layer, block in enumerate(anatomy.blocks):
        read = gradients.streams[f"attn_read.{layer}"]
        behind = _gradients_after_attention_norm(anatomy, layer, gradients)
        if behind is not None:
            here = backward_through_norm(block.attention_norm, read, behind)
            yield reader, upstream[reader], at_least_float32(here.transpose(0, 1))
        reader += anatomy.n_heads + 2 * anatomy.n_groups if anatomy.n_heads else 1
        behind = gradients.by_site[f"mlp_in.{layer}"]
        if behind is not None:
            read = gradients.streams[f"mlp_read.{layer}"]
            here = backward_through_norm(block.mlp_norm, read, behind[None])
            yield reader, upstream[reader], at_least_float32(here.transpose(0, 1))
        reader += 1
    final = gradients.by_site["final_read"]
    if final is not None:
        yield reader, upstream[reader], at_least_float32(final[:, None])


def _gradients_after_attention_norm(
    anatomy: TransformerStructure, layer: int, slopes: Gradients
) -> Tensor | None:
    """(reader, row, position, d_model) slopes at what the norm gives, by reader."""
    maps = anatomy.blocks[layer].qkv
    if maps is None:
        slope = slopes.by_site[f"attn_in.{layer}"]
        return None if slope is None else slope[None]
    by_kind: dict[str, Tensor] = {}
    for first, kinds in kinds_by_map(anatomy, layer).items():
        slope = slopes.by_site[f"{first}.{layer}"]
        if slope is None:
            continue
        weight = weight_matrix(maps.linears[first])
        for kind in kinds:
            columns = maps.columns[kind]
            by_kind[kind] = torch.einsum(
                "rphs,hsd->hrpd", slope[..., columns], weight[columns]
            )
    if not by_kind:
        return None
    some = next(iter(by_kind.values()))
    absent = {
        kind: some.new_zeros(len(maps.columns[kind]), *some.shape[1:])
        for kind in KINDS
        if kind not in by_kind
    }
    return torch.cat([(by_kind | absent)[kind] for kind in KINDS])


def backward_through_norm(norm: nn.Module, stream: Tensor, gradients: Tensor) -> Tensor:
    """Slopes behind a norm to slopes before it, many at once.

    Args:
        norm: The norm.
        stream: (row, position, d_model) what it read.
        gradients: (reader, row, position, d_model).
    """
    with torch.enable_grad():
        stream = stream.detach().requires_grad_()
        normed = norm(stream)
    return torch.autograd.grad(normed, stream, gradients, is_grads_batched=True)[0]


def _forward(
    subject: InstrumentedModel,
    batch: Padded,
    places: list[str],
    edits: Mapping[str, Tensor | Edit],
) -> dict[str, Tensor]:
    """Run until the last of ``places`` and give their values."""
    model, where = subject.model, subject.structure.sites
    inputs = accepted_inputs(model, batch.model_inputs | {"use_cache": False})
    with (
        patch(model, edits, known_sites=where),
        record(model, places, stop=True, known_sites=where) as got,
    ):
        model(**inputs)
    return got
