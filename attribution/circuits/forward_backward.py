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
from attribution.circuits.metrics import Metric, wide
from attribution.circuits.qkv_projections import KINDS, matrix
from attribution.circuits.structure import Anatomy, Readout, head_outputs
from capture.activations.passes import accepted_inputs
from capture.data.sequences import Padded
from capture.network.hooks import Edit, patch, record


@dataclass(frozen=True)
class Subject:
    """A model with what is known of its structure.

    Attributes:
        model: The model, in evaluation mode.
        anatomy: Its parts.
        graph: Its edges.
        readout: The final norm and head that logits are read with; another model's
            where its readout is transplanted.
    """

    model: nn.Module
    anatomy: Anatomy
    graph: EdgeGraph
    readout: Readout


@dataclass(frozen=True)
class Values:
    """What one pass computed, without gradients.

    Attributes:
        raw: "embed", "z.L" (or "attn.L" where heads cannot be told apart) and
            "mlp.L" to values (row, position, width).
        logits: (counted position, token).
    """

    raw: Mapping[str, Tensor]
    logits: Tensor


def writer_places(anatomy: Anatomy) -> list[str]:
    """Where the writers' values are, in the order of the writers."""
    kind = "z" if anatomy.n_heads else "attn"
    layers = range(anatomy.n_layers)
    return ["embed", *(f"{k}.{layer}" for layer in layers for k in (kind, "mlp"))]


def run(
    subject: Subject,
    batch: Padded,
    where: Tensor,
    edits: Mapping[str, Tensor | Edit] | None = None,
) -> Values:
    """Run a batch and keep what is written.

    Args:
        subject: The model.
        batch: Rows.
        where: (row, position) bool, whose logits are wanted.
        edits: Changes on the way, as for ``capture.network.hooks.patch``.
    """
    places = [*writer_places(subject.anatomy), "final_read"]
    with torch.no_grad():
        got = _forward(subject, batch, places, edits or {})
        logits = subject.readout(got.pop("final_read")[where])
    return Values(got, logits)


def writers_of(subject: Subject, raw: Mapping[str, Tensor]) -> Tensor:
    """(row, writer, position, d_model) what every writer adds to the stream."""
    parts = []
    for place in writer_places(subject.anatomy):
        value = raw[place]
        if place.startswith("z."):
            layer = int(place.split(".")[1])
            parts.append(head_outputs(subject.anatomy, layer, value).transpose(0, 1))
        else:
            parts.append(value[:, None])
    return wide(torch.cat(parts, dim=1))


@dataclass(frozen=True)
class Slopes:
    """Gradients of one pass.

    Attributes:
        at: Place to gradient of the sum of the metric over rows, (row, position,
            width); None where the metric does not depend on the place.
        streams: "attn_read.L" and "mlp_read.L" to the stream the norms read.
    """

    at: Mapping[str, Tensor | None]
    streams: Mapping[str, Tensor]


@dataclass
class _Taps:
    """Keeps a tensor as one consumer sees it, so that a slope is that consumer's."""

    kept: dict[str, Tensor] = field(default_factory=dict)

    def at(self, name: str) -> Callable[[Tensor], Tensor]:
        def keep(value: Tensor) -> Tensor:
            self.kept[name] = value.view_as(value)
            return self.kept[name]

        return keep


def _start_graph(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


def run_slopes(
    subject: Subject,
    batch: Padded,
    where: Tensor,
    metric: Metric,
    edits: Mapping[str, Tensor | Edit],
    more: tuple[str, ...] = (),
) -> Slopes:
    """Run a batch with gradients.

    Args:
        subject: The model; its parameters get no gradients.
        batch: Rows.
        where: (row, position) bool, whose logits the metric takes.
        metric: Logits to one value a row.
        edits: Changes on the way.
        more: Further places whose gradients are wanted.
    """
    anatomy, taps = subject.anatomy, _Taps()
    reads = [
        f"{part}_read.{layer}"
        for layer in range(anatomy.n_layers)
        for part in ("attn", "mlp")
    ]
    names = [*tap_places(anatomy), *more]
    with torch.enable_grad(), ExitStack() as stack:
        # Of two edits of one place the one opened last acts first.
        watch = {"embed": _start_graph} | {name: taps.at(name) for name in names}
        stack.enter_context(patch(subject.model, watch, where=anatomy.places))
        got = _forward(subject, batch, [*reads, "final_read"], edits)
        final = got["final_read"]
        total = metric(subject.readout(final[where])).sum()
        wanted = [*taps.kept.items(), ("final_read", final)]
        slopes = torch.autograd.grad(
            total, [value for _, value in wanted], allow_unused=True
        )
    return Slopes(
        {name: slope for (name, _), slope in zip(wanted, slopes, strict=True)},
        {name: got[name].detach() for name in reads},
    )


def tap_places(anatomy: Anatomy) -> list[str]:
    """Where slopes are taken: maps' outputs, and inputs of feed-forward parts."""
    names = []
    for layer, block in enumerate(anatomy.blocks):
        names.append(f"mlp_in.{layer}")
        if block.projections is None:
            names.append(f"attn_in.{layer}")
        else:
            names += [f"{kind}.{layer}" for kind in own_kinds(anatomy, layer)]
    return names


def own_kinds(anatomy: Anatomy, layer: int) -> dict[str, tuple[str, ...]]:
    """Each map once, under the first kind it serves, and all the kinds it serves."""
    maps = anatomy.blocks[layer].projections
    served: dict[int, list[str]] = {}
    for kind in KINDS if maps is not None else ():
        assert maps is not None
        served.setdefault(id(maps.linears[kind]), []).append(kind)
    return {kinds[0]: tuple(kinds) for kinds in served.values()}


def reader_slopes(
    subject: Subject, slopes: Slopes
) -> Iterator[tuple[int, int, Tensor]]:
    """Slopes of readers that see the same writers, together.

    Yields:
        Number of the first reader, how many writers come before them, and slopes
        (row, reader, position, d_model).
    """
    anatomy, upstream = subject.anatomy, subject.graph.upstream
    reader = 0
    for layer, block in enumerate(anatomy.blocks):
        read = slopes.streams[f"attn_read.{layer}"]
        behind = _behind_attention_norm(anatomy, layer, slopes)
        if behind is not None:
            here = through_norm(block.attention_norm, read, behind)
            yield reader, upstream[reader], wide(here.transpose(0, 1))
        reader += anatomy.n_heads + 2 * anatomy.n_groups if anatomy.n_heads else 1
        behind = slopes.at[f"mlp_in.{layer}"]
        if behind is not None:
            read = slopes.streams[f"mlp_read.{layer}"]
            here = through_norm(block.mlp_norm, read, behind[None])
            yield reader, upstream[reader], wide(here.transpose(0, 1))
        reader += 1
    final = slopes.at["final_read"]
    if final is not None:
        yield reader, upstream[reader], wide(final[:, None])


def _behind_attention_norm(
    anatomy: Anatomy, layer: int, slopes: Slopes
) -> Tensor | None:
    """(reader, row, position, d_model) slopes at what the norm gives, by reader."""
    maps = anatomy.blocks[layer].projections
    if maps is None:
        slope = slopes.at[f"attn_in.{layer}"]
        return None if slope is None else slope[None]
    by_kind: dict[str, Tensor] = {}
    for first, kinds in own_kinds(anatomy, layer).items():
        slope = slopes.at[f"{first}.{layer}"]
        if slope is None:
            continue
        weight = matrix(maps.linears[first])
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


def through_norm(norm: nn.Module, stream: Tensor, slopes: Tensor) -> Tensor:
    """Slopes behind a norm to slopes before it, many at once.

    Args:
        norm: The norm.
        stream: (row, position, d_model) what it read.
        slopes: (reader, row, position, d_model).
    """
    with torch.enable_grad():
        stream = stream.detach().requires_grad_()
        normed = norm(stream)
    return torch.autograd.grad(normed, stream, slopes, is_grads_batched=True)[0]


def _forward(
    subject: Subject,
    batch: Padded,
    places: list[str],
    edits: Mapping[str, Tensor | Edit],
) -> dict[str, Tensor]:
    """Run until the last of ``places`` and give their values."""
    model, where = subject.model, subject.anatomy.places
    inputs = accepted_inputs(model, batch.model_inputs | {"use_cache": False})
    with (
        patch(model, edits, where=where),
        record(model, places, stop=True, where=where) as got,
    ):
        model(**inputs)
    return got
