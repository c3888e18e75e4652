"""The front of a language model: what reads the question, up to a depth.

The front of depth k is the input embedding, with that of positions, and the first k blocks.
"""

import copy

import torch
from torch import nn

from capture.network.structure import find_blocks, input_embedding, own_head_, stack_owner
from evidence.errors import InputError


def front_names(model: nn.Module, depth: int) -> list[str]:
    """Names in ``model.state_dict()`` of the weights of the front.

    A head that is tied to the embedding is behind the front.

    Args:
        model: A causal language model.
        depth: Number of first blocks that belong to the front; 0 is the embedding alone.

    Raises:
        InputError: the model has fewer blocks, or no input embedding.
    """
    blocks, embedding = find_blocks(model), input_embedding(model)
    if embedding is None or not 0 <= depth <= len(blocks):
        raise InputError(
            "the model has no front of this depth",
            expected=f"an input embedding, and a depth from 0 to {len(blocks)}",
            got=f"{type(model).__name__}, {depth}",
        )
    owner = stack_owner(model, blocks)
    children = [] if owner is None else list(owner.named_children())
    parts = {embedding, *blocks[:depth]}
    # Embeddings of positions, and norms of embeddings.
    parts |= {each for name, each in children if isinstance(each, nn.Embedding) or "emb" in name}
    prefixes = tuple(f"{name}." for name, module in model.named_modules() if module in parts)
    return [name for name in model.state_dict() if name.startswith(prefixes)]


def parameters_behind(model: nn.Module, depth: int) -> list[nn.Parameter]:
    """Parameters that the front of this depth does not share; a tied head is shared."""
    inside = set(front_names(model, depth))
    shared = {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in inside
    }
    return [each for each in model.parameters() if id(each) not in shared]


def with_front(model: nn.Module, donor: nn.Module, depth: int) -> nn.Module:
    """A copy of ``model`` with the front of ``donor``, bit for bit; a tied head keeps its weights.

    Args:
        model: A causal language model; it is not changed.
        donor: A model of the same shapes.
        depth: Number of first blocks to copy; 0 copies the embedding alone.

    Raises:
        InputError: the shapes of the fronts differ.
    """
    made = copy.deepcopy(model)
    own_head_(made)
    theirs, ours = donor.state_dict(), made.state_dict()
    names = front_names(made, depth)
    if names != front_names(donor, depth) or any(
        ours[name].shape != theirs[name].shape for name in names
    ):
        raise InputError(
            "the fronts of the two models do not fit",
            expected="weights of the same names and shapes",
            got=f"{type(model).__name__} and {type(donor).__name__}",
        )
    with torch.no_grad():
        for name in names:
            ours[name].copy_(theirs[name])
    return made


def changed_behind(model: nn.Module, original: nn.Module, depth: int) -> list[str]:
    """Names of the weights behind the front that are not the original's, bit for bit."""
    inside = set(front_names(original, depth))
    ours, theirs = model.state_dict(), original.state_dict()
    return [
        name
        for name in dict.fromkeys([*theirs, *ours])
        if name not in inside
        and not (name in ours and name in theirs and torch.equal(ours[name], theirs[name]))
    ]
