"""Short inputs of a few rows for a network that nothing is known of but its modules."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from capture.network.discovery.position_limit import position_limit
from evidence.errors import InputError
from evidence.seeds import torch_rng

Inputs = Mapping[str, Any] | Tensor

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
N_TOKENS = 4
# Sizes of images tried, where a network does not say its own.
IMAGE_SIZES = (8, 28, 32, 64, 224)


def short_inputs(model: nn.Module, rows: int) -> Iterator[Inputs]:
    """Inputs to try in turn, all rows but the last alike.

    Args:
        model: Any network of tokens, of images or of vectors.
        rows: How many rows.
    """
    named = inspect.signature(model.forward).parameters
    first = next(model.parameters(), torch.zeros(1))
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    if "input_ids" in named or (tables and "pixel_values" not in named):
        ask = getattr(model, "get_input_embeddings", lambda: None)
        table = ask() if callable(ask) else None
        where = getattr(table, "weight", first).device
        size = getattr(table, "num_embeddings", None)
        if not isinstance(size, int):
            size = max((each.num_embeddings for each in tables), default=8)
        length = min(N_TOKENS, position_limit(model) or N_TOKENS)
        # Not as many as rows, so that the one is not taken for the other.
        ids = _tokens(rows, length - (length == rows > 1), size).to(where)
        if "input_ids" not in named:
            yield ids
            return
        others = {"attention_mask": torch.ones_like(ids), "use_cache": False}
        free = any(p.kind is p.VAR_KEYWORD for p in named.values())
        yield {"input_ids": ids} | {
            name: value for name, value in others.items() if free or name in named
        }
        return
    for shape in _shapes(model):
        rng = torch_rng(0, "short inputs")
        two = torch.randn(2, *shape, generator=rng).to(first)
        yield as_rows(two, rows)


def as_rows(example: Any, rows: int) -> Any:
    """Two rows of an example, the first as often as there is room before the second.

    Args:
        example: (row, ...) with two rows or more, or a mapping that holds such.
        rows: How many rows to give.

    Raises:
        InputError: there are fewer than two rows.
    """
    if isinstance(example, Mapping):
        return {
            name: as_rows(value, rows) if isinstance(value, Tensor | Mapping) else value
            for name, value in example.items()
        }
    if not isinstance(example, Tensor) or example.dim() < 1 or len(example) < 2:
        raise InputError(
            "the example input has no two rows",
            expected="a tensor (row, ...) or named ones, of two different rows",
            got=str(tuple(example.shape))
            if isinstance(example, Tensor)
            else type(example).__name__,
        )
    first = example[:1].expand(rows - 1, *example.shape[1:])
    return torch.cat([first, example[1:2]])


def _tokens(rows: int, length: int, size: int) -> Tensor:
    """Ids that differ at every position; the least and the last are often special."""
    places = torch.arange(length)
    two = torch.stack([size // 2 + places, size // 4 + places]) % size
    return as_rows(two, rows)


def _shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of one row, by the first layers with weights of each kind."""
    config = getattr(model, "config", None)
    layers = [m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
    for layer in {type(each): each for each in reversed(layers)}.values():
        if isinstance(layer, nn.Linear):
            yield (layer.in_features,)
            yield (N_TOKENS, layer.in_features)
            continue
        channels = getattr(config, "num_channels", None) or layer.in_channels
        size = getattr(config, "image_size", None)
        axes = len(layer.kernel_size)
        for each in IMAGE_SIZES if size is None else (size,):
            sides = each if isinstance(each, list | tuple) else [each] * axes
            yield (channels, *sides)
