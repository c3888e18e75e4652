"""Select the parameters that a method trains."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from capture.network.structure import (
    block_at,
    blocks_and_after,
    down_projection,
    find_blocks,
    is_linear_map,
    is_transposed,
    output_head,
    own_head_,
    random_like,
)
from erasure.unlearning.config import RETAIN_ONLY_METHODS, UnlearnConfig
from evidence.errors import InputError
from evidence.seeds import stage_seed


@contextmanager
def trained_parameters(
    model: nn.Module, config: UnlearnConfig, rmu_module: nn.Module | None, seed: int
) -> Iterator[list[nn.Parameter]]:
    """Context manager with the parameters that the method trains, LoRA's or the model's."""
    modules, all_parameters = _scope(model, config, rmu_module)
    if config.lora_rank is None:
        yield all_parameters
        return
    alpha = 2.0 * config.lora_rank if config.lora_alpha is None else config.lora_alpha
    with low_rank_(model, modules, config.lora_rank, alpha, seed) as parameters:
        yield parameters


def _scope(
    model: nn.Module, config: UnlearnConfig, rmu_module: nn.Module | None
) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Modules and parameters that the method may change."""
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
        # The authors train only the matrix, even if there is a bias.
        return modules, [module.get_parameter("weight") for module in modules]
    else:
        modules = [model]
    unique = {id(p): p for module in modules for p in module.parameters()}
    return modules, list(unique.values())


def rmu_block(model: nn.Module, config: UnlearnConfig, chosen: nn.Module | None) -> nn.Module:
    """The block RMU steers: ``chosen``, or block ``config.rmu_layer``.

    Raises:
        InputError: The model has no such block.
    """
    if chosen is not None:
        if not any(chosen is block for block in find_blocks(model)):
            raise InputError(
                "rmu_module is not one of the model's blocks", got=type(chosen).__name__
            )
        return chosen
    return block_at(model, config.rmu_layer, "rmu_layer")


def reinitialize_(model: nn.Module, parameters: list[nn.Parameter], seed: int) -> None:
    """Reset ``parameters`` to the values of a newly initialized model."""
    chosen = {id(parameter) for parameter in parameters}
    initial = dict(random_like(model, seed).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in chosen:
                parameter.copy_(initial[name])


def linear_names(model: nn.Module, scope: list[nn.Module]) -> list[str]:
    """Full names of the matrices within ``scope`` that LoRA can adapt.

    The output head is left out unless it is itself in ``scope``.
    """
    inside = {id(inner) for module in scope for inner in module.modules()}
    head = output_head(model)
    if head is not None and not any(module is head for module in scope):
        inside.discard(id(head))
    return [
        name
        for name, module in model.named_modules()
        if id(module) in inside and is_linear_map(module)
    ]


@contextmanager
def low_rank_(
    model: nn.Module, scope: list[nn.Module], rank: int, alpha: float, seed: int
) -> Iterator[list[nn.Parameter]]:
    """Context manager with LoRA adapters on the matrices of ``scope``; yields their parameters.

    On exit the adapters are merged into the weights and the model is plain again. If the context
    fails, they are dropped and the weights are unchanged.

    Args:
        model: Changed in place.
        scope: Modules to adapt, including their submodules.
        rank: Rank of each update, >= 1.
        alpha: The update is scaled by ``alpha / rank``.
        seed: Seed of the initial values.

    Raises:
        InputError: There is nothing to adapt.

    Source: Hu et al. (2021), arXiv 2106.09685.
    """
    from peft import LoraConfig, LoraModel

    names = linear_names(model, scope)
    if not names:
        raise InputError(
            "there is no matrix to adapt",
            expected="linear layers in the trained part",
            fix="Train without lora_rank",
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=0.0,
        bias="none",
        target_modules=names,
        fan_in_fan_out=is_transposed(model.get_submodule(names[0])),
    )
    flags = [(p, p.requires_grad) for p in model.parameters()]
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stage_seed(seed, "low-rank"))
        # Use the tuner without a PeftModel, which would change more of the model.
        tuner = LoraModel(model, config, "default")
    succeeded = False
    try:
        yield [p for name, p in tuner.named_parameters() if "lora_" in name]
        succeeded = True
    finally:
        if succeeded:
            tuner.merge_and_unload()
        else:
            tuner.unload()
        for name in ("peft_config", "_hf_peft_config_loaded"):
            if name in vars(model):
                delattr(model, name)
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
