"""The blocks of a transformer by its structure alone, before anything is run.

What is understood is one stack of blocks of one class, each with attention in it. A
network that reads tokens and has no such stack, or that has several, is refused here:
its parts have attention and linear maps too, and one of them would pass for a block.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from evidence.errors import InputError

# Modules that are the whole feed-forward part, whatever is inside: in a mixture of
# experts no single linear map gives the sum.
FEED_FORWARD_NAMES = ("mlp", "ffn", "feed_forward", "block_sparse_moe")
# Arguments of blocks that hand on more than the stream from token to token.
RECURRENT_ARGUMENTS = ("state", "cache_params")


@dataclass(frozen=True)
class Outline:
    """The parts of one model.

    Attributes:
        blocks: From the first to the last.
        attentions: (block,) its attention part.
        feed_forwards: (block,) its feed-forward part where it has a name of its own.
        head: The output layer, or None for a body without one.
    """

    blocks: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    feed_forwards: tuple[nn.Module | None, ...]
    head: nn.Module | None


def find_outline(model: nn.Module) -> Outline | None:
    """The one stack of attention blocks; None for a network without attention.

    Raises:
        InputError: naming the family, where it has another structure.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise unsupported(model, "it is an encoder-decoder model")
    stacks = _stacks(model)
    if not stacks:
        if reads_tokens(model):
            raise unsupported(model, "its blocks are not of one class with attention")
        return None
    if len(stacks) > 1:
        names = " and ".join(f"{name!r} ({len(each)})" for name, each in stacks[:2])
        raise unsupported(model, f"it has several stacks of blocks: {names}")
    blocks = stacks[0][1]
    found = [_attention(block) for block in blocks]
    attentions = tuple(each for each in found if each is not None)
    if len(attentions) < len(blocks):
        raise unsupported(
            model, f"it is a hybrid: block {found.index(None)} has no attention"
        )
    for kind in RECURRENT_ARGUMENTS:
        if kind in inspect.signature(blocks[0].forward).parameters:
            raise unsupported(model, "its blocks hand on a recurrent state")
    return Outline(
        tuple(blocks),
        attentions,
        tuple(map(_feed_forward, blocks)),
        output_layer(model, blocks),
    )


def unsupported(model: nn.Module, reason: str) -> InputError:
    """One sentence that names the family and says why it is refused."""
    family = getattr(getattr(model, "config", None), "model_type", "")
    shown = f"{type(model).__name__} ({family})" if family else type(model).__name__
    return InputError(
        f"the structure of {shown} is not understood: {reason}",
        expected="one stack of blocks with attention, or two or more layers with "
        "weights, each of which reads nothing but what the one before it gives",
        fix="Use a model of another family; this one is not supported yet",
    )


def reads_tokens(model: nn.Module) -> bool:
    """Whether a model looks up tokens, whatever its class."""
    if "input_ids" in inspect.signature(model.forward).parameters:
        return True
    return any(isinstance(module, nn.Embedding) for module in model.modules())


def _stacks(model: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """Lists of blocks of one class with attention that lie in no other such list."""
    found: list[tuple[str, list[nn.Module]]] = []
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside or not isinstance(
            module, nn.ModuleList | nn.Sequential
        ):
            continue
        children = list(module)
        alike = len({type(child) for child in children}) == 1
        if alike and any(_attention(child) for child in children):
            found.append((name, children))
            inside |= {id(each) for each in module.modules()}
    return found


def _attention(block: nn.Module) -> nn.Module | None:
    """The attention part: by its name, and not a norm or a dropout named after it."""
    for name, child in block.named_children():
        hooked = hasattr(child, "hook_z")
        if "att" in name.lower() and (hooked or next(linears(child), None)):
            return child
    return None


def _feed_forward(block: nn.Module) -> nn.Module | None:
    named = dict(block.named_children())
    return next(
        (each for n, each in named.items() if n.lower() in FEED_FORWARD_NAMES), None
    )


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map, adapters and GPT-2's Conv1D included."""
    base = getattr(module, "base_layer", None)  # a peft layer around the linear map
    if isinstance(base, nn.Module):
        return linear_shape(base)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):
        return weight.shape[0], weight.shape[1]
    return None


def linears(module: nn.Module, skip: nn.Module | None = None) -> Iterator[nn.Module]:
    """Linear maps in ``module``, as registered, without those in ``skip``."""
    if module is skip:
        return
    if linear_shape(module) is not None:
        yield module
        return
    for child in module.children():
        yield from linears(child, skip)


def output_layer(model: nn.Module, blocks: list[nn.Module]) -> nn.Module | None:
    """The layer that gives the logits, or None for a body without one."""
    ask = getattr(model, "get_output_embeddings", None)
    try:
        layer = ask() if callable(ask) else None
    except NotImplementedError:
        layer = None
    if isinstance(layer, nn.Module):
        return layer
    inside = {id(module) for block in blocks for module in block.modules()}
    found, past_blocks = None, False
    for name, module in model.named_modules():
        past_blocks = past_blocks or module is blocks[-1]
        # A pooler feeds on the blocks too, but gives features, not scores.
        if not past_blocks or id(module) in inside or "pooler" in name:
            continue
        if linear_shape(module) is not None:
            found = module
    return found
