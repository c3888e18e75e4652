"""Logits at chosen positions only: a vocabulary is too wide to compute them all."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.data.sequences import Padded
from capture.network.structure import output_head


def answer_logits(model: nn.Module, batch: Padded, mask: Tensor) -> Tensor:
    """Logits (chosen position, token) at the True places of ``mask``.

    A hook hands the head only the chosen states; what the model does to its logits
    after the head (capping, scaling) still happens.

    Args:
        model: A causal language model.
        batch: Its input.
        mask: (row, position) bool.
    """
    accepted = inspect.signature(model.forward).parameters
    inputs = {
        name: value
        for name, value in (batch.model_inputs | {"use_cache": False}).items()
        if name in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    }
    with _gathered(output_head(model), mask) as gathered:
        output = model(**inputs)
    logits = output if isinstance(output, Tensor) else output.logits
    return logits[0] if gathered else logits[mask]


@contextmanager
def _gathered(head: nn.Module | None, where: Tensor) -> Iterator[list[bool]]:
    """Reduce the head's input to the chosen positions; the list says if it did."""
    did: list[bool] = []
    if head is None:
        yield did
        return

    def gather(module: nn.Module, args: tuple) -> tuple | None:
        if len(args) == 1 and args[0].ndim == 3 and args[0].shape[:2] == where.shape:
            did.append(True)
            return (args[0][where][None],)
        return None

    handle = head.register_forward_pre_hook(gather)
    try:
        yield did
    finally:
        handle.remove()


@dataclass(frozen=True)
class LogitReader:
    """Logits at chosen positions only, which is what losses on answers need.

    A vocabulary of 50,000 makes the logits of a full batch the largest tensor of a
    training step by far. Where running the model's body and applying its head gives
    the model's own logits (checked on one row when the reader is made), only the
    chosen positions go through the head; otherwise all logits are computed.
    """

    model: nn.Module
    body: nn.Module | None
    head: Callable[[Tensor], Tensor] | None

    def __call__(self, batch: Padded, where: Tensor) -> Tensor:
        """Logits, (chosen, vocabulary), where ``where`` (row, position) is True."""
        inputs = batch.model_inputs
        if self.body is None or self.head is None:
            return self.model(**inputs, use_cache=False).logits[where]
        hidden = self.body(**inputs, use_cache=False).last_hidden_state
        return self.head(hidden[where])


def logit_reader(model: nn.Module, example: Padded) -> LogitReader:
    """A reader for ``model``; ``example`` is a small batch to check the split on."""
    head = output_head(model)
    body = getattr(model, getattr(model, "base_model_prefix", "") or "-", None)
    plain = LogitReader(model, None, None)
    if head is None or not isinstance(body, nn.Module):
        return plain
    split = LogitReader(model, body, head)
    where = example.attention_mask.bool()
    with torch.no_grad():
        try:
            short, full = split(example, where), plain(example, where)
        except (TypeError, AttributeError, RuntimeError):
            return plain
    if short.shape != full.shape:
        return plain
    scale = full.abs().max().clamp(min=1.0)
    same = (short - full).abs().max() <= 1e-4 * scale
    return split if bool(same) else plain
