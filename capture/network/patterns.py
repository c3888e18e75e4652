"""Attention patterns: read and edited where the model library computes them.

Kernels such as SDPA never form the attention weights. While a pattern is read or edited, the model
runs the eager attention of its own family through ``ALL_ATTENTION_FUNCTIONS`` of transformers, with
the same results up to rounding.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

NAME = "exhume_patterns"
EAGER, INTERFACE = "eager_attention_forward", "ALL_ATTENTION_FUNCTIONS"
PatternCallback = Callable[[Tensor], Tensor | None]

_CALLBACKS: ContextVar[dict[nn.Module, list[PatternCallback]] | None] = ContextVar(
    "pattern_callbacks", default=None
)


def find_pattern_module(attention: nn.Module) -> nn.Module | None:
    """The part of an attention module that computes its weights, or None if that is not known.

    It is the only one that has a configuration and is defined beside an eager attention function
    of its family; or the hook point of a TransformerLens bridge, whose output the weights are.
    """
    if isinstance(point := getattr(attention, "hook_pattern", None), nn.Module):
        return point
    known = [module for module in attention.modules() if _is_attention(module)]
    return known[0] if len(known) == 1 else None


def _is_attention(module: nn.Module) -> bool:
    defining = vars(sys.modules.get(type(module).__module__, nn))
    code = getattr(type(module).forward, "__wrapped__", type(module).forward).__code__
    return (
        EAGER in defining
        and INTERFACE in code.co_names
        and hasattr(getattr(module, "config", None), "_attn_implementation")
    )


@contextmanager
def calling_patterns(module: nn.Module, callback: PatternCallback) -> Iterator[None]:
    """Call ``callback`` with the attention weights, (row, head, query, key), of each pass.

    Weights that it returns take their place. The callback that was opened last acts first.

    Args:
        module: As ``find_pattern_module`` returns.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    config: Any = module.config
    before = config._attn_implementation
    outer = _CALLBACKS.get() or {}
    token = _CALLBACKS.set(outer | {module: [callback, *outer.get(module, [])]})
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _CALLBACKS.reset(token)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any
) -> tuple[Tensor, Tensor]:
    """The eager attention of the module's family, with the callbacks on its weights."""
    eager = getattr(sys.modules[type(module).__module__], EAGER)
    output, weights = eager(module, query, key, value, mask, **named)
    changed = weights
    for callback in (_CALLBACKS.get() or {}).get(module, ()):
        new = callback(changed)
        changed = changed if new is None else new
    if changed is weights:
        return output, weights
    # The output is linear in the weights; heads of keys and values may be shared.
    repeated = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
    product = torch.matmul(changed.to(repeated.dtype), repeated)
    return product.transpose(1, 2).contiguous(), changed
