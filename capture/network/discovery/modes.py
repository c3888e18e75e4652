"""Temporary changes of a network: evaluation mode, hooks disabled."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and restore the mode of each module at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def gradients_on() -> Iterator[None]:
    """Compute gradients, also inside ``no_grad`` and ``inference_mode``; a decorator too."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Disable all hooks of the model, and restore them at the end."""
    removed = [
        (module, table, getattr(module, table))
        for module in model.modules()
        for table in HOOK_TABLES
        if getattr(module, table)
    ]
    for module, table, _ in removed:
        setattr(module, table, OrderedDict())
    try:
        yield
    finally:
        for module, table, hooks in removed:
            setattr(module, table, hooks)


def count_hooks(model: nn.Module) -> int:
    """Number of hooks registered on the modules of ``model``."""
    return sum(
        len(getattr(module, table) or ()) for module in model.modules() for table in HOOK_TABLES
    )
