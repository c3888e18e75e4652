"""Forward and backward passes that record writer outputs and reader gradients.

A reader's gradient is the gradient of the metric with respect to the residual stream *as read by
that reader alone*. All heads of an attention layer share one norm, so the gradient at one head's
query is taken at the output of the query projection, multiplied by that head's rows of the
projection and by the Jacobian of the norm, which is exact. The norm's scale is differentiated too,
neither frozen nor folded, so a writer that only rescales the stream has a gradient of nearly zero
along itself.
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
    """A model with its structure and edge graph.

    Attributes:
        model: The model, in evaluation mode.
        structure: Its structure.
        graph: Its edges.
        readout: The final norm and head that logits are computed with; another model's where its
            readout is transplanted.
    """

    model: nn.Module
    structure: TransformerStructure
    graph: EdgeGraph
    readout: Readout


@dataclass(frozen=True)
class ForwardPass:
    """Values recorded in one forward pass, without gradients.

    Attributes:
        by_site: "embed", "z.L" ("attn.L" if heads cannot be separated) and "mlp.L" to values (row,
            position, width).
        logits: (metric position, token).
    """

    by_site: Mapping[str, Tensor]
    logits: Tensor


def writer_sites(structure: TransformerStructure) -> list[str]:
    """Names of the sites that hold the writers' values, in the order of the writers."""
    kind = "z" if structure.n_heads else "attn"
    layers = range(structure.n_layers)
    return ["embed", *(f"{k}.{layer}" for layer in layers for k in (kind, "mlp"))]


def run_forward(
    instrumented: InstrumentedModel,
    batch: Padded,
    metric_mask: Tensor,
    edits: Mapping[str, Tensor | Edit] | None = None,
) -> ForwardPass:
    """Run a batch and record the writers' values.

    Args:
        metric_mask: (row, position) bool, positions whose logits are needed.
        edits: As for ``capture.network.hooks.patch``.
    """
    sites = [*writer_sites(instrumented.structure), "final_read"]
    with torch.no_grad():
        recorded = _forward(instrumented, batch, sites, edits or {})
        logits = instrumented.readout(recorded.pop("final_read")[metric_mask])
    return ForwardPass(recorded, logits)


def writer_outputs(instrumented: InstrumentedModel, raw: Mapping[str, Tensor]) -> Tensor:
    """(row, writer, position, d_model) that each writer adds to the residual stream."""
    parts = []
    for site in writer_sites(instrumented.structure):
        value = raw[site]
        if site.startswith("z."):
            layer = int(site.split(".")[1])
            parts.append(head_outputs(instrumented.structure, layer, value).transpose(0, 1))
        else:
            parts.append(value[:, None])
    return at_least_float32(torch.cat(parts, dim=1))


@dataclass(frozen=True)
class Gradients:
    """Gradients of one backward pass.

    Attributes:
        by_site: Site name to the gradient of the metric's sum over rows, (row, position, width);
            None if the metric does not depend on the site.
        streams: "attn_read.L" and "mlp_read.L" to the stream that the norms read.
    """

    by_site: Mapping[str, Tensor | None]
    streams: Mapping[str, Tensor]


@dataclass
class _ConsumerTaps:
    """Hooks that give each consumer its own view of a tensor, so that gradients separate."""

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
    """Run a batch and compute gradients at the readers' inputs.

    Args:
        instrumented: The model; its parameters get no gradients.
        metric_mask: (row, position) bool, positions whose logits the metric takes.
        metric: Maps logits to one value per row.
        edits: As for ``capture.network.hooks.patch``.
        extra_sites: Further sites whose gradients are needed.
    """
    structure, taps = instrumented.structure, _ConsumerTaps()
    stream_sites = [
        f"{part}_read.{layer}" for layer in range(structure.n_layers) for part in ("attn", "mlp")
    ]
    names = [*gradient_sites(structure), *extra_sites]
    with torch.enable_grad(), ExitStack() as stack:
        # Of two edits of one site, the one registered last runs first.
        taps_by_site = {"embed": _start_graph} | {name: taps.at(name) for name in names}
        stack.enter_context(patch(instrumented.model, taps_by_site, known_sites=structure.sites))
        recorded = _forward(instrumented, batch, [*stream_sites, "final_read"], edits)
        final = recorded["final_read"]
        total = metric(instrumented.readout(final[metric_mask])).sum()
        targets = [*taps.captured.items(), ("final_read", final)]
        gradients = torch.autograd.grad(total, [value for _, value in targets], allow_unused=True)
    return Gradients(
        {name: gradient for (name, _), gradient in zip(targets, gradients, strict=True)},
        {name: recorded[name].detach() for name in stream_sites},
    )


def gradient_sites(structure: TransformerStructure) -> list[str]:
    """Sites where gradients are taken: outputs of the QKV maps and inputs of the MLPs."""
    names = []
    for layer, block in enumerate(structure.blocks):
        names.append(f"mlp_in.{layer}")
        if block.qkv is None:
            names.append(f"attn_in.{layer}")
        else:
            names += [f"{kind}.{layer}" for kind in kinds_by_map(structure, layer)]
    return names


def kinds_by_map(structure: TransformerStructure, layer: int) -> dict[str, tuple[str, ...]]:
    """Each distinct QKV map by the first kind it computes, and all kinds it computes."""
    maps = structure.blocks[layer].qkv
    served: dict[int, list[str]] = {}
    for kind in KINDS if maps is not None else ():
        assert maps is not None
        served.setdefault(id(maps.linears[kind]), []).append(kind)
    return {kinds[0]: tuple(kinds) for kinds in served.values()}


def reader_gradients(
    instrumented: InstrumentedModel, gradients: Gradients
) -> Iterator[tuple[int, int, Tensor]]:
    """Gradients of the readers, together for readers with the same upstream writers.

    Yields:
        Index of the first reader, number of upstream writers, and gradients (row, reader, position,
            d_model).
    """
    structure, upstream = instrumented.structure, instrumented.graph.n_upstream
    reader = 0
    for layer, block in enumerate(structure.blocks):
        stream = gradients.streams[f"attn_read.{layer}"]
        after_norm = _gradients_after_attention_norm(structure, layer, gradients)
        if after_norm is not None:
            before_norm = backward_through_norm(block.attention_norm, stream, after_norm)
            yield (reader, upstream[reader], at_least_float32(before_norm.transpose(0, 1)))
        reader += structure.n_heads + 2 * structure.n_groups if structure.n_heads else 1
        after_norm = gradients.by_site[f"mlp_in.{layer}"]
        if after_norm is not None:
            stream = gradients.streams[f"mlp_read.{layer}"]
            before_norm = backward_through_norm(block.mlp_norm, stream, after_norm[None])
            yield (reader, upstream[reader], at_least_float32(before_norm.transpose(0, 1)))
        reader += 1
    final = gradients.by_site["final_read"]
    if final is not None:
        yield reader, upstream[reader], at_least_float32(final[:, None])


def _gradients_after_attention_norm(
    structure: TransformerStructure, layer: int, gradients: Gradients
) -> Tensor | None:
    """(reader, row, position, d_model) gradients at the output of the norm, by reader."""
    maps = structure.blocks[layer].qkv
    if maps is None:
        gradient = gradients.by_site[f"attn_in.{layer}"]
        return None if gradient is None else gradient[None]
    by_kind: dict[str, Tensor] = {}
    for first, kinds in kinds_by_map(structure, layer).items():
        gradient = gradients.by_site[f"{first}.{layer}"]
        if gradient is None:
            continue
        weight = weight_matrix(maps.linears[first])
        for kind in kinds:
            columns = maps.columns[kind]
            by_kind[kind] = torch.einsum("rphs,hsd->hrpd", gradient[..., columns], weight[columns])
    if not by_kind:
        return None
    example = next(iter(by_kind.values()))
    absent = {
        kind: example.new_zeros(len(maps.columns[kind]), *example.shape[1:])
        for kind in KINDS
        if kind not in by_kind
    }
    return torch.cat([(by_kind | absent)[kind] for kind in KINDS])


def backward_through_norm(norm: nn.Module, stream: Tensor, gradients: Tensor) -> Tensor:
    """Propagate gradients from a norm's output to its input, batched over readers.

    Args:
        norm: The norm.
        stream: (row, position, d_model) its input.
        gradients: (reader, row, position, d_model) at its output.
    """
    with torch.enable_grad():
        stream = stream.detach().requires_grad_()
        normed = norm(stream)
    return torch.autograd.grad(normed, stream, gradients, is_grads_batched=True)[0]


def _forward(
    instrumented: InstrumentedModel,
    batch: Padded,
    sites: list[str],
    edits: Mapping[str, Tensor | Edit],
) -> dict[str, Tensor]:
    """Run until the last of the sites and return their values."""
    model, where = instrumented.model, instrumented.structure.sites
    inputs = accepted_inputs(model, batch.model_inputs | {"use_cache": False})
    with (
        patch(model, edits, known_sites=where),
        record(model, sites, stop=True, known_sites=where) as recorded,
    ):
        model(**inputs)
    return recorded
