"""Another basis of the residual stream: all states look new, the function stays.

A norm's own scale and shift go into the matrices that read it. What is left of the
norm commutes with a rotation (for layer norm: with one that leaves the mean alone), so
the rotation can be written into all that writes to the stream and undone in all that
reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from capture.network.structure import find_blocks, own_head_
from evidence.errors import InputError
from testbeds.edits.late_layers import random_rotation


@dataclass(frozen=True)
class _StreamModules:
    """Where one family reads and writes the stream: norm to readers, and writers."""

    embeddings: tuple[str, ...]
    read: dict[str, tuple[str, ...]]
    written: tuple[str, ...]
    last_norm: str


_FAMILIES = {
    "llama": _StreamModules(
        ("model.embed_tokens",),
        {
            "input_layernorm": (
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
            ),
            "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
        },
        ("self_attn.o_proj", "mlp.down_proj"),
        "model.norm",
    ),
    "gpt2": _StreamModules(
        ("transformer.wte", "transformer.wpe"),
        {"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",)},
        ("attn.c_proj", "mlp.c_proj"),
        "transformer.ln_f",
    ),
    "gpt_neox": _StreamModules(
        ("gpt_neox.embed_in",),
        {
            "input_layernorm": ("attention.query_key_value",),
            "post_attention_layernorm": ("mlp.dense_h_to_4h",),
        },
        ("attention.dense", "mlp.dense_4h_to_h"),
        "gpt_neox.final_layer_norm",
    ),
}


def rotate_basis_(model: nn.Module, seed: int) -> Tensor:
    """Rotate the residual stream of ``model``, in place; its logits stay.

    Returns:
        The rotation Q, (width, width), float64: each state ``h`` is now ``h @ Q``.

    Raises:
        InputError: a family that is not known here, or a norm that scales by zero.
    """
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if kind not in _FAMILIES:
        raise InputError(
            "the stream of this family cannot be rotated",
            expected=", ".join(_FAMILIES),
            got=str(kind or type(model).__name__),
        )
    names = _FAMILIES[kind]
    head = own_head_(model)
    last = model.get_submodule(names.last_norm)
    width = len(last.get_parameter("weight"))
    centred = isinstance(last, nn.LayerNorm)
    turn = (
        _mean_preserving_rotation(width, seed)
        if centred
        else random_rotation(width, seed)
    )
    with torch.no_grad():
        for name in names.embeddings:
            _set(model.get_submodule(name), "weight", lambda old: old @ turn)
        for block in find_blocks(model):
            for norm, readers in names.read.items():
                modules = [block.get_submodule(reader) for reader in readers]
                _rotate_readers(block.get_submodule(norm), modules, turn)
            for writer in names.written:
                _rotate_writer(block.get_submodule(writer), turn)
        _rotate_readers(last, [head], turn)
    return turn


def _mean_preserving_rotation(width: int, seed: int) -> Tensor:
    """A random rotation of what is orthogonal to the vector of ones."""
    ones = torch.full((width,), width**-0.5, dtype=torch.float64)
    mirror = ones.clone()
    mirror[0] -= 1
    mirror /= mirror.norm()
    to_ones = torch.eye(width).double() - 2 * torch.outer(mirror, mirror)
    inner = torch.eye(width).double()
    inner[1:, 1:] = random_rotation(width - 1, seed)
    return to_ones @ inner @ to_ones


def _rotate_readers(norm: nn.Module, readers: list[nn.Module], turn: Tensor) -> None:
    scale = norm.get_parameter("weight").detach().double()
    if scale.abs().min() < 1e-6:
        raise InputError("a norm scales a feature by zero, which cannot be undone")
    for reader in readers:
        _set(
            reader,
            "weight",
            # GPT-2 keeps its matrices the other way round.
            lambda old, reader=reader: (
                turn.T @ (scale[:, None] * old)
                if isinstance(reader, Conv1D)
                else (old * scale) @ turn
            ),
        )
    if getattr(norm, "bias", None) is not None:
        _set(norm, "bias", lambda old: (old / scale) @ turn)
    _set(norm, "weight", torch.ones_like)


def _rotate_writer(writer: nn.Module, turn: Tensor) -> None:
    _set(
        writer,
        "weight",
        lambda old: old @ turn if isinstance(writer, Conv1D) else turn.T @ old,
    )
    if getattr(writer, "bias", None) is not None:
        _set(writer, "bias", lambda old: old @ turn)


def _set(module: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    parameter = module.get_parameter(name)
    parameter.copy_(change(parameter.detach().double()))
