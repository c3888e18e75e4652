"""Passes of a model over batches of rows, keeping values at wanted positions."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capture.activations.positions import PositionSelection
from capture.activations.prefix_cache import (
    allclose,
    group_by_prefix,
    prefix_batches,
    run_with_prefix_cache,
    supports_prefix_cache,
)
from capture.data.sequences import Padded, Sequences, batches, pad
from capture.network.discovery.position_limit import explain_length_error
from capture.network.hooks import record
from capture.network.sites import Sites
from capture.network.structure import model_device

# Positions a pass and thread beyond which a CPU gains nothing but memory to hold.
CPU_TOKENS_PER_THREAD = 1024

Passes = Iterator[tuple[np.ndarray, dict[str, Tensor]]]


@dataclass(frozen=True)
class CaptureTarget:
    """What is read: the model, its sites, and the names of those wanted."""

    model: nn.Module
    known_sites: Sites
    names: tuple[str, ...]

    def run(
        self, select: Callable[[str, Tensor], Tensor], inputs: Any
    ) -> dict[str, Tensor]:
        """One pass that stops early; logits come from their layer's kept inputs."""
        model, where, names = self.model, self.known_sites, self.names
        needed = ["final" if name == "logits" else name for name in names]
        with record(model, needed, select, stop=True, known_sites=where) as got:
            model(**inputs) if isinstance(inputs, dict) else model(inputs)
        if "logits" in names and where.head is not None:
            got["logits"] = where.head(got["final"])
        return {name: got[name] for name in names}


def capture_passes(
    target: CaptureTarget,
    sequences: Sequences,
    selection: PositionSelection,
    batch_tokens: int,
    padding: str,
) -> Passes:
    """Rows and their values, pass by pass; what rows share is run once if it can be."""
    if padding == "right" and supports_prefix_cache(target.model):
        groups = group_by_prefix(sequences, selection)
        if groups and _sharing_holds(target, sequences, selection, groups):
            return _shared_passes(target, sequences, selection, groups, batch_tokens)
    return _plain_passes(target, sequences, selection, batch_tokens, padding)


def _plain_passes(
    target: CaptureTarget,
    sequences: Sequences,
    wanted: PositionSelection,
    tokens: int,
    padding: str = "right",
) -> Passes:
    model = target.model
    device = model_device(model)
    if device.type == "cpu":
        tokens = min(tokens, CPU_TOKENS_PER_THREAD * torch.get_num_threads())
    for batch in batches(sequences, batch_tokens=tokens, device=device):
        batch = _left(batch) if padding == "left" else batch
        inputs = accepted_inputs(model, batch.model_inputs | {"use_cache": False})
        try:
            yield batch.rows.numpy(), target.run(_picker(batch, wanted), inputs)
        except IndexError as error:
            raise explain_length_error(model, batch) from error


def _shared_passes(
    target: CaptureTarget,
    sequences: Sequences,
    wanted: PositionSelection,
    groups: list[tuple[int, list[int]]],
    tokens: int,
) -> Passes:
    model = target.model
    device = model_device(model)
    for each in prefix_batches(
        sequences, wanted, groups, batch_tokens=tokens, device=device
    ):
        try:
            for rest, got in run_with_prefix_cache(model, each, target.run):
                yield rest.rows.numpy(), got
        except IndexError as error:
            raise explain_length_error(model, pad(sequences)) from error


def _sharing_holds(
    target: CaptureTarget,
    sequences: Sequences,
    wanted: PositionSelection,
    groups: list[tuple[int, list[int]]],
) -> bool:
    """Whether two rows give the same either way: not so where later tokens count."""
    length, rows = max(groups, key=lambda group: len(group[1]))
    # The longest and the shortest, so that padding is tried as well.
    rows = sorted(rows, key=lambda row: len(sequences.ids[row]))
    rows = [rows[0], rows[-1]]
    few = wanted.rows(rows)
    pair = sequences[rows]
    tokens = 2 * max(map(len, pair.ids))
    ways = []
    for way in (
        _plain_passes(target, pair, few, tokens),
        _shared_passes(target, pair, few, [(length, [0, 1])], tokens),
    ):
        arrays: dict[str, np.ndarray] = {}
        for here, got in way:
            store_batch(arrays, got, here, len(rows), few)
        ways.append(arrays)
    return allclose(*ways)


def accepted_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``inputs`` that the model's ``forward`` takes."""
    known = inspect.signature(model.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return dict(inputs)
    return {name: value for name, value in inputs.items() if name in known}


def _picker(
    batch: Padded, wanted: PositionSelection
) -> Callable[[str, Tensor], Tensor]:
    """What keeps the wanted positions of a (row, position, d) value."""
    mask = batch.attention_mask
    if wanted.index is None:
        weights = mask / mask.sum(1, keepdim=True)

        def mean(site: str, value: Tensor) -> Tensor:
            if value.dim() == 2:
                return value
            return torch.einsum("rpd,rp->rd", value, weights.to(value.dtype))

        return mean
    offset = mask.argmax(1)  # (row,), padding before the row
    index = torch.as_tensor(wanted.index)[batch.rows].to(mask.device)
    index = index + offset[:, None]
    rows = torch.arange(len(index), device=mask.device)[:, None]

    def gather(site: str, value: Tensor) -> Tensor:
        # Some heads score a whole row and have no positions.
        return value if value.dim() == 2 else value[rows, index]

    return gather


def _left(batch: Padded) -> Padded:
    """The same batch with its padding in front."""
    length = batch.attention_mask.shape[1]
    shift = length - batch.attention_mask.sum(1, keepdim=True)
    places = torch.arange(length, device=shift.device)
    source = (places - shift) % length
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
    """Put a batch's values where its rows belong; arrays are made on first use."""
    for name, tensor in values.items():
        value = tensor.detach().float().cpu().numpy()
        if selection is not None and value.ndim == 3:
            if selection.mask is not None:
                value[~selection.mask[rows]] = 0.0
            if selection.squeeze:
                value = value[:, 0]
        if name not in arrays:
            arrays[name] = np.empty((total, *value.shape[1:]), dtype=np.float32)
        arrays[name][rows] = value
