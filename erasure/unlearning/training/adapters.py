"""Low-rank training that ends in a plain model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from capture.network.structure import output_head
from evidence.errors import InputError
from evidence.seeds import stage_seed


def linear_names(model: nn.Module, scope: list[nn.Module]) -> list[str]:
    """Full names of the matrices inside ``scope`` that low-rank updates can take.

    The output head is left out unless it is itself in ``scope``.
    """
    from transformers.pytorch_utils import Conv1D

    inside = {id(inner) for module in scope for inner in module.modules()}
    head = output_head(model)
    if head is not None and not any(module is head for module in scope):
        inside.discard(id(head))
    return [
        name
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear | Conv1D)
    ]


@contextmanager
def low_rank_(
    model: nn.Module, scope: list[nn.Module], rank: int, alpha: float, seed: int
) -> Iterator[list[nn.Parameter]]:
    """Adapters on the matrices of ``scope``: their parameters, to be trained.

    At the end they are added to the weights, and ``model`` is as plain as before. If
    the block fails, they are dropped and the weights are as before.

    Args:
        model: Changed in place.
        scope: Modules to adapt, with all inside them.
        rank: Rank of each update, >= 1.
        alpha: The update is scaled by ``alpha / rank``.
        seed: Fixes the starting values.

    Raises:
        InputError: there is nothing to adapt.

    Source: Hu et al. (2021), arXiv 2106.09685.
    """
    from peft import LoraConfig, LoraModel
    from transformers.pytorch_utils import Conv1D

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
        fan_in_fan_out=isinstance(model.get_submodule(names[0]), Conv1D),
    )
    flags = [(p, p.requires_grad) for p in model.parameters()]
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stage_seed(seed, "low-rank"))
        # The tuner itself, not a PeftModel: nothing else about the model changes.
        wrapped = LoraModel(model, config, "default")
    done = False
    try:
        yield [p for name, p in wrapped.named_parameters() if "lora_" in name]
        done = True
    finally:
        if done:
            wrapped.merge_and_unload()
        else:
            wrapped.unload()
        for name in ("peft_config", "_hf_peft_config_loaded"):
            if name in vars(model):
                delattr(model, name)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
