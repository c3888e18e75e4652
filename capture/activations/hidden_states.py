"""Hidden states of a live model with their gradients: by depth, or of one module."""

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
    """The depths asked for, all of them where None: 0 is what block 0 is given.

    Raises:
        InputError: the model has no such depth, or none is asked for.
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
    """States by depth, (row, position, d), of the last pass run inside the block.

    Args:
        model: The model, run by the caller.
        depths: As ``check_depths`` gives them.
        stop: End the pass after the deepest one, and with it the ``with`` block.

    Yields:
        The depth in digits to the states that the model itself goes on with.
    """
    blocks = find_blocks(model)
    places = [
        Place(str(depth), blocks[max(depth - 1, 0)], "out" if depth else "in")
        for depth in sorted(set(depths))
    ]
    with record_places(places, stop=stop) as seen:
        yield seen


def last_token_states(model: nn.Module, batch: Padded, depths: Sequence[int]) -> Tensor:
    """States at each row's last real token, (depth, row, d); the pass ends early."""
    with record_depths(model, depths, stop=True) as seen:
        model(**batch.model_inputs, use_cache=False)
    return states_at(seen, depths, batch.attention_mask.sum(1) - 1)


def states_at(seen: dict[str, Tensor], depths: Sequence[int], ends: Tensor) -> Tensor:
    """(depth, row, d) states at one position a row, out of those watched."""
    rows = torch.arange(len(ends), device=ends.device)
    return torch.stack([seen[str(depth)][rows, ends].float() for depth in depths])


def module_output(model: nn.Module, module: nn.Module, batch: Padded) -> Tensor:
    """Output of ``module``, (row, position, width); the pass stops there.

    Raises:
        InputError: the module takes no part in the pass.
    """
    name = type(module).__name__
    with record_places([Place(name, module, "out")], stop=True) as seen:
        model(**batch.model_inputs, use_cache=False)
    return seen[name]


def prompts_only(rows: Sequences) -> Sequences:
    """The rows cut before their answers; rows without an answer are whole."""
    ids = tuple(
        row[:start] for row, start in zip(rows.ids, rows.answer_start, strict=True)
    )
    return Sequences(ids, tuple(map(len, ids)))
