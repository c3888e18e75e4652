"""Hidden states at several depths of a live model, with their gradients."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from capture.data.sequences import Padded, Sequences
from capture.network.structure import find_blocks, first_tensor
from evidence.errors import InputError


class _Enough(Exception):
    """Ends a forward pass once the deepest states are there."""


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
) -> Iterator[dict[int, Tensor]]:
    """States by depth, (row, position, d), of the last pass run inside the block.

    Args:
        model: The model, run by the caller.
        depths: As ``check_depths`` gives them.
        stop: End each pass after the deepest one; the caller then sees no output.
    """
    blocks = find_blocks(model)
    seen: dict[int, Tensor] = {}
    deepest = max(depths)

    def enter(_module: nn.Module, inputs: tuple, named: dict) -> None:
        found = inputs[0] if inputs else named["hidden_states"]
        seen[0] = found
        if stop and deepest == 0:
            raise _Enough

    def leave(depth: int):
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            seen[depth] = first_tensor(output)
            if stop and depth == deepest:
                raise _Enough

        return keep

    handles = []
    try:
        if 0 in depths:
            handles.append(blocks[0].register_forward_pre_hook(enter, with_kwargs=True))
        for depth in sorted(set(depths) - {0}):
            handles.append(blocks[depth - 1].register_forward_hook(leave(depth)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def last_token_states(model: nn.Module, batch: Padded, depths: Sequence[int]) -> Tensor:
    """States at each row's last real token, (depth, row, d); the pass ends early."""
    with record_depths(model, depths, stop=True) as seen:
        try:
            model(**batch.model_inputs, use_cache=False)
        except _Enough:
            pass
    return states_at(seen, depths, batch.attention_mask.sum(1) - 1)


def states_at(seen: dict[int, Tensor], depths: Sequence[int], ends: Tensor) -> Tensor:
    """(depth, row, d) states at one position a row, out of those watched."""
    rows = torch.arange(len(ends), device=ends.device)
    return torch.stack([seen[depth][rows, ends].float() for depth in depths])


def prompts_only(rows: Sequences) -> Sequences:
    """The rows cut before their answers; rows without an answer are whole."""
    ids = tuple(
        row[:start] for row, start in zip(rows.ids, rows.answer_start, strict=True)
    )
    return Sequences(ids, tuple(map(len, ids)))
