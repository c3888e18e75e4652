"""Which weights a method may change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from capture.network.structure import (
    blocks_and_after,
    down_projection,
    find_blocks,
    own_head_,
    random_like,
)
from erasure.unlearning.training.adapters import low_rank_
from erasure.unlearning.training.config import RETAIN_ONLY_METHODS, UnlearnConfig
from evidence.errors import InputError


@contextmanager
def trained_parameters(
    model: nn.Module, config: UnlearnConfig, rmu_module: nn.Module | None, seed: int
) -> Iterator[list[nn.Parameter]]:
    """The parameters the method may change, low-rank or whole."""
    scope, whole = _scope(model, config, rmu_module)
    if config.lora_rank is None:
        yield whole
        return
    alpha = 2.0 * config.lora_rank if config.lora_alpha is None else config.lora_alpha
    with low_rank_(model, scope, config.lora_rank, alpha, seed) as parameters:
        yield parameters


def _scope(
    model: nn.Module, config: UnlearnConfig, rmu_module: nn.Module | None
) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Modules and parameters the method may change."""
    if config.method == "last_block_relabel":
        modules = [find_blocks(model)[-1]]
        if config.train_head:
            modules.append(own_head_(model))
    elif config.method in RETAIN_ONLY_METHODS:
        modules = blocks_and_after(model, config.last_k)
    elif config.method == "rmu" and config.rmu_parameters == "down":
        blocks = find_blocks(model)
        last = blocks.index(rmu_block(model, config, rmu_module))
        chosen = blocks[max(0, last - 2) : last + 1]
        modules = [down_projection(block) for block in chosen]
        # The authors train the matrix alone, also where it has a bias.
        return modules, [module.get_parameter("weight") for module in modules]
    else:
        modules = [model]
    unique = {id(p): p for module in modules for p in module.parameters()}
    return modules, list(unique.values())


def rmu_block(
    model: nn.Module, config: UnlearnConfig, chosen: nn.Module | None
) -> nn.Module:
    """The block RMU pushes: ``chosen``, or block ``config.rmu_layer``.

    Raises:
        InputError: the model has no such block.
    """
    blocks = find_blocks(model)
    if chosen is not None:
        if not any(chosen is block for block in blocks):
            raise InputError(
                "rmu_module is not one of the model's blocks",
                got=type(chosen).__name__,
            )
        return chosen
    if not 0 <= config.rmu_layer < len(blocks):
        raise InputError(
            "rmu_layer is not a block of this model",
            expected=f"0 to {len(blocks) - 1}",
            got=str(config.rmu_layer),
        )
    return blocks[config.rmu_layer]


def reinitialize_(model: nn.Module, parameters: list[nn.Parameter], seed: int) -> None:
    """Give ``parameters`` the values of a model that was never trained."""
    chosen = {id(parameter) for parameter in parameters}
    fresh = dict(random_like(model, seed).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in chosen:
                parameter.copy_(fresh[name])
