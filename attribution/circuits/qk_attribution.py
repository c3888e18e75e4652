"""QK fix of AtP*: attribute queries and keys through the softmax of their attention.

A saturated softmax has almost no gradient, so linearization says that a query does not matter
although a real change of it would move attention. AtP* (Kramar et al., arXiv 2403.00745) recomputes
the attention pattern with the changed query or key and linearizes only from the head's output on.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from attribution.circuits.forward_backward import InstrumentedModel, kinds_by_map
from capture.activations.passes import accepted_inputs
from capture.data.sequences import Padded
from capture.network.hooks import Edit, patch, record
from evidence.errors import InputError


class _Call(NamedTuple):
    """Arguments of one call of a module."""

    args: tuple[object, ...]
    named: Mapping[str, object]


def apply_qk_fix(
    instrumented: InstrumentedModel,
    batch: Padded,
    delta: Tensor,
    gradients: Mapping[str, Tensor],
    scores: Tensor,
) -> None:
    """Recompute the scores of the edges into queries and keys, in place.

    Each attention layer is run once per upstream writer, for the queries of all heads at once, as
    no head depends on another's.

    Args:
        batch: Clean rows.
        delta: (row, writer, position * d_model) corrupt minus clean.
        gradients: "z.L" to gradients (row, position, head * size) at the heads' outputs.
        scores: (row, edge), changed in place.

    Raises:
        InputError: The model's heads cannot be separated.
    """
    structure, graph = instrumented.structure, instrumented.graph
    if not structure.n_heads:
        raise InputError(
            "the query and key fix needs heads that can be told apart", got=structure.note
        )
    calls, streams = _attention_calls(instrumented, batch)
    reader, heads = 0, structure.n_heads
    for layer in range(structure.n_layers):
        gradient = gradients.get(f"z.{layer}")
        if gradient is not None:  # None if the block's gradient was dropped
            upstream_delta = delta[:, : graph.n_upstream[reader]]
            call = calls[layer]
            query_key_scores = _query_key_scores(
                instrumented, layer, call, streams[layer], upstream_delta, gradient
            )
            # Queries come first among a block's readers, then keys.
            start = graph.edge_offsets[reader]
            stop = graph.edge_offsets[reader + heads + structure.n_groups]
            scores[:, start:stop] = torch.cat(query_key_scores, dim=1).flatten(1)
        reader += heads + 2 * structure.n_groups + 1


def _query_key_scores(
    instrumented: InstrumentedModel,
    layer: int,
    call: _Call,
    stream: Tensor,
    delta: Tensor,
    gradient: Tensor,
) -> list[Tensor]:
    """(row, head or group, writer) scores of a block's queries, and of its keys."""
    structure = instrumented.structure
    plain = _head_values(instrumented, layer, call, {})
    scores = []
    for kind, size in (("q", structure.n_heads), ("k", structure.n_groups)):
        by_writer = []
        for shift in delta.unbind(1):
            changed_stream = stream + shift.view_as(stream).to(stream.dtype)
            edits = _projection_edits(instrumented, layer, kind, changed_stream)
            effect = (_head_values(instrumented, layer, call, edits) - plain) * gradient
            by_head = effect.unflatten(-1, (structure.n_heads, -1)).sum((1, 3))
            by_writer.append(by_head.unflatten(1, (size, -1)).sum(-1))
        scores.append(torch.stack(by_writer, dim=2))
    return scores


def _projection_edits(
    instrumented: InstrumentedModel, layer: int, kind: str, stream: Tensor
) -> dict[str, Edit]:
    """Edits that replace a block's queries, or keys, by those of another stream."""
    structure, block = instrumented.structure, instrumented.structure.blocks[layer]
    maps = block.qkv
    assert maps is not None  # heads can be told apart
    columns = maps.columns[kind].flatten()
    with torch.no_grad():
        replacement = maps.linears[kind](block.attention_norm(stream))

    def edit(value: Tensor) -> Tensor:
        new = value.clone()
        new[..., columns] = replacement[..., columns]
        return new

    name = next(k for k, kinds in kinds_by_map(structure, layer).items() if kind in kinds)
    return {f"{name}.{layer}": edit}


def _head_values(
    instrumented: InstrumentedModel, layer: int, call: _Call, edits: Mapping[str, Edit]
) -> Tensor:
    """(row, position, head * size) outputs of a block's heads, with one more call of the layer."""
    attention, where = (
        instrumented.structure.blocks[layer].attention,
        instrumented.structure.sites,
    )
    site = f"z.{layer}"
    with (
        torch.no_grad(),
        patch(attention, edits, known_sites=where),
        record(attention, [site], stop=True, known_sites=where) as recorded,
    ):
        attention(*call.args, **call.named)
    return recorded[site]


def _attention_calls(
    instrumented: InstrumentedModel, batch: Padded
) -> tuple[list[_Call], list[Tensor]]:
    """Arguments of each attention layer's call, and the stream that its norm read."""
    calls: list[_Call] = []
    handles = [
        block.attention.register_forward_pre_hook(
            lambda module, args, named: calls.append(_Call(args, named)), with_kwargs=True
        )
        for block in instrumented.structure.blocks
    ]
    names = [f"attn_read.{layer}" for layer in range(instrumented.structure.n_layers)]
    inputs = accepted_inputs(instrumented.model, batch.model_inputs | {"use_cache": False})
    try:
        with (
            torch.no_grad(),
            record(instrumented.model, names, known_sites=instrumented.structure.sites) as recorded,
        ):
            instrumented.model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls, [recorded[name] for name in names]
