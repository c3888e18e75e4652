"""Closed-form edit of one linear map: change its output on some inputs, hold it on others.

The edit is written into the weights, so the model stays a plain checkpoint. Computation before the
map is unchanged.
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
    """Inputs of ``module`` where each row's answer begins, (row, width), float64.

    Args:
        model: A causal language model.
        module: A submodule that takes states, (row, position, width).
        rows: Rows with a prompt before their answer.
    """
    return _states_at_answers(model, Place("states", module, "in"), rows)


def module_outputs(model: nn.Module, module: nn.Module, rows: Sequences) -> Tensor:
    """Outputs of ``module`` where each row's answer begins, (row, width), float64."""
    return _states_at_answers(model, Place("states", module, "out"), rows)


def _states_at_answers(model: nn.Module, place: Place, rows: Sequences) -> Tensor:
    row_states: dict[int, Tensor] = {}
    device = model_device(model)
    with torch.no_grad(), record_places([place]) as captured:
        for batch in batches(rows, batch_tokens=CHUNK_TOKENS, device=device):
            model(**batch.model_inputs, use_cache=False)
            states = captured[place.name].double().cpu()
            for i_row, row in enumerate(batch.rows.tolist()):
                row_states[row] = states[i_row, rows.answer_start[row] - 1]
    return torch.stack([row_states[row] for row in range(len(rows))])


def fold_edit_(
    module: nn.Module,
    changed_inputs: Tensor,
    change: Tensor,
    held_inputs: Tensor,
    *,
    held_weight: float = 1.0,
    ridge: float = 1e-4,
) -> None:
    """Add the least-squares change D of a linear map, in place.

    D minimizes the squared errors of ``D @ changed_inputs[i] = change[i]`` and ``D @ held_inputs[j]
    = 0`` with a ridge penalty.

    Args:
        module: A linear layer, or GPT-2's ``Conv1D``.
        changed_inputs: (row, in) inputs whose output is to change.
        change: (row, out) change of their output.
        held_inputs: (row, in) inputs whose output is to stay.
        held_weight: Weight of a held row relative to a changed one.
        ridge: Penalty, relative to the mean square of the inputs.

    Raises:
        InputError: the module is not a linear map.

    Source: the closed form of linear memory edits (MEMIT, Meng et al. 2022, arXiv 2210.07229).
    """
    if not is_linear_map(module):
        raise InputError(
            "this module has no matrix to fold an edit into",
            expected="a linear layer",
            got=type(module).__name__,
        )
    second_moment = changed_inputs.T @ changed_inputs + held_weight * held_inputs.T @ held_inputs
    second_moment += ridge * second_moment.diagonal().mean() * torch.eye(len(second_moment))
    update = torch.linalg.solve(second_moment, changed_inputs.T @ change)  # (in, out)
    with torch.no_grad():
        matrix = matrix_view(module)
        matrix += update.T.to(matrix)
