"""The end of one model put onto another: its readout, and its last block before that.

An edit of the readout cannot hide from the original's readout. An edit of the last
block can: every slope runs through that block, so scores of edges far below it fall
though nothing below it was touched. Read with the original's last block as well, such
an edit is undone, and only what reaches that block speaks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attribution.circuits.structure import TransformerStructure
from evidence.errors import InputError


def last_block(structure: TransformerStructure) -> nn.Module:
    """The module of the last block."""
    return structure.sites.places[f"resid.{structure.n_layers - 1}"].module


def copy_parameters(block: nn.Module) -> dict[str, Tensor]:
    """A copy of a block's parameters by name."""
    return {name: p.detach().clone() for name, p in block.named_parameters()}


@contextmanager
def temporarily_replaced(
    block: nn.Module, parameters: Mapping[str, Tensor]
) -> Iterator[None]:
    """Run a block with other weights, and give it its own back afterwards.

    Args:
        block: The block; it is as before once the context ends.
        parameters: From ``copy_parameters`` a block of the same build.

    Raises:
        InputError: the two blocks are not built alike.
    """
    own = dict(block.named_parameters())
    alike = {name: tuple(value.shape) for name, value in parameters.items()}
    if {name: tuple(p.shape) for name, p in own.items()} != alike:
        raise InputError(
            "the last block cannot be put in place of one that is built otherwise",
            expected="the same parameters of the same shapes",
            got=f"{len(own)} parameters here and {len(alike)} there",
        )
    kept = copy_parameters(block)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(parameters[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(kept[name])
