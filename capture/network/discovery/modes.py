"""A network as it is for a while: in evaluation mode, or without anybody's hooks."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

HOOK_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards for each module the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """The model as it is without the hooks on it, and afterwards with them again."""
    kept = [
        (module, table, getattr(module, table))
        for module in model.modules()
        for table in HOOK_TABLES
        if getattr(module, table)
    ]
    for module, table, _ in kept:
        setattr(module, table, OrderedDict())
    try:
        yield
    finally:
        for module, table, hooks in kept:
            setattr(module, table, hooks)


def count_hooks(model: nn.Module) -> int:
    """How many hooks, of whatever origin, are registered anywhere in ``model``."""
    return sum(
        len(getattr(module, table) or ())
        for module in model.modules()
        for table in HOOK_TABLES
    )
