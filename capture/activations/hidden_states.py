"""Hidden states of a model, by depth or of one module, attached to the gradient graph."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from capture.data.sequences import Padded, Sequences
from capture.network.hooks import record_places
from capture.network.sites import Place
from capture.network.structure import find_blocks
from evidence.errors import InputError


def check_depths(model: nn.Module, depths: Sequence[int] | None) -> tuple[int, ...]:
    """Validate depths; None means all. Depth 0 is the input of block 0.

    Raises:
        InputError: the model has no such depth, or ``depths`` is empty.
    """
    deepest = len(find_blocks(model))
    chosen = tuple(range(deepest + 1)) if depths is None else tuple(depths)
    if not chosen or not set(chosen) <= set(range(deepest + 1)):
        raise InputError(
            "the model does not have these depths",
            expected=f"some of 0 (embeddings) to {deepest} (after the last block)",
            got=", ".join(map(str, chosen)) or "none",
        )
    return chosen


@contextmanager
def record_depths(
    model: nn.Module, depths: Sequence[int], *, stop: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Record the states by depth, (row, position, d), of each pass run inside the block.

    Args:
        model: The model; the caller runs it inside the block.
        depths: As returned by ``check_depths``.
        stop: Stop the pass after the deepest state; execution continues after the block.

    Yields:
        Depth, as a string, to the states themselves (not a copy).
    """
    blocks = find_blocks(model)
    places = [
        Place(str(depth), blocks[max(depth - 1, 0)], "out" if depth else "in")
        for depth in sorted(set(depths))
    ]
    with record_places(places, stop=stop) as seen:
        yield seen


def last_token_states(model: nn.Module, batch: Padded, depths: Sequence[int]) -> Tensor:
    """States at the last token of each row, (depth, row, d); the pass stops early."""
    with record_depths(model, depths, stop=True) as states:
        model(**batch.model_inputs, use_cache=False)
    return states_at(states, depths, batch.attention_mask.sum(1) - 1)


def states_at(states: dict[str, Tensor], depths: Sequence[int], ends: Tensor) -> Tensor:
    """(depth, row, d) recorded states at one position per row."""
    rows = torch.arange(len(ends), device=ends.device)
    return torch.stack([states[str(depth)][rows, ends].float() for depth in depths])


def module_output(model: nn.Module, module: nn.Module, batch: Padded) -> Tensor:
    """Output of ``module``, (row, position, width); the pass stops there.

    Raises:
        InputError: the pass does not reach the module.
    """
    name = type(module).__name__
    with record_places([Place(name, module, "out")], stop=True) as values:
        model(**batch.model_inputs, use_cache=False)
    return values[name]


def prompts_only(rows: Sequences) -> Sequences:
    """The rows without their answers."""
    ids = tuple(row[:start] for row, start in zip(rows.ids, rows.answer_start, strict=True))
    return Sequences(ids, tuple(map(len, ids)))
