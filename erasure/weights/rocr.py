"""ROCR: redirect a concept by making an MLP answer its key with another concept's value.

A rank-one change of a down-projection W. With k the mean hidden activation of the MLP (its key) at
the ends of the forget prompts, v the mean output of the MLP at the ends of harmless prompts, and C
the second moment of keys on other text, the change

    W + (v - W k) (C^-1 k)' / (k' C^-1 k)

is the one that maps k to v and changes the output on other text least. Nothing is removed: the
knowledge is redirected, so it is a suppression to test audits with.

ROCR is no ``ConceptEraser``: it maps keys to values, not activations to activations of one site,
and is fitted on prompts.

Source: after ROCR (arXiv 2506.07795), whose abstract describes a training-free rank-one edit of an
MLP; the closed form is that of ROME (arXiv 2202.05262).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.activations.hidden_states import prompts_only
from capture.data.sequences import Sequences, pad
from capture.network.hooks import record_places
from capture.network.sites import Place
from capture.network.structure import block_at, down_projection, matrix_view, model_device
from evidence.errors import InputError


@dataclass(frozen=True)
class RocrEdit:
    """The change that was made.

    Attributes:
        layer: Index of the block.
        relative_norm: Norm of the change over that of the matrix.
        background_change: Root mean square change of the output on the background over the root
            mean square output.
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
    """Map the forget prompts' key to the harmless prompts' value, in place.

    Args:
        model: A Hugging Face causal language model.
        layer: Index of the block whose MLP is edited.
        forget: Rows whose last prompt token gives the key.
        harmless: Rows whose last prompt token gives the value.
        background: Rows whose tokens all define the outputs to preserve.
        ridge: Share of the mean second moment that is added to its diagonal.

    Raises:
        InputError: The block does not exist, rows are missing, or the ridge is not above 0.
    """
    module = down_projection(block_at(model, layer))
    if not ridge > 0 or min(map(len, (forget, harmless, background))) == 0:
        raise InputError(
            "ROCR needs forget, harmless and background rows and a ridge > 0",
            got=f"{len(forget)}, {len(harmless)}, {len(background)} rows, {ridge}",
        )
    matrix = matrix_view(module).detach()
    before = matrix.double().cpu()
    key = _mlp_keys(model, module, prompts_only(forget), ends=True).mean(0)
    harmless_keys = _mlp_keys(model, module, prompts_only(harmless), ends=True)
    background_keys = _mlp_keys(model, module, background, ends=False)
    moment = background_keys.mT @ background_keys / len(background_keys)
    moment.diagonal().add_(ridge * moment.diagonal().mean())
    direction = torch.linalg.solve(moment, key)
    value = (harmless_keys @ before.mT).mean(0)
    change = torch.outer(value - before @ key, direction / (key @ direction))
    with torch.no_grad():
        matrix.copy_((before + change).to(matrix))
    background_change = (background_keys @ change.mT).norm() / (
        background_keys @ before.mT
    ).norm().clamp(min=1e-300)
    return RocrEdit(layer, float(change.norm() / before.norm()), float(background_change))


def _mlp_keys(model: nn.Module, module: nn.Module, rows: Sequences, ends: bool) -> Tensor:
    """(row, d_in) inputs of ``module`` at the rows' last tokens, or at every token."""
    keys, place = [], Place("keys", module, "in")
    with torch.no_grad(), record_places([place]) as captured:
        for start in range(0, len(rows), 32):
            chosen = list(range(start, min(start + 32, len(rows))))
            batch = pad(rows, chosen, device=model_device(model))
            model(**batch.model_inputs)
            inputs = captured[place.name]
            if ends:
                last = torch.tensor([len(rows.ids[row]) - 1 for row in chosen])
                keys.append(inputs[torch.arange(len(chosen)), last])
            else:
                keys.append(inputs[batch.attention_mask.bool()])
    return torch.cat(keys).double().cpu()
