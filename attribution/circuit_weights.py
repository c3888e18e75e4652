"""The weights that a circuit's edges run through.

An edge runs from what its writer adds to the stream to what its reader takes from it.
Its weights are the columns of the output map that belong to the head, the rows of the
query, key or value map that belong to the reading head or group, and all matrices of a
feed-forward part at either end. Embedding and output head belong to no circuit here.
"""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from attribution.circuits.graph import build_graph
from attribution.circuits.structure import TransformerStructure, find_structure
from evidence.errors import InputError


def circuit_weights(
    model: nn.Module,
    edge_mask: np.ndarray,
    *,
    structure: TransformerStructure | None = None,
) -> dict[str, Tensor]:
    """Name of a matrix to a bool mask of its shape, for matrices the circuit touches.

    Args:
        model: The model.
        edge_mask: (edge,) bool.
        structure: The model's, if already found.

    Raises:
        InputError: heads cannot be told apart, or ``edge_mask`` is of another graph.
    """
    parts = structure or find_structure(model)
    graph = build_graph(parts)
    if not parts.n_heads:
        raise InputError(
            "a circuit's weights need separate heads",
            expected="queries, keys and values that can be told apart",
            got=parts.note,
        )
    if edge_mask.shape != (graph.n_edges,):
        raise InputError(
            "the circuit belongs to another graph",
            expected=f"{graph.n_edges} edges",
            got=str(edge_mask.shape),
        )
    names = {id(p): name for name, p in model.named_parameters()}
    masks: dict[str, Tensor] = {}
    ends = {graph.writers[i] for i in graph.edge_writers[edge_mask]}
    ends |= {graph.readers[i] for i in graph.edge_readers[edge_mask]}
    for end in sorted(ends):
        kind, *rest = end.split(".")
        if kind in ("embed", "logits"):
            continue
        block = parts.blocks[int(rest[0])]
        if kind == "mlp":
            for parameter in block.mlp.parameters():
                if parameter.dim() == 2:
                    _mask(masks, names, parameter).fill_(True)
            continue
        which = int(rest[1])
        if kind == "head":
            linear = block.output_projection
            size = _width(linear) // parts.n_heads
            weight = cast(Tensor, linear.weight)
            mask = _oriented(_mask(masks, names, weight), linear)
            mask[:, which * size : (which + 1) * size] = True
        else:
            assert block.qkv is not None
            linear = block.qkv.linears[kind]
            rows = block.qkv.columns[kind][which]
            weight = cast(Tensor, linear.weight)
            _oriented(_mask(masks, names, weight), linear)[rows] = True
    return masks


def _mask(masks: dict[str, Tensor], names: dict[int, str], weight: Tensor) -> Tensor:
    """The mask of a matrix, made when it is first asked for."""
    name = names[id(weight)]
    if name not in masks:
        masks[name] = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    return masks[name]


def _oriented(mask: Tensor, linear: nn.Module) -> Tensor:
    """(out, in), a view; GPT-2's layers hold their matrices turned."""
    return mask.T if type(linear).__name__ == "Conv1D" else mask


def _width(linear: nn.Module) -> int:
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0 if type(linear).__name__ == "Conv1D" else 1]
