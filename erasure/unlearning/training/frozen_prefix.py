"""Blocks whose weights stay as they are compute each row once."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from capture.data.sequences import Padded
from capture.network.structure import find_blocks, stack_owner

# States kept at most. Rows beyond that are computed each time.
MAX_CACHE_BYTES = 2**30
# What ``Padded.model_inputs`` gives; a pass that brings anything else runs as ever.
CACHEABLE_INPUTS = {"input_ids", "attention_mask", "position_ids"}
# Rounding moves a logit by far less than this share of the largest one.
MAX_DIFFERENCE = 1e-4


@contextmanager
def cached_prefix(model: nn.Module, example: Padded) -> Iterator[None]:
    """Run the blocks before the last one once for each row.

    For training the last block alone: what reaches it does not change, so it is kept
    by the row's tokens and handed on when the row comes again. The model keeps its
    structure and names. Passes that have a hook on the lower blocks, keys and values,
    or other inputs than tokens run as ever; so does a model in which the lower blocks
    hand on more than their states (checked on ``example``).

    Args:
        model: A causal language model in eval mode, of which the last block and what
            comes after it may change.
        example: A small right-padded batch.
    """
    memo = _PrefixCache(model)
    if memo.owner is None or not memo.prefix:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(memo.installed(memo.owner))
        with torch.no_grad():
            passes = [
                model(**example.model_inputs, use_cache=False).logits for _ in range(2)
            ]
        difference = (passes[0] - passes[1])[example.attention_mask.bool()].abs()
        if not difference.max() <= MAX_DIFFERENCE * passes[0].abs().max():
            stack.close()
        yield


class _PrefixCache:
    """States after the lower blocks by row, and the pass under way."""

    def __init__(self, model: nn.Module) -> None:
        blocks = find_blocks(model)
        self.prefix = blocks[:-1]
        self.owner = stack_owner(model, blocks)
        self.names: list[str] = []
        self.states: dict[bytes, Tensor] = {}
        self.bytes = 0
        # Of the pass under way: a key a row, or None where it runs as ever.
        self.keys: list[bytes] | None = None
        self.hit = False
        self.wrapped = False

    @contextmanager
    def installed(self, owner: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            handle = owner.register_forward_pre_hook(self.start_pass, with_kwargs=True)
            stack.callback(handle.remove)
            self.names = list(inspect.signature(owner.forward).parameters)
            for place, block in enumerate(self.prefix):
                # An attribute of the instance hides its class's method.
                before = vars(block).get("forward")
                block.forward = self.cached_forward(place, block.forward)
                if before is None:
                    stack.callback(delattr, block, "forward")
                else:
                    stack.callback(setattr, block, "forward", before)
            yield

    def start_pass(
        self, _owner: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        """Look at the inputs of a pass: which rows are they, and are they known?"""
        self.keys, self.hit = None, False
        named = zip(self.names, args, strict=False)  # some families pass ids by place
        given = {
            name: value
            for name, value in (*named, *kwargs.items())
            if value is not None and value is not False
        }
        if given.keys() != CACHEABLE_INPUTS or self.has_hooks():
            return
        ids, mask = given["input_ids"].cpu(), given["attention_mask"].cpu()
        lengths = mask.sum(1)
        places = torch.arange(mask.shape[1])
        if not torch.equal(mask.bool(), places < lengths[:, None]):
            return
        kept = zip(ids, given["position_ids"].cpu(), lengths.tolist(), strict=True)
        self.keys = [
            torch.stack([row[:length], where[:length]]).numpy().tobytes()
            for row, where, length in kept
        ]
        self.hit = all(key in self.states for key in self.keys)

    def has_hooks(self) -> bool:
        """Whether somebody wants to see or change what happens in the lower blocks."""
        return any(
            module._forward_hooks or module._forward_pre_hooks
            for block in self.prefix
            for module in block.modules()
        )

    def cached_forward(self, place: int, forward: Callable) -> Callable:
        """What block ``place`` does now."""

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            if self.hit and self.keys is not None:
                hidden = args[0] if args else kwargs["hidden_states"]
                if place == 0:
                    hidden = self.recall(hidden, self.keys)
                return (hidden,) if self.wrapped else hidden
            output = forward(*args, **kwargs)
            if self.keys is not None and place == len(self.prefix) - 1:
                self.store(output, self.keys)
            return output

        return stand_in

    def recall(self, hidden: Tensor, keys: list[bytes]) -> Tensor:
        states = torch.zeros_like(hidden)
        for row, key in enumerate(keys):
            found = self.states[key]
            states[row, : len(found)] = found
        return states

    def store(self, output: object, keys: list[bytes]) -> None:
        self.wrapped = isinstance(output, tuple)
        states = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(states, Tensor) or states.requires_grad:
            return
        if isinstance(output, tuple) and len(output) > 1:
            return
        for row, key in enumerate(keys):
            # Two rows of 64-bit numbers a token: ids and positions.
            length = len(key) // 16
            new = length * states.shape[-1] * states.element_size()
            if key not in self.states and self.bytes + new <= MAX_CACHE_BYTES:
                self.states[key] = states[row, :length].detach().clone()
                self.bytes += new
