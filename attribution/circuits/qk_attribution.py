"""Queries and keys followed through the softmax of their attention (the QK fix).

A saturated softmax is flat: its tangent says that a query does not matter where a real
change of it would move attention elsewhere. The fix of AtP* (Kramar et al., arXiv
2403.00745) recomputes the attention pattern with the changed query or key, and goes on
along the tangent only from the head's output.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attribution.circuits.forward_backward import InstrumentedModel, kinds_by_map
from capture.activations.passes import accepted_inputs
from capture.data.sequences import Padded
from capture.network.hooks import Edit, patch, record
from evidence.errors import InputError


def apply_qk_fix(
    instrumented: InstrumentedModel,
    batch: Padded,
    delta: Tensor,
    gradients: Mapping[str, Tensor],
    scores: Tensor,
) -> None:
    """Write the scores of edges into queries and keys anew.

    One attention part is run once for each edge into it, queries of all its heads
    together, as no head sees another's.

    Args:
        instrumented: The model.
        batch: Clean rows.
        delta: (row, writer, position * d_model) corrupt less clean.
        gradients: "z.L" to slopes (row, position, head * size) at heads' outputs.
        scores: (row, edge), changed in place.

    Raises:
        InputError: heads cannot be told apart in this model.
    """
    anatomy, graph = instrumented.structure, instrumented.graph
    if not anatomy.n_heads:
        raise InputError(
            "the query and key fix needs heads that can be told apart",
            got=anatomy.note,
        )
    calls, streams = _attention_calls(instrumented, batch)
    reader, heads = 0, anatomy.n_heads
    for layer in range(anatomy.n_layers):
        slope = gradients.get(f"z.{layer}")
        if slope is not None:  # none where the block passes no gradient
            before = delta[:, : graph.n_upstream[reader]]
            call = calls[layer]
            effects = _query_key_scores(
                instrumented, layer, call, streams[layer], before, slope
            )
            # Queries come first among a block's readers, then keys.
            start = graph.edge_offsets[reader]
            stop = graph.edge_offsets[reader + heads + anatomy.n_groups]
            scores[:, start:stop] = torch.cat(effects, dim=1).flatten(1)
        reader += heads + 2 * anatomy.n_groups + 1


def _query_key_scores(
    subject: InstrumentedModel,
    layer: int,
    call: tuple[tuple, dict[str, Any]],
    stream: Tensor,
    delta: Tensor,
    slope: Tensor,
) -> list[Tensor]:
    """(row, head or group, writer) scores of a block's queries, and of its keys."""
    anatomy = subject.structure
    plain = _head_values(subject, layer, call, {})
    found = []
    for kind, size in (("q", anatomy.n_heads), ("k", anatomy.n_groups)):
        by_writer = []
        for shift in delta.unbind(1):
            other = stream + shift.view_as(stream).to(stream.dtype)
            edits = _projection_edits(subject, layer, kind, other)
            moved = (_head_values(subject, layer, call, edits) - plain) * slope
            by_head = moved.unflatten(-1, (anatomy.n_heads, -1)).sum((1, 3))
            by_writer.append(by_head.unflatten(1, (size, -1)).sum(-1))
        found.append(torch.stack(by_writer, dim=2))
    return found


def _projection_edits(
    subject: InstrumentedModel, layer: int, kind: str, stream: Tensor
) -> dict[str, Edit]:
    """Edits that give a block the queries, or keys, of another stream."""
    anatomy, block = subject.structure, subject.structure.blocks[layer]
    maps = block.qkv
    assert maps is not None  # heads can be told apart
    columns = maps.columns[kind].flatten()
    with torch.no_grad():
        other = maps.linears[kind](block.attention_norm(stream))

    def edit(value: Tensor) -> Tensor:
        new = value.clone()
        new[..., columns] = other[..., columns]
        return new

    name = next(
        k for k, served in kinds_by_map(anatomy, layer).items() if kind in served
    )
    return {f"{name}.{layer}": edit}


def _head_values(
    subject: InstrumentedModel,
    layer: int,
    call: tuple[tuple, dict[str, Any]],
    edits: Mapping[str, Edit],
) -> Tensor:
    """(row, position, head * size) outputs of a block's heads, called once more."""
    attention, where = (
        subject.structure.blocks[layer].attention,
        subject.structure.sites,
    )
    site = f"z.{layer}"
    with (
        torch.no_grad(),
        patch(attention, edits, known_sites=where),
        record(attention, [site], stop=True, known_sites=where) as got,
    ):
        attention(*call[0], **call[1])
    return got[site]


def _attention_calls(
    subject: InstrumentedModel, batch: Padded
) -> tuple[list[tuple[tuple, dict[str, Any]]], list[Tensor]]:
    """With what each attention part was called, and the stream its norm had read."""
    calls: list[tuple[tuple, dict[str, Any]]] = []
    handles = [
        block.attention.register_forward_pre_hook(
            lambda module, args, named: calls.append((args, named)), with_kwargs=True
        )
        for block in subject.structure.blocks
    ]
    names = [f"attn_read.{layer}" for layer in range(subject.structure.n_layers)]
    inputs = accepted_inputs(subject.model, batch.model_inputs | {"use_cache": False})
    try:
        with (
            torch.no_grad(),
            record(subject.model, names, known_sites=subject.structure.sites) as got,
        ):
            subject.model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls, [got[name] for name in names]
