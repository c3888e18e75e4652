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

from capture.activations.positions import PositionSelection
from capture.data.sequences import Padded, Sequences, pad

# Sharing must save at least this share of the tokens, or it is not worth a second pass.
MIN_SAVING = 0.25
# Rounding moves a value by far less than this share of the largest one at its site.
RELATIVE_TOL = 1e-3


@dataclass(frozen=True)
class Suffixes:
    """What is left of some rows after their shared beginning.

    Attributes:
        batch: The tokens left; ``batch.rows`` are rows of the sequences.
        prefix_idx: (row,) which beginning each row goes on from.
        positions: (row, position) positions asked for, counted inside ``batch``.
    """

    batch: Padded
    prefix_idx: Tensor
    positions: Tensor

    def inputs(self, prefixes: Padded, cache: object) -> dict[str, object]:
        """Keyword arguments for the pass over ``batch``, after that over ``prefixes``."""
        seen = prefixes.attention_mask[self.prefix_idx]
        mask = torch.cat([seen, self.batch.attention_mask], dim=1)
        places = torch.arange(self.batch.input_ids.shape[1], device=mask.device)
        return {
            "input_ids": self.batch.input_ids,
            "attention_mask": mask,
            "position_ids": seen.sum(1, keepdim=True) + places,
            "past_key_values": cache,
            "use_cache": True,
        }


@dataclass(frozen=True)
class SharedPrefixes:
    """Beginnings (group,), and the rows that go on from them, by length."""

    prefixes: Padded
    suffixes: tuple[Suffixes, ...]


def supports_prefix_cache(model: nn.Module) -> bool:
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


def group_by_prefix(
    sequences: Sequences, selection: PositionSelection
) -> list[tuple[int, list[int]]] | None:
    """Groups of rows as (length of what they share, rows), or None where unworthy.

    What is shared ends before the first position asked for, and leaves at least one
    token of each row.
    """
    if selection.index is None:
        return None
    ids = sequences.ids
    # Neighbours in sorted order share the most.
    order = sorted(range(len(ids)), key=lambda row: ids[row])
    most = [
        min(int(first), len(tokens) - 1)
        for first, tokens in zip(_first(selection), ids, strict=True)
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
    return groups if left <= (1 - MIN_SAVING) * total else None


def _first(wanted: PositionSelection) -> np.ndarray:
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


def prefix_batches(
    sequences: Sequences,
    selection: PositionSelection,
    groups: list[tuple[int, list[int]]],
    *,
    batch_tokens: int,
    device: torch.device,
) -> Iterator[SharedPrefixes]:
    """Batches of whole groups, at most ``batch_tokens`` positions each with those cached.

    A group too large for that is cut.
    """
    pieces = []
    for length, rows in groups:
        longest = max(len(sequences.ids[row]) for row in rows)
        most = max(1, batch_tokens // longest)
        pieces += [
            (length, rows[start : start + most]) for start in range(0, len(rows), most)
        ]
    pieces.sort(key=lambda piece: -piece[0])
    chosen: list[tuple[int, list[int]]] = []
    for piece in pieces:
        if chosen and _positions(sequences, [*chosen, piece]) > batch_tokens:
            yield _shared(sequences, selection, chosen, device)
            chosen = []
        chosen.append(piece)
    if chosen:
        yield _shared(sequences, selection, chosen, device)


def _positions(sequences: Sequences, pieces: list[tuple[int, list[int]]]) -> int:
    longest = max(
        len(sequences.ids[row]) - length for length, rows in pieces for row in rows
    )
    return (pieces[0][0] + longest) * sum(len(rows) for _, rows in pieces)


def _shared(
    sequences: Sequences,
    wanted: PositionSelection,
    pieces: list[tuple[int, list[int]]],
    device: torch.device,
) -> SharedPrefixes:
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
    return SharedPrefixes(pad(heads, device=device), tuple(tails))


def _tails(
    sequences: Sequences,
    wanted: PositionSelection,
    members: list[tuple[int, int]],
    starts: list[int],
    device: torch.device,
) -> Suffixes:
    assert wanted.index is not None
    rows = [row for _, row in members]
    cut = [sequences.ids[row][starts[owner] :] for owner, row in members]
    rest = pad(Sequences(tuple(cut), tuple(map(len, cut))), device=device)
    begin = np.array([starts[owner] for owner, _ in members])
    # Places without a value point at 0; what is read there is thrown away.
    index = np.maximum(wanted.index[rows] - begin[:, None], 0)
    return Suffixes(
        replace(rest, rows=torch.tensor(rows)),
        torch.tensor([owner for owner, _ in members], device=device),
        torch.as_tensor(index, device=device),
    )


def run_with_prefix_cache(
    model: nn.Module,
    shared: SharedPrefixes,
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
    inputs = shared.prefixes.model_inputs | {
        "past_key_values": cache,
        "use_cache": True,
    }
    run(lambda site, value: value[:, :0], inputs)
    for tails in shared.suffixes:
        mine = copy.deepcopy(cache)
        mine.batch_select_indices(tails.prefix_idx)
        rows = torch.arange(len(tails.prefix_idx), device=tails.prefix_idx.device)[
            :, None
        ]
        places = tails.positions
        yield (
            tails.batch,
            run(
                lambda site, value, rows=rows, places=places: value[rows, places],
                tails.inputs(shared.prefixes, mine),
            ),
        )


def allclose(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    """Whether two ways of computing the same values gave the same up to rounding."""
    return all(
        values.shape == others[name].shape
        and bool(
            (
                np.abs(values - others[name])
                <= RELATIVE_TOL * np.abs(others[name]).max()
            ).all()
        )
        for name, values in some.items()
    )
