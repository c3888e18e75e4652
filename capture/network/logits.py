"""Logits at selected positions only, to save the memory of a large vocabulary."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from capture.data.sequences import Padded
from capture.network.structure import output_head


def answer_logits(model: nn.Module, batch: Padded, mask: Tensor) -> Tensor:
    """Logits (selected position, vocabulary) where ``mask`` (row, position) is True.

    A hook passes only the selected states to the head. Operations of the model after the head
    (capping, scaling) still apply.
    """
    accepted = inspect.signature(model.forward).parameters
    inputs = {
        name: value
        for name, value in (batch.model_inputs | {"use_cache": False}).items()
        if name in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    }
    with _gather_head_input(output_head(model), mask) as gathered:
        output = model(**inputs)
    logits = output if isinstance(output, Tensor) else output.logits
    return logits[0] if gathered else logits[mask]


@contextmanager
def _gather_head_input(head: nn.Module | None, mask: Tensor) -> Iterator[list[bool]]:
    """Reduce the head's input to the selected positions; yields a list, non-empty if it did."""
    gathered: list[bool] = []
    if head is None:
        yield gathered
        return

    def gather(module: nn.Module, args: tuple) -> tuple | None:
        if len(args) == 1 and args[0].ndim == 3 and args[0].shape[:2] == mask.shape:
            gathered.append(True)
            return (args[0][mask][None],)
        return None

    with head.register_forward_pre_hook(gather):
        yield gathered
