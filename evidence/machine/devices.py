"""Device names and their availability on this machine."""

import re
from typing import Any

import torch

from evidence.errors import InputError

DEVICE_TYPES = ("auto", "cpu", "cuda", "mps")
_NAME = re.compile(r"(cpu|cuda|mps)(?::(\d{1,4}))?")


def choose_device(device: Any) -> str:
    """Resolve a device name on this machine.

    Args:
        device: ``"auto"`` (CUDA, else MPS, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``,
            ``"mps"``, or a ``torch.device``.

    Raises:
        InputError: the name is unknown, or the device is not available.
    """
    name = str(device) if isinstance(device, torch.device) else device
    if name == "auto":
        return next((kind for kind in ("cuda", "mps") if _is_available(kind)), "cpu")
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise InputError(
            f"there is no device called {name!r}",
            expected=", ".join(DEVICE_TYPES) + " or one of several, such as cuda:1",
            fix="Set device to cpu or auto",
        )
    kind, number = match[1], int(match[2] or 0)
    if not _is_available(kind) or (number and number >= _device_count(kind)):
        raise InputError(
            f"there is no {name} device here",
            expected="cpu, or a machine and a PyTorch that have one",
            fix="Set device to cpu or auto",
        )
    return kind if number == 0 else name


def _is_available(kind: str) -> bool:
    if kind == "cpu":
        return True
    return (torch.cuda if kind == "cuda" else torch.backends.mps).is_available()


def _device_count(kind: str) -> int:
    return torch.cuda.device_count() if kind == "cuda" else 1
