"""Run a model with the last block of another model.

An edit of the readout cannot hide from attribution with the original's readout, but an edit of the
last block can: all gradients pass through that block, so the scores of edges far below it fall
although nothing below was changed. Running the candidate with the original's last block undoes such
an edit.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attribution.circuits.structure import TransformerStructure
from evidence.errors import InputError


def last_block(structure: TransformerStructure) -> nn.Module:
    """The last transformer block."""
    return structure.sites.places[f"resid.{structure.n_layers - 1}"].module


def copy_parameters(block: nn.Module) -> dict[str, Tensor]:
    """Detached copies of a block's parameters by name."""
    return {name: p.detach().clone() for name, p in block.named_parameters()}


@contextmanager
def temporarily_replaced(block: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Run a block with other parameters and restore its own on exit.

    Args:
        block: Restored bit for bit when the context ends.
        parameters: From ``copy_parameters`` of a block with the same parameter shapes.

    Raises:
        InputError: The parameter names or shapes differ.
    """
    current = dict(block.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    if {name: tuple(p.shape) for name, p in current.items()} != shapes:
        raise InputError(
            "the last block cannot be replaced by one with other parameters",
            expected="the same parameter names and shapes",
            got=f"{len(current)} parameters here and {len(shapes)} there",
        )
    saved = copy_parameters(block)
    with torch.no_grad():
        for name, parameter in current.items():
            parameter.copy_(parameters[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in current.items():
                parameter.copy_(saved[name])
