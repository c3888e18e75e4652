"""Gradients of the answers' loss with respect to some of a model's matrices."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from capture.activations.passes import accepted_inputs
from capture.data.sequences import Sequences, batches
from capture.network.hooks import evaluation_mode
from capture.network.structure import model_device
from evidence.errors import InputError

BATCH_TOKENS = 2048


def loss_gradients(
    model: nn.Module, rows: Sequences, names: Sequence[str]
) -> dict[str, Tensor]:
    """Gradient of the mean loss of an answer token, by parameter.

    Gradients that parameters hold, and whether they take any, stay as they were.

    Args:
        model: A causal language model.
        rows: With answers.
        names: Parameters wanted; those the model has not are left out, and those
            the loss does not depend on have a gradient of zeros.

    Raises:
        InputError: there are no answer tokens.
    """
    total = sum(len(ids) for ids in rows.ids) - sum(rows.answer_start)
    if total < 1:
        raise InputError("a loss needs answers", expected="one row or more", got="none")
    own = dict(model.named_parameters())
    wanted = {name: own[name] for name in names if name in own}
    if not wanted:
        return {}
    flags = {id(p): p.requires_grad for p in own.values()}
    found = {name: torch.zeros_like(p) for name, p in wanted.items()}
    chosen = {id(p) for p in wanted.values()}
    try:
        for parameter in own.values():
            parameter.requires_grad_(id(parameter) in chosen)
        with evaluation_mode(model), torch.enable_grad():
            for batch in batches(
                rows, batch_tokens=BATCH_TOKENS, device=model_device(model)
            ):
                inputs = accepted_inputs(
                    model, batch.model_inputs | {"use_cache": False}
                )
                output = model(**inputs)
                logits = output if isinstance(output, Tensor) else output.logits
                where = batch.answer_mask[:, 1:]
                loss = nn.functional.cross_entropy(
                    logits[:, :-1][where].float(),
                    batch.input_ids[:, 1:][where],
                    reduction="sum",
                )
                slopes = torch.autograd.grad(
                    loss / total, list(wanted.values()), allow_unused=True
                )
                for name, slope in zip(wanted, slopes, strict=True):
                    if slope is not None:
                        found[name] += slope
    finally:
        for parameter in own.values():
            parameter.requires_grad_(flags[id(parameter)])
    return found
