"""Logits at chosen positions only: a vocabulary is too wide to compute them all."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

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
