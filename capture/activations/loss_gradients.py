"""Gradients of the answer loss with respect to selected parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from capture.activations.passes import accepted_inputs
from capture.data.sequences import Sequences, running
from capture.network.discovery.modes import gradients_on
from capture.network.edits.row_order import model_batches
from capture.network.hooks import evaluation_mode
from evidence.errors import InputError

BATCH_TOKENS = 2048


def loss_gradients(model: nn.Module, rows: Sequences, names: Sequence[str]) -> dict[str, Tensor]:
    """Gradient of the mean loss per answer token, by parameter name.

    Leaves ``grad`` and ``requires_grad`` of the parameters unchanged.

    Args:
        model: A causal language model.
        rows: Rows with answers.
        names: Parameter names; unknown names are left out. Parameters that the loss does not
            depend on have a zero gradient.

    Raises:
        InputError: there are no answer tokens.
    """
    total = sum(len(ids) for ids in rows.ids) - sum(rows.answer_start)
    if total < 1:
        raise InputError("a loss needs answers", expected="one row or more", got="none")
    parameters = dict(model.named_parameters())
    wanted = {name: parameters[name] for name in names if name in parameters}
    if not wanted:
        return {}
    requires_grad = {id(p): p.requires_grad for p in parameters.values()}
    gradients = {name: torch.zeros_like(p) for name, p in wanted.items()}
    chosen = {id(p) for p in wanted.values()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(id(parameter) in chosen)
        with evaluation_mode(model), gradients_on():
            for batch in model_batches(model, rows, BATCH_TOKENS):
                inputs = accepted_inputs(model, batch.model_inputs | {"use_cache": False})
                with running(batch, rows):
                    output = model(**inputs)
                logits = output if isinstance(output, Tensor) else output.logits
                mask = batch.answer_mask[:, 1:]
                loss = nn.functional.cross_entropy(
                    logits[:, :-1][mask].float(), batch.input_ids[:, 1:][mask], reduction="sum"
                )
                batch_gradients = torch.autograd.grad(
                    loss / total, list(wanted.values()), allow_unused=True
                )
                for name, slope in zip(wanted, batch_gradients, strict=True):
                    if slope is not None:
                        gradients[name] += slope
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(requires_grad[id(parameter)])
    return gradients
