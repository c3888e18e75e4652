"""Rows that begin alike: run what they share once, and only the rest row by row.

Statements made from one prompt and many answers repeat the prompt in every row. A
causal model's values at the answer need the keys and values of the prompt, which the
prompt alone gives.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from capture.activations.positions import Wanted
from capture.data.sequences import Padded, Sequences, pad

# Sharing must save at least this share of the tokens, or it is not worth a second pass.
WORTH = 0.25
# Rounding moves a value by far less than this share of the largest one at its site.
AGREE = 1e-3


@dataclass(frozen=True)
class Tails:
    """What is left of some rows after their shared beginning.

    Attributes:
        rest: The tokens left; ``rest.rows`` are rows of the sequences.
        owner: (row,) which beginning each row goes on from.
        wanted: (row, position) positions asked for, counted inside ``rest``.
    """

    rest: Padded
    owner: Tensor
    wanted: Tensor

    def inputs(self, heads: Padded, cache: object) -> dict[str, object]:
        """Keyword arguments for the pass over ``rest``, after that over ``heads``."""
        seen = heads.attention_mask[self.owner]
        mask = torch.cat([seen, self.rest.attention_mask], dim=1)
        places = torch.arange(self.rest.input_ids.shape[1], device=mask.device)
        return {
            "input_ids": self.rest.input_ids,
            "attention_mask": mask,
            "position_ids": seen.sum(1, keepdim=True) + places,
            "past_key_values": cache,
            "use_cache": True,
        }


@dataclass(frozen=True)
class Shared:
    """Beginnings (group,), and the rows that go on from them, by length."""

    heads: Padded
    tails: tuple[Tails, ...]


def can_share(model: nn.Module) -> bool:
    """Whether the model takes keys and values of an earlier pass, as far as it says."""
    config = getattr(model, "config", None)
    can_generate = getattr(model, "can_generate", None)
    return (
        {"past_key_values", "position_ids", "use_cache"}
        <= set(inspect.signature(model.forward).parameters)
        and callable(can_generate)
        and bool(can_generate())
        and not getattr(config, "is_encoder_decoder", False)
    )


def plan(sequences: Sequences, wanted: Wanted) -> list[tuple[int, list[int]]] | None:
    """Groups of rows as (length of what they share, rows), or None where unworthy.

    What is shared ends before the first position asked for, and leaves at least one
    token of each row.
    """
    if wanted.index is None:
        return None
    ids = sequences.ids
    # Neighbours in sorted order share the most.
    order = sorted(range(len(ids)), key=lambda row: ids[row])
    most = [
        min(int(first), len(tokens) - 1)
        for first, tokens in zip(_first(wanted), ids, strict=True)
    ]
    groups: list[tuple[int, list[int]]] = []
    for row in order:
        if groups:
            length, rows = groups[-1]
            both = min(length, most[row], _alike(ids[rows[0]], ids[row]))
            if both >= 1 and 2 * both >= min(length, most[row]):
                groups[-1] = both, [*rows, row]
                continue
        groups.append((most[row], [row]))
    if any(length < 1 for length, _ in groups):
        return None
    total = sum(map(len, ids))
    left = sum(
        length + sum(len(ids[row]) - length for row in rows) for length, rows in groups
    )
    return groups if left <= (1 - WORTH) * total else None


def _first(wanted: Wanted) -> np.ndarray:
    """(row,) first position asked for."""
    assert wanted.index is not None
    if wanted.mask is None:
        return wanted.index.min(1)
    return np.where(wanted.mask, wanted.index, wanted.index.max()).min(1)


def _alike(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many tokens two rows have in common from the start."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))


def shared_batches(
    sequences: Sequences,
    wanted: Wanted,
    groups: list[tuple[int, list[int]]],
    *,
    tokens: int,
    device: torch.device,
) -> Iterator[Shared]:
    """Batches of whole groups, at most ``tokens`` positions each with those cached.

    A group too large for that is cut.
    """
    pieces = []
    for length, rows in groups:
        longest = max(len(sequences.ids[row]) for row in rows)
        most = max(1, tokens // longest)
        pieces += [
            (length, rows[start : start + most]) for start in range(0, len(rows), most)
        ]
    pieces.sort(key=lambda piece: -piece[0])
    chosen: list[tuple[int, list[int]]] = []
    for piece in pieces:
        if chosen and _positions(sequences, [*chosen, piece]) > tokens:
            yield _shared(sequences, wanted, chosen, device)
            chosen = []
        chosen.append(piece)
    if chosen:
        yield _shared(sequences, wanted, chosen, device)


def _positions(sequences: Sequences, pieces: list[tuple[int, list[int]]]) -> int:
    longest = max(
        len(sequences.ids[row]) - length for length, rows in pieces for row in rows
    )
    return (pieces[0][0] + longest) * sum(len(rows) for _, rows in pieces)


def _shared(
    sequences: Sequences,
    wanted: Wanted,
    pieces: list[tuple[int, list[int]]],
    device: torch.device,
) -> Shared:
    heads = Sequences(
        tuple(sequences.ids[rows[0]][:length] for length, rows in pieces),
        tuple(length for length, _ in pieces),
    )
    by_size: dict[int, list[tuple[int, int]]] = {}
    for owner, (length, rows) in enumerate(pieces):
        for row in rows:
            left = len(sequences.ids[row]) - length
            # Up to powers of two: few passes, and no row padded to twice its length.
            by_size.setdefault((left - 1).bit_length(), []).append((owner, row))
    starts = [length for length, _ in pieces]
    tails = (
        _tails(sequences, wanted, members, starts, device)
        for members in by_size.values()
    )
    return Shared(pad(heads, device=device), tuple(tails))


def _tails(
    sequences: Sequences,
    wanted: Wanted,
    members: list[tuple[int, int]],
    starts: list[int],
    device: torch.device,
) -> Tails:
    assert wanted.index is not None
    rows = [row for _, row in members]
    cut = [sequences.ids[row][starts[owner] :] for owner, row in members]
    rest = pad(Sequences(tuple(cut), tuple(map(len, cut))), device=device)
    begin = np.array([starts[owner] for owner, _ in members])
    # Places without a value point at 0; what is read there is thrown away.
    index = np.maximum(wanted.index[rows] - begin[:, None], 0)
    return Tails(
        replace(rest, rows=torch.tensor(rows)),
        torch.tensor([owner for owner, _ in members], device=device),
        torch.as_tensor(index, device=device),
    )


def run_shared(
    model: nn.Module,
    shared: Shared,
    run: Callable[[Callable[[str, Tensor], Tensor], dict], dict[str, Tensor]],
) -> Iterator[tuple[Padded, dict[str, Tensor]]]:
    """Rows with their values at the wanted positions.

    Args:
        model: The model.
        shared: The rows.
        run: Makes one pass with the given picker and inputs, and returns what the
            picker kept, by site.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=getattr(model, "config", None))
    inputs = shared.heads.model_inputs | {"past_key_values": cache, "use_cache": True}
    run(lambda site, value: value[:, :0], inputs)
    for tails in shared.tails:
        mine = copy.deepcopy(cache)
        mine.batch_select_indices(tails.owner)
        rows = torch.arange(len(tails.owner), device=tails.owner.device)[:, None]
        places = tails.wanted
        yield (
            tails.rest,
            run(
                lambda site, value, rows=rows, places=places: value[rows, places],
                tails.inputs(shared.heads, mine),
            ),
        )


def agree(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    """Whether two ways of computing the same values gave the same up to rounding."""
    return all(
        values.shape == others[name].shape
        and bool(
            (np.abs(values - others[name]) <= AGREE * np.abs(others[name]).max()).all()
        )
        for name, values in some.items()
    )
