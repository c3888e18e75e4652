"""Which positions of the running call of a model hold real tokens, and which comes first.

A call may be padded on either side, and may continue an earlier one whose keys and values it has.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from capture.data.sequences import RUNNING
from capture.network.structure import find_transformer

_CACHES = ("past_key_values", "past_key_value", "past_kv_cache", "cache_params", "past_states")


@dataclass(frozen=True)
class _Call:
    """The positions of a call.

    Attributes:
        mask: (row, position), nonzero on real tokens, those before the call included; None if all
            are real.
        n_cached: Number of positions before the call; None if unknown.
    """

    mask: Tensor | None = None
    n_cached: int | None = None


PositionsOf = Callable[[Tensor], Tensor]
"""Maps the value at a site, (row, position, d), to the (row, position) mask of its positions."""


@contextmanager
def watch_positions(model: nn.Module, first_position: int) -> Iterator[PositionsOf]:
    """Find the real tokens from ``first_position`` on, in each call of a model inside the block.

    The attention mask and the cache are those of the call. A call of a part of the model has
    neither: it is taken to be without padding and, unless it has one position, to start a row.

    Args:
        model: Run by the caller inside the block.
        first_position: Index of the first token of a row that counts.

    Yields:
        A function of the value at a site during a call.
    """
    calls: list[_Call] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A call of a part inside the call of the model is that call.
        calls.append(calls[-1] if calls else _describe(module, args, kwargs))

    def leave(*_: Any) -> None:
        if calls:
            calls.pop()

    def positions(value: Tensor) -> Tensor:
        if value.dim() != 3:
            return torch.ones(value.shape[:1], dtype=torch.bool, device=value.device)
        return _real_from(value, calls[-1] if calls else _running(value), first_position)

    with ExitStack() as stack:
        for module in _owners(getattr(model, "_orig_mod", model)):
            stack.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True))
            stack.enter_context(module.register_forward_hook(leave, always_call=True))
        yield positions


def _owners(model: nn.Module) -> list[nn.Module]:
    """The model, and the modules in it that hold all of its blocks.

    Wrappers such as PEFT's call ``forward`` of the model itself, which no hook notices.
    """
    transformer = find_transformer(model)
    if transformer is None:
        return [model]
    first = transformer.blocks[0]
    name = next((name for name, module in model.named_modules() if module is first), "")
    parts = name.split(".")
    inner = [model.get_submodule(".".join(parts[:end])) for end in range(1, len(parts))]
    # A list of blocks is not called.
    return [model, *(m for m in inner if type(m).forward is not nn.Module.forward)]


def _running(value: Tensor) -> _Call:
    run = RUNNING.get()
    if run is not None and run.batch.attention_mask.shape == value.shape[:2]:
        return _Call(run.batch.attention_mask, 0)
    return _Call()


def _describe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    try:
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    except TypeError:  # a wrong call; the model says so itself
        return _Call()
    arguments = bound.arguments
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments = {**arguments, **arguments.get(name, {})}
    mask = arguments.get("attention_mask")
    is_mask = isinstance(mask, Tensor) and mask.dim() == 2
    return _Call(mask if is_mask else None, _count_cached(arguments))


def _count_cached(arguments: Any) -> int | None:
    position = arguments.get("cache_position")
    if isinstance(position, Tensor) and position.numel():
        return int(position.flatten()[0])
    cache = next((arguments[n] for n in _CACHES if arguments.get(n) is not None), None)
    if cache is None:
        return 0
    length = getattr(cache, "get_seq_length", None)
    if callable(length):
        return int(length())  # pyright: ignore[reportArgumentType]
    if isinstance(cache, tuple | list) and cache:
        return int(cache[0][0].shape[-2])
    return None


def _real_from(value: Tensor, call: _Call, first: int) -> Tensor:
    """(row, position) bool, True at real tokens from index ``first`` of their rows on."""
    rows, length = value.shape[:2]
    mask, n_cached = call.mask, call.n_cached
    if mask is not None and (len(mask) != rows or mask.shape[1] < length):
        mask = None
    if mask is None:
        if n_cached is None and length == 1:  # a step of decoding
            return torch.ones(rows, 1, dtype=torch.bool, device=value.device)
        place = torch.arange(length, device=value.device) + (n_cached or 0)
        return (place >= first).expand(rows, length)
    real = mask.to(value.device).bool()
    if n_cached is not None and real.shape[1] >= n_cached + length:
        real = real[:, : n_cached + length]
    return (real & (real.cumsum(1) > first))[:, -length:]
