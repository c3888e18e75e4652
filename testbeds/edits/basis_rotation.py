"""Rotation of the residual stream's basis: all states change, the function stays.

The scale and shift of a norm move into the matrices that read it. The remaining norm commutes with
a rotation (for layer norm, with one that keeps the mean), so the rotation is written into all
matrices that write to the stream and undone in all that read it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from capture.network.structure import (
    attention_of,
    feed_forward_of,
    final_norm,
    find_blocks,
    is_norm,
    is_transposed,
    linears,
    own_head_,
)
from evidence.errors import InputError
from testbeds.edits.late_layers import random_rotation

# Families of which each block reads the stream through two norms that scale by their
# weight, the first for attention and the second for the feed-forward part.
FAMILIES = ("llama", "gpt2", "gpt_neox")


def rotate_basis_(model: nn.Module, seed: int) -> Tensor:
    """Rotate the residual stream of ``model``, in place; its logits stay.

    Returns:
        The rotation Q, (width, width), float64: each state ``h`` becomes ``h @ Q``.

    Raises:
        InputError: an unknown family, or a norm that scales a feature by zero.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    if model_type not in FAMILIES:
        raise InputError(
            "the stream of this family cannot be rotated",
            expected=", ".join(FAMILIES),
            got=str(model_type or type(model).__name__),
        )
    head, last, blocks = own_head_(model), final_norm(model), find_blocks(model)
    assert last is not None  # these families have one
    width = len(last.get_parameter("weight"))
    keeps_mean = isinstance(last, nn.LayerNorm)
    rotation = (
        _mean_preserving_rotation(width, seed) if keeps_mean else random_rotation(width, seed)
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                _set(module, "weight", lambda old: old @ rotation)
        for block in blocks:
            norms = filter(is_norm, block.children())
            for norm, part in zip(norms, _parts(block), strict=True):
                *readers, writer = part
                _rotate_readers(norm, readers, rotation)
                _rotate_writer(writer, rotation)
        _rotate_readers(last, [head], rotation)
    return rotation


def _parts(block: nn.Module) -> list[list[nn.Module]]:
    """The linear maps of attention and of the feed-forward part; the last one writes."""
    parts = (attention_of(block), feed_forward_of(block))
    return [list(linears(part)) for part in parts if part is not None]


def _mean_preserving_rotation(width: int, seed: int) -> Tensor:
    """A random rotation of the orthogonal complement of the vector of ones."""
    ones = torch.full((width,), width**-0.5, dtype=torch.float64)
    normal = ones.clone()
    normal[0] -= 1
    normal /= normal.norm()
    to_ones = torch.eye(width).double() - 2 * torch.outer(normal, normal)
    inner = torch.eye(width).double()
    inner[1:, 1:] = random_rotation(width - 1, seed)
    return to_ones @ inner @ to_ones


def _rotate_readers(norm: nn.Module, readers: list[nn.Module], rotation: Tensor) -> None:
    scale = norm.get_parameter("weight").detach().double()
    if scale.abs().min() < 1e-6:
        raise InputError("a norm scales a feature by zero, which cannot be undone")
    for reader in readers:
        _set(
            reader,
            "weight",
            # GPT-2 keeps its matrices the other way round.
            lambda old, reader=reader: (
                rotation.T @ (scale[:, None] * old)
                if is_transposed(reader)
                else (old * scale) @ rotation
            ),
        )
    if getattr(norm, "bias", None) is not None:
        _set(norm, "bias", lambda old: (old / scale) @ rotation)
    _set(norm, "weight", torch.ones_like)


def _rotate_writer(writer: nn.Module, rotation: Tensor) -> None:
    _set(
        writer, "weight", lambda old: old @ rotation if is_transposed(writer) else rotation.T @ old
    )
    if getattr(writer, "bias", None) is not None:
        _set(writer, "bias", lambda old: old @ rotation)


def _set(module: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    parameter = module.get_parameter(name)
    parameter.copy_(change(parameter.detach().double()))
