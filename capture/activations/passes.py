"""Forward passes over batches of rows that yield values at selected positions."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from capture.activations.positions import PositionSelection
from capture.activations.prefix_cache import (
    PrefixGroups,
    allclose,
    group_by_prefix,
    prefix_batches,
    run_with_prefix_cache,
    supports_prefix_cache,
)
from capture.data.sequences import Padded, Sequences, pad, running
from capture.network.discovery.position_limit import explain_length_error
from capture.network.edits.row_order import keeps_rows, model_batches
from capture.network.hook_names import own_name
from capture.network.hooks import record
from capture.network.sites import Sites
from capture.network.structure import model_device

# Beyond this many positions per pass and thread, a CPU is no faster and needs more memory.
CPU_TOKENS_PER_THREAD = 1024

Value = TypeVar("Value")
Passes = Iterator[tuple[np.ndarray, dict[str, Tensor]]]


@dataclass(frozen=True)
class CaptureTarget:
    """A model, its sites, and the names of the sites to capture."""

    model: nn.Module
    known_sites: Sites
    names: tuple[str, ...]

    @property
    def has_patterns(self) -> bool:
        """Whether an attention pattern is among the sites."""
        return any(own_name(name).startswith("pattern.") for name in self.names)

    def run(self, select: Callable[[str, Tensor], Tensor], inputs: Any) -> dict[str, Tensor]:
        """One pass that stops early; logits are computed from the selected inputs of the head."""
        model, sites = self.model, self.known_sites
        needed = ["final" if name == "logits" else name for name in self.names]
        with record(model, needed, select, stop=True, known_sites=sites) as values:
            model(**inputs) if isinstance(inputs, dict) else model(inputs)
        if "logits" in self.names and sites.head is not None:
            values["logits"] = sites.places["logits"].read(sites.head(values["final"]))
        return {name: values[name] for name in self.names}


def capture_passes(
    target: CaptureTarget,
    sequences: Sequences,
    selection: PositionSelection,
    batch_tokens: int,
    padding: str,
) -> Passes:
    """Yield rows and their values by pass; shared prefixes are run once if supported."""
    # Attention patterns are those of whole rows.
    plain = padding == "left" or keeps_rows(target.model) or target.has_patterns
    if not plain and supports_prefix_cache(target.model):
        groups = group_by_prefix(sequences, selection)
        if groups and _sharing_agrees(target, sequences, selection, groups):
            return _shared_passes(target, sequences, selection, groups, batch_tokens)
    return _plain_passes(target, sequences, selection, batch_tokens, padding)


def _plain_passes(
    target: CaptureTarget,
    sequences: Sequences,
    selection: PositionSelection,
    batch_tokens: int,
    padding: str = "right",
) -> Passes:
    model = target.model
    cpu_tokens = CPU_TOKENS_PER_THREAD * torch.get_num_threads()
    for batch in model_batches(model, sequences, batch_tokens, cpu_tokens=cpu_tokens):
        batch = _left_padded(batch) if padding == "left" else batch
        inputs = accepted_inputs(model, batch.model_inputs | {"use_cache": False})
        select = _position_selector(batch, selection, max(map(len, sequences.ids)))
        try:
            with running(batch, sequences):
                values = target.run(select, inputs)
        except IndexError as error:
            raise explain_length_error(model, batch) from error
        yield batch.rows.numpy(), values


def _shared_passes(
    target: CaptureTarget,
    sequences: Sequences,
    selection: PositionSelection,
    groups: PrefixGroups,
    batch_tokens: int,
) -> Passes:
    model = target.model
    device = model_device(model)
    for shared in prefix_batches(
        sequences, selection, groups, batch_tokens=batch_tokens, device=device
    ):
        try:
            for batch, values in run_with_prefix_cache(model, shared, target.run):
                yield batch.rows.numpy(), values
        except IndexError as error:
            raise explain_length_error(model, pad(sequences)) from error


def _sharing_agrees(
    target: CaptureTarget, sequences: Sequences, selection: PositionSelection, groups: PrefixGroups
) -> bool:
    """Whether two rows give equal values both ways, which fails for non-causal models."""
    length, rows = max(groups, key=lambda group: len(group[1]))
    # The longest and the shortest row, so that padding is tested too.
    rows = sorted(rows, key=lambda row: len(sequences.ids[row]))
    rows = [rows[0], rows[-1]]
    pair_selection = selection.rows(rows)
    pair = sequences[rows]
    tokens = 2 * max(map(len, pair.ids))
    results = []
    for passes in (
        _plain_passes(target, pair, pair_selection, tokens),
        _shared_passes(target, pair, pair_selection, [(length, [0, 1])], tokens),
    ):
        arrays: dict[str, np.ndarray] = {}
        for rows_done, values in passes:
            store_batch(arrays, values, rows_done, len(rows), pair_selection)
        results.append(arrays)
    return allclose(*results)


def accepted_inputs(model: nn.Module, inputs: Mapping[str, Value]) -> dict[str, Value]:
    """The ``inputs`` that the model's ``forward`` accepts."""
    known = inspect.signature(model.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return dict(inputs)
    return {name: value for name, value in inputs.items() if name in known}


def _position_selector(
    batch: Padded, selection: PositionSelection, longest: int
) -> Callable[[str, Tensor], Tensor]:
    """Function that selects positions of a (row, position, d) value.

    Of an attention pattern, (row, head, query, key), it selects queries: (row, query, head, key)
    with ``longest`` keys, which are 0 behind the end of a row.
    """
    mask = batch.attention_mask
    offset = mask.argmax(1)  # (row,), padding before the row

    def by_query(pattern: Tensor) -> Tensor:
        keys = torch.arange(longest, device=mask.device)
        source = (keys + offset[:, None]).clamp(max=pattern.shape[-1] - 1)
        inside = keys < mask.sum(1, keepdim=True)
        moved = pattern.gather(-1, source[:, None, None].expand(*pattern.shape[:-1], -1))
        return (moved * inside[:, None, None]).transpose(1, 2)

    if selection.index is None:
        weights = mask / mask.sum(1, keepdim=True)

        def mean(site: str, value: Tensor) -> Tensor:
            if value.dim() == 2:
                return value
            value = by_query(value) if value.dim() == 4 else value
            return torch.einsum("rp...,rp->r...", value, weights.to(value.dtype))

        return mean
    index = torch.as_tensor(selection.index)[batch.rows].to(mask.device)
    index = index + offset[:, None]
    rows = torch.arange(len(index), device=mask.device)[:, None]

    def gather(site: str, value: Tensor) -> Tensor:
        value = by_query(value) if value.dim() == 4 else value
        # Sequence classifiers have outputs without positions.
        return value if value.dim() == 2 else value[rows, index]

    return gather


def _left_padded(batch: Padded) -> Padded:
    """The same batch, left-padded."""
    length = batch.attention_mask.shape[1]
    shift = length - batch.attention_mask.sum(1, keepdim=True)
    positions = torch.arange(length, device=shift.device)
    source = (positions - shift) % length
    return Padded(
        batch.input_ids.gather(1, source),
        batch.attention_mask.gather(1, source),
        batch.answer_mask.gather(1, source),
        batch.rows,
    )


def store_batch(
    arrays: dict[str, np.ndarray],
    values: Mapping[str, Tensor],
    rows: np.ndarray,
    total: int,
    selection: PositionSelection | None,
) -> None:
    """Write a batch's values to its rows of ``arrays``, which are allocated on first use."""
    for name, tensor in values.items():
        value = tensor.detach().float().cpu().numpy()
        if selection is not None and selection.index is not None and value.ndim > 2:
            if selection.mask is not None:
                value[~selection.mask[rows]] = 0.0
            if selection.squeeze:
                value = value[:, 0]
        if name not in arrays:
            arrays[name] = np.empty((total, *value.shape[1:]), dtype=np.float32)
        arrays[name][rows] = value
