"""Late edits in closed form: one linear map changed on chosen prompts, held on others.

Written into the weights, such an edit is part of a plain model. Whatever comes before
the map computes what it computed.
"""

import torch
from torch import Tensor, nn

from capture.data.sequences import Sequences, batches
from capture.network.hooks import record_places
from capture.network.sites import Place
from capture.network.structure import is_linear_map, matrix_view, model_device
from erasure.unlearning.training.loop import CHUNK_TOKENS
from evidence.errors import InputError


def module_inputs(model: nn.Module, module: nn.Module, rows: Sequences) -> Tensor:
    """What ``module`` receives where each row's answer begins, (row, width), float64.

    Args:
        model: A causal language model.
        module: A part of it that takes states, (row, position, width).
        rows: Rows with a prompt before their answer.
    """
    return _states_at_answers(model, Place("states", module, "in"), rows)


def module_outputs(model: nn.Module, module: nn.Module, rows: Sequences) -> Tensor:
    """What ``module`` gives where each row's answer begins, (row, width), float64."""
    return _states_at_answers(model, Place("states", module, "out"), rows)


def _states_at_answers(model: nn.Module, place: Place, rows: Sequences) -> Tensor:
    found: dict[int, Tensor] = {}
    device = model_device(model)
    with torch.no_grad(), record_places([place]) as seen:
        for batch in batches(rows, batch_tokens=CHUNK_TOKENS, device=device):
            model(**batch.model_inputs, use_cache=False)
            states = seen[place.name].double().cpu()
            for at, row in enumerate(batch.rows.tolist()):
                found[row] = states[at, rows.answer_start[row] - 1]
    return torch.stack([found[row] for row in range(len(rows))])


def fold_edit_(
    module: nn.Module,
    moved: Tensor,
    change: Tensor,
    held: Tensor,
    *,
    hold: float = 1.0,
    ridge: float = 1e-4,
) -> None:
    """Add to a linear map what changes its output on some inputs and not on others.

    The least-squares solution of ``D @ moved[i] = change[i]`` and
    ``D @ held[j] = 0``, added to the map's matrix.

    Args:
        module: A linear layer, or GPT-2's.
        moved: (row, in) inputs whose output is to change.
        change: (row, out) by how much.
        held: (row, in) inputs whose output is to stay.
        hold: Weight of a held row relative to a moved one.
        ridge: Penalty on the change, relative to the mean square of the inputs.

    Raises:
        InputError: the module is no linear map.

    Source: the closed form of linear memory edits (MEMIT, Meng et al. 2022, arXiv
    2210.07229).
    """
    if not is_linear_map(module):
        raise InputError(
            "this module has no matrix to fold an edit into",
            expected="a linear layer",
            got=type(module).__name__,
        )
    second = moved.T @ moved + hold * held.T @ held
    second += ridge * second.diagonal().mean() * torch.eye(len(second))
    update = torch.linalg.solve(second, moved.T @ change)  # (in, out)
    with torch.no_grad():
        matrix = matrix_view(module)
        matrix += update.T.to(matrix)
