"""Redirecting a concept: an MLP is made to answer its key with another one's value.

One rank-one change of a down-projection W. With k the mean of the MLP's hidden
activations (its key) at the ends of the forget prompts, v the mean of what it writes at
the ends of harmless ones, and C the second moment of keys on other text, the change

    W + (v - W k) (C^-1 k)' / (k' C^-1 k)

is of all that take k to v the one that moves the output on other text least. Nothing is
removed: knowledge is led elsewhere, which makes it a suppression to test audits with.

It is no eraser of ``erasure.concept.base``'s contract: it maps no activation to another
of the same site but keys to values, and is fitted on prompts.

Source: after ROCR (arXiv 2506.07795), whose abstract says a training-free rank-one edit
of an MLP; the closed form is that of ROME (arXiv 2202.05262).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from capture.activations.hidden_states import prompts_only
from capture.data.sequences import Sequences, pad
from capture.network.structure import down_projection, find_blocks
from erasure.unlearning.training.loop import device_of
from evidence.errors import InputError


@dataclass(frozen=True)
class RocrEdit:
    """The change that was made.

    Attributes:
        layer: Number of the block.
        relative_norm: Norm of the change over that of the matrix.
        background_change: Root mean square change of the output on the background over
            that output's own.
    """

    layer: int
    relative_norm: float
    background_change: float


def rocr_(
    model: nn.Module,
    layer: int,
    forget: Sequences,
    harmless: Sequences,
    background: Sequences,
    *,
    ridge: float = 1e-2,
) -> RocrEdit:
    """Lead the forget prompts' key to the harmless ones' value, in place.

    Args:
        model: A Hugging Face causal language model.
        layer: Number of the block whose MLP is edited.
        forget: Rows whose last prompt token gives the key.
        harmless: Rows whose last prompt token gives the value.
        background: Rows, all of whose tokens say what must not move.
        ridge: Share of the mean second moment that is added to its diagonal.

    Raises:
        InputError: no such block, no rows, or a ridge <= 0.
    """
    blocks = find_blocks(model)
    if not 0 <= layer < len(blocks):
        raise InputError(
            "the model has no such block",
            expected=f"0 to {len(blocks) - 1}",
            got=str(layer),
        )
    if not ridge > 0 or min(map(len, (forget, harmless, background))) == 0:
        raise InputError(
            "a redirection needs rows of three kinds and a ridge > 0",
            got=f"{len(forget)}, {len(harmless)}, {len(background)} rows, {ridge}",
        )
    module = down_projection(blocks[layer])
    weight = module.weight
    assert isinstance(weight, nn.Parameter)  # down_projection looked
    matrix = weight.data.T if isinstance(module, Conv1D) else weight.data
    before = matrix.detach().double().cpu()
    key = _mlp_keys(model, module, prompts_only(forget), ends=True).mean(0)
    other = _mlp_keys(model, module, prompts_only(harmless), ends=True)
    rest = _mlp_keys(model, module, background, ends=False)
    moment = rest.mT @ rest / len(rest)
    moment.diagonal().add_(ridge * moment.diagonal().mean())
    towards = torch.linalg.solve(moment, key)
    value = (other @ before.mT).mean(0)
    change = torch.outer(value - before @ key, towards / (key @ towards))
    with torch.no_grad():
        matrix.copy_((before + change).to(matrix))
    moved = (rest @ change.mT).norm() / (rest @ before.mT).norm().clamp(min=1e-300)
    return RocrEdit(layer, float(change.norm() / before.norm()), float(moved))


def _mlp_keys(
    model: nn.Module, module: nn.Module, rows: Sequences, ends: bool
) -> Tensor:
    """(row, d_in) inputs of ``module`` at the rows' last tokens, or at every token."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, inputs: Sequence[Tensor]) -> None:
        seen.append(inputs[0].detach())

    found = []
    handle = module.register_forward_pre_hook(keep)
    try:
        for start in range(0, len(rows), 32):
            chosen = list(range(start, min(start + 32, len(rows))))
            batch = pad(rows, chosen, device=device_of(model))
            seen.clear()
            with torch.no_grad():
                model(**batch.model_inputs)
            if ends:
                last = torch.tensor([len(rows.ids[row]) - 1 for row in chosen])
                found.append(seen[0][torch.arange(len(chosen)), last])
            else:
                found.append(seen[0][batch.attention_mask.bool()])
    finally:
        handle.remove()
    return torch.cat(found).double().cpu()
