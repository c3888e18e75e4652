"""The device on which a network takes its inputs."""

from typing import Any

import torch
from torch import nn


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's first parameter; the CPU if it has none.

    A part that accelerate keeps elsewhere, on the CPU or on disk, runs on its execution device.
    """
    for module in model.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            if (device := getattr(each, "execution_device", None)) is not None:
                return torch.device(device)
        own = next(module.parameters(recurse=False), None)
        if own is not None and not own.is_meta:
            return own.device
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
