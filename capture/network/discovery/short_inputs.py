"""Generated short inputs for an unknown network."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from capture.network.discovery.device import model_device
from capture.network.discovery.position_limit import position_limit
from evidence.errors import InputError
from evidence.seeds import torch_rng

Inputs = Mapping[str, Any] | Tensor

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
N_TOKENS = 4
# Image sizes to try if the configuration states none.
IMAGE_SIZES = (8, 28, 32, 64, 224)


def short_inputs(model: nn.Module, rows: int) -> Iterator[Inputs]:
    """Candidate inputs, in order, with all rows equal except the last.

    Args:
        model: A network of tokens, images or vectors.
    """
    parameters = inspect.signature(model.forward).parameters
    first = next(model.parameters(), torch.zeros(1))
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    if "input_ids" in parameters or (tables and "pixel_values" not in parameters):
        ask = getattr(model, "get_input_embeddings", lambda: None)
        try:
            table = ask() if callable(ask) else None
        except NotImplementedError:  # a model of two towers, such as CLIP
            table = None
        device = getattr(table, "weight", first).device
        if device.type == "meta":  # offloaded, and brought back for each call
            device = model_device(model)
        size = getattr(table, "num_embeddings", None)
        if not isinstance(size, int):
            size = max((embedding.num_embeddings for embedding in tables), default=8)
        length = min(N_TOKENS, position_limit(model) or N_TOKENS)
        # The length differs from the number of rows, so that the axes cannot be confused.
        ids = _tokens(rows, length - (length == rows > 1), size).to(device)
        if "input_ids" not in parameters:
            yield ids
            return
        optional = {"attention_mask": torch.ones_like(ids), "use_cache": False}
        free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        yield {"input_ids": ids} | {
            name: value for name, value in optional.items() if free or name in parameters
        }
        return
    for shape in _shapes(model):
        rng = torch_rng(0, "short inputs")
        place = model_device(model) if first.is_meta else first.device
        two = torch.randn(2, *shape, generator=rng).to(place, first.dtype)
        yield as_rows(two, rows)


def as_rows(example: Any, rows: int) -> Any:
    """The first row of an example, repeated ``rows - 1`` times, and its second row.

    Args:
        example: (row, ...) tensor with two or more rows, or a mapping of such tensors.
        rows: Number of rows of the result.

    Raises:
        InputError: the example has fewer than two rows.
    """
    if isinstance(example, Mapping):
        return {
            name: as_rows(value, rows) if isinstance(value, Tensor | Mapping) else value
            for name, value in example.items()
        }
    if not isinstance(example, Tensor) or example.dim() < 1 or len(example) < 2:
        raise InputError(
            "the example input has fewer than two rows",
            expected="a tensor (row, ...) or a dict of tensors, with two different rows",
            got=str(tuple(example.shape))
            if isinstance(example, Tensor)
            else type(example).__name__,
        )
    first = example[:1].expand(rows - 1, *example.shape[1:])
    return torch.cat([first, example[1:2]])


def _tokens(rows: int, length: int, size: int) -> Tensor:
    """Ids that differ at every position, away from both ends, where special tokens are."""
    positions = torch.arange(length)
    two = torch.stack([size // 2 + positions, size // 4 + positions]) % size
    return as_rows(two, rows)


def _shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Candidate shapes of one row, from the first layer of each type."""
    config = getattr(model, "config", None)
    layers = [m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
    for layer in {type(image_size): image_size for image_size in reversed(layers)}.values():
        if isinstance(layer, nn.Linear):
            yield (layer.in_features,)
            yield (N_TOKENS, layer.in_features)
            continue
        channels = getattr(config, "num_channels", None) or layer.in_channels
        size = getattr(config, "image_size", None)
        axes = len(layer.kernel_size)
        for image_size in IMAGE_SIZES if size is None else (size,):
            sides = image_size if isinstance(image_size, list | tuple) else [image_size] * axes
            yield (channels, *sides)
