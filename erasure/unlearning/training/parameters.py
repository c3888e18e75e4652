"""The parameters that a method trains, or low-rank adapters in their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from capture.network.structure import is_linear_map, is_transposed, output_head, random_like
from evidence.errors import InputError
from evidence.seeds import stage_seed


@dataclass(frozen=True)
class Scope:
    """The part of a model that a method changes.

    Attributes:
        modules: Where LoRA adapters go.
        parameters: What is trained without adapters.
    """

    modules: list[nn.Module]
    parameters: list[nn.Parameter]

    @classmethod
    def of(cls, *modules: nn.Module) -> "Scope":
        """All parameters of some modules, each once."""
        unique = {id(p): p for module in modules for p in module.parameters()}
        return cls(list(modules), list(unique.values()))


@contextmanager
def trained_parameters(
    model: nn.Module, scope: Scope, rank: int | None, alpha: float | None, seed: int
) -> Iterator[list[nn.Parameter]]:
    """Context manager with the parameters to train: LoRA's of a rank, or the model's own."""
    if rank is None:
        yield scope.parameters
        return
    with low_rank_(
        model, scope.modules, rank, 2.0 * rank if alpha is None else alpha, seed
    ) as parameters:
        yield parameters


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
