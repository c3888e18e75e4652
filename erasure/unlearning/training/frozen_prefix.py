"""Cache the states after the frozen lower blocks while only the last block is trained."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from capture.data.sequences import Padded
from capture.network.structure import find_blocks, stack_owner

# Cache limit. Rows beyond it are recomputed at every step.
MAX_CACHE_BYTES = 2**30
# Names in ``Padded.model_inputs``. Passes with other inputs bypass the cache.
CACHEABLE_INPUTS = {"input_ids", "attention_mask", "position_ids"}
# Largest difference of cached and plain logits, relative to the largest logit.
MAX_DIFFERENCE = 1e-4


@contextmanager
def cached_prefix(model: nn.Module, example: Padded) -> Iterator[None]:
    """Context manager in which the blocks before the last one run once per row.

    While only the last block is trained, its input for a row never changes, so it is cached by the
    row's tokens. The model keeps its structure and names. The cache is bypassed by passes with
    hooks on the lower blocks, with cached keys and values, or with inputs other than tokens, and in
    models whose blocks return more than their states (checked on ``example``).

    Args:
        model: A causal language model in eval mode; only the last block and later modules may
            change.
        example: A small right-padded batch.
    """
    memo = _PrefixCache(model)
    if memo.owner is None or not memo.prefix:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(memo.installed(memo.owner))
        with torch.no_grad():
            passes = [model(**example.model_inputs, use_cache=False).logits for _ in range(2)]
        difference = (passes[0] - passes[1])[example.attention_mask.bool()].abs()
        if not difference.max() <= MAX_DIFFERENCE * passes[0].abs().max():
            stack.close()
        yield


class _PrefixCache:
    """States after the lower blocks by row, and the current pass."""

    def __init__(self, model: nn.Module) -> None:
        blocks = find_blocks(model)
        self.prefix = blocks[:-1]
        self.owner = stack_owner(model, blocks)
        self.names: list[str] = []
        self.states: dict[bytes, Tensor] = {}
        self.bytes = 0
        # Keys of the current pass's rows, or None if it bypasses the cache.
        self.keys: list[bytes] | None = None
        self.hit = False
        self.wrapped = False

    @contextmanager
    def installed(self, owner: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            handle = owner.register_forward_pre_hook(self.start_pass, with_kwargs=True)
            stack.callback(handle.remove)
            self.names = list(inspect.signature(owner.forward).parameters)
            for index, block in enumerate(self.prefix):
                # An instance attribute shadows the class's method.
                before = vars(block).get("forward")
                block.forward = self.cached_forward(index, block.forward)
                if before is None:
                    stack.callback(delattr, block, "forward")
                else:
                    stack.callback(setattr, block, "forward", before)
            yield

    def start_pass(self, _owner: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Compute the keys of a pass's rows and look them up."""
        self.keys, self.hit = None, False
        positional = zip(self.names, args, strict=False)  # some models get ids by position
        inputs = {
            name: value
            for name, value in (*positional, *kwargs.items())
            if value is not None and value is not False
        }
        if inputs.keys() != CACHEABLE_INPUTS or self.has_hooks():
            return
        ids, mask = inputs["input_ids"].cpu(), inputs["attention_mask"].cpu()
        lengths = mask.sum(1)
        positions = torch.arange(mask.shape[1])
        if not torch.equal(mask.bool(), positions < lengths[:, None]):
            return
        token_rows = zip(ids, inputs["position_ids"].cpu(), lengths.tolist(), strict=True)
        self.keys = [
            torch.stack([row[:length], position_ids[:length]]).numpy().tobytes()
            for row, position_ids, length in token_rows
        ]
        self.hit = all(key in self.states for key in self.keys)

    def has_hooks(self) -> bool:
        """Whether any module of the lower blocks has a forward hook."""
        return any(
            module._forward_hooks or module._forward_pre_hooks
            for block in self.prefix
            for module in block.modules()
        )

    def cached_forward(self, index: int, forward: Callable) -> Callable:
        """Replacement of the forward method of block ``place``."""

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            if self.hit and self.keys is not None:
                hidden = args[0] if args else kwargs["hidden_states"]
                if index == 0:
                    hidden = self.recall(hidden, self.keys)
                return (hidden,) if self.wrapped else hidden
            output = forward(*args, **kwargs)
            if self.keys is not None and index == len(self.prefix) - 1:
                self.store(output, self.keys)
            return output

        return stand_in

    def recall(self, hidden: Tensor, keys: list[bytes]) -> Tensor:
        states = torch.zeros_like(hidden)
        for row, key in enumerate(keys):
            cached = self.states[key]
            states[row, : len(cached)] = cached
        return states

    def store(self, output: object, keys: list[bytes]) -> None:
        self.wrapped = isinstance(output, tuple)
        states = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(states, Tensor) or states.requires_grad:
            return
        if isinstance(output, tuple) and len(output) > 1:
            return
        for row, key in enumerate(keys):
            # A key has two 64-bit numbers per token: id and position.
            length = len(key) // 16
            n_bytes = length * states.shape[-1] * states.element_size()
            if key not in self.states and self.bytes + n_bytes <= MAX_CACHE_BYTES:
                self.states[key] = states[row, :length].detach().clone()
                self.bytes += n_bytes
