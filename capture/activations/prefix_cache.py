"""Prefix caching: run a prefix shared by several rows once, and reuse its keys and values.

Statements made from one prompt and many answers repeat the prompt in every row.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capture.activations.positions import PositionSelection
from capture.data.sequences import Padded, Sequences, pad

# Minimum share of tokens saved; less does not pay for a second pass.
MIN_SAVING = 0.25
# Relative to the largest value at the site; rounding errors are far smaller.
RELATIVE_TOL = 1e-3


PrefixGroups = list[tuple[int, list[int]]]
"""Pairs of prefix length and the rows that share the prefix."""


@dataclass(frozen=True)
class Suffixes:
    """Suffixes of some rows after their shared prefix.

    Attributes:
        batch: The suffix tokens; ``batch.rows`` are rows of the sequences.
        prefix_idx: (row,) index of each row's prefix.
        positions: (row, position) selected positions, relative to the suffix.
    """

    batch: Padded
    prefix_idx: Tensor
    positions: Tensor

    def inputs(self, prefixes: Padded, cache: object) -> dict[str, object]:
        """Keyword arguments for the pass over the suffixes, given the cache of ``prefixes``."""
        prefix_mask = prefixes.attention_mask[self.prefix_idx]
        mask = torch.cat([prefix_mask, self.batch.attention_mask], dim=1)
        positions = torch.arange(self.batch.input_ids.shape[1], device=mask.device)
        return {
            "input_ids": self.batch.input_ids,
            "attention_mask": mask,
            "position_ids": prefix_mask.sum(1, keepdim=True) + positions,
            "past_key_values": cache,
            "use_cache": True,
        }


@dataclass(frozen=True)
class SharedPrefixes:
    """Prefixes (group,), and their suffixes grouped by length."""

    prefixes: Padded
    suffixes: tuple[Suffixes, ...]


def supports_prefix_cache(model: nn.Module) -> bool:
    """Whether the model's signature accepts the keys and values of an earlier pass.

    A recurrent state, as of state-space layers, is no such cache: it also holds what padding
    behind a shorter prefix left in it.
    """
    config = getattr(model, "config", None)
    can_generate = getattr(model, "can_generate", None)
    return (
        {"past_key_values", "position_ids", "use_cache"}
        <= set(inspect.signature(model.forward).parameters)
        and callable(can_generate)
        and bool(can_generate())
        and not getattr(config, "is_encoder_decoder", False)
        and not getattr(model, "_is_stateful", False)
        and not _has_recurrent_layers(config)
    )


def _has_recurrent_layers(config: Any) -> bool:
    from transformers import DynamicCache
    from transformers.cache_utils import LinearAttentionCacheLayerMixin

    layers = DynamicCache(config=config).layers
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def group_by_prefix(sequences: Sequences, selection: PositionSelection) -> PrefixGroups | None:
    """Groups of rows that share a prefix, or None if too few tokens would be saved.

    A prefix ends before the first selected position and leaves at least one token per row.
    """
    if selection.index is None:
        return None
    ids = sequences.ids
    # Neighbors in sorted order share the longest prefixes.
    order = sorted(range(len(ids)), key=lambda row: ids[row])
    max_shared = [
        min(int(first), len(tokens) - 1)
        for first, tokens in zip(_first_position(selection), ids, strict=True)
    ]
    groups: PrefixGroups = []
    for row in order:
        if groups:
            length, rows = groups[-1]
            shared_length = min(
                length, max_shared[row], _common_prefix_length(ids[rows[0]], ids[row])
            )
            if shared_length >= 1 and 2 * shared_length >= min(length, max_shared[row]):
                groups[-1] = shared_length, [*rows, row]
                continue
        groups.append((max_shared[row], [row]))
    if any(length < 1 for length, _ in groups):
        return None
    total = sum(map(len, ids))
    n_remaining = sum(
        length + sum(len(ids[row]) - length for row in rows) for length, rows in groups
    )
    return groups if n_remaining <= (1 - MIN_SAVING) * total else None


def _first_position(selection: PositionSelection) -> np.ndarray:
    """(row,) first selected position."""
    assert selection.index is not None
    if selection.mask is None:
        return selection.index.min(1)
    return np.where(selection.mask, selection.index, selection.index.max()).min(1)


def _common_prefix_length(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the common prefix of two rows."""
    for position, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return position
    return min(len(a), len(b))


def prefix_batches(
    sequences: Sequences,
    selection: PositionSelection,
    groups: PrefixGroups,
    *,
    batch_tokens: int,
    device: torch.device,
) -> Iterator[SharedPrefixes]:
    """Batches of groups with at most ``batch_tokens`` positions, cached ones included.

    Larger groups are split.
    """
    parts: PrefixGroups = []
    for length, rows in groups:
        longest = max(len(sequences.ids[row]) for row in rows)
        max_rows = max(1, batch_tokens // longest)
        parts += [
            (length, rows[start : start + max_rows]) for start in range(0, len(rows), max_rows)
        ]
    parts.sort(key=lambda part: -part[0])
    batch: PrefixGroups = []
    for part in parts:
        if batch and _n_positions(sequences, [*batch, part]) > batch_tokens:
            yield _shared_prefixes(sequences, selection, batch, device)
            batch = []
        batch.append(part)
    if batch:
        yield _shared_prefixes(sequences, selection, batch, device)


def _n_positions(sequences: Sequences, groups: PrefixGroups) -> int:
    """Padded positions of a batch of groups in descending order of prefix length."""
    longest = max(len(sequences.ids[row]) - length for length, rows in groups for row in rows)
    return (groups[0][0] + longest) * sum(len(rows) for _, rows in groups)


def _shared_prefixes(
    sequences: Sequences, selection: PositionSelection, groups: PrefixGroups, device: torch.device
) -> SharedPrefixes:
    lengths = [length for length, _ in groups]
    prefix_ids = (sequences.ids[rows[0]][:length] for length, rows in groups)
    prefixes = pad(Sequences(tuple(prefix_ids), tuple(lengths)), device=device)
    by_size: dict[int, list[tuple[int, int]]] = {}
    for prefix, (length, rows) in enumerate(groups):
        for row in rows:
            n_suffix = len(sequences.ids[row]) - length
            # Grouped by powers of two: few passes, and padding at most doubles a row.
            by_size.setdefault((n_suffix - 1).bit_length(), []).append((prefix, row))
    suffixes = (
        _suffixes(sequences, selection, members, lengths, device) for members in by_size.values()
    )
    return SharedPrefixes(prefixes, tuple(suffixes))


def _suffixes(
    sequences: Sequences,
    selection: PositionSelection,
    members: list[tuple[int, int]],
    lengths: list[int],
    device: torch.device,
) -> Suffixes:
    """Suffixes of ``members``, pairs of prefix and row."""
    assert selection.index is not None
    prefix_idx, rows = map(list, zip(*members, strict=True))
    ids = tuple(sequences.ids[row][lengths[prefix] :] for prefix, row in members)
    batch = pad(Sequences(ids, tuple(map(len, ids))), device=device)
    offsets = np.array([lengths[prefix] for prefix in prefix_idx])
    # Masked positions have index 0; their values are discarded.
    positions = np.maximum(selection.index[rows] - offsets[:, None], 0)
    return Suffixes(
        replace(batch, rows=torch.tensor(rows)),
        torch.tensor(prefix_idx, device=device),
        torch.as_tensor(positions, device=device),
    )


def run_with_prefix_cache(
    model: nn.Module,
    shared: SharedPrefixes,
    run: Callable[[Callable[[str, Tensor], Tensor], dict], dict[str, Tensor]],
) -> Iterator[tuple[Padded, dict[str, Tensor]]]:
    """Yield suffix batches with their values at the selected positions.

    Args:
        run: Runs one pass with a selecting function and inputs; returns the selected values by
            site.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=getattr(model, "config", None))
    inputs = shared.prefixes.model_inputs | {"past_key_values": cache, "use_cache": True}
    run(lambda site, value: value[:, :0], inputs)
    for suffixes in shared.suffixes:
        suffix_cache = copy.deepcopy(cache)
        suffix_cache.batch_select_indices(suffixes.prefix_idx)
        rows = torch.arange(len(suffixes.prefix_idx), device=suffixes.positions.device)
        index = rows[:, None], suffixes.positions
        inputs = suffixes.inputs(shared.prefixes, suffix_cache)
        yield suffixes.batch, run(lambda site, value, index=index: value[index], inputs)


def allclose(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    """Whether two results agree up to rounding."""

    def agrees(a: np.ndarray, b: np.ndarray) -> bool:
        if a.shape != b.shape:
            return False
        return bool((np.abs(a - b) <= RELATIVE_TOL * np.abs(b).max()).all())

    return all(agrees(values, second[name]) for name, values in first.items())
