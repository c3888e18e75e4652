"""A pretended CUDA device, for where there is none: it keeps book.

Tensors said to be on it are marked, and operations on tensors of both devices and NumPy
views of marked ones fail.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from inspect import getattr_static
from typing import TypeVar

import pytest
import torch
from torch.overrides import TorchFunctionMode

Value = TypeVar("Value")

MARK = "_said_to_be_on_cuda"
SET_DATA = getattr_static(torch.Tensor, "data").__set__
FETCHES = ("__getitem__", "__setitem__", "copy_", "item", "__len__")
VIEWS = ("numpy", "__array__")
MODULES = ("_parse_to", "_has_compatible_shallow_copy_type")
"""Asked by a module on its way to a device; they look at tensors, not into them."""


def marked(value: object) -> bool:
    return isinstance(value, torch.Tensor) and getattr(value, MARK, False)


def mark(value: Value, there: bool) -> Value:
    if isinstance(value, torch.Tensor):
        setattr(value, MARK, there)
    elif isinstance(value, list | tuple):
        for part in value:
            mark(part, there)
    return value


def tensors(values: Iterable) -> list[torch.Tensor]:
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors(value)
    return found


def is_cuda(value: object) -> bool:
    return isinstance(value, str | torch.device) and str(value).startswith("cuda")


class PretendCuda(TorchFunctionMode):
    """Runs everything on the CPU and keeps book of where it would have been."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        used = tensors([*args, *kwargs.values()])
        if func == torch.Tensor.device.__get__:
            return torch.device("cuda" if marked(args[0]) else "cpu")
        if name in MODULES:
            return func(*args, **kwargs)
        if func == SET_DATA:  # how a module moves its parameters
            func(*args)
            mark(args[0], marked(args[1]))
            return None
        if name in VIEWS and marked(args[0]):
            raise TypeError("cannot view a CUDA tensor as NumPy")
        asked = [v for v in (*args, *kwargs.values()) if is_cuda(v)]
        here = [
            v
            for v in (*args, *kwargs.values())
            if isinstance(v, str | torch.device) and str(v) == "cpu"
        ]
        args = tuple("cpu" if is_cuda(v) else v for v in args)
        kwargs = {k: "cpu" if is_cuda(v) else v for k, v in kwargs.items()}
        if name in ("to", "cpu", "cuda"):
            target = used[1:] and marked(used[1])
            there = bool(asked) or name == "cuda" or bool(target)
            if not there and not here and name == "to" and len(used) == 1:
                there = marked(used[0])
            out = used[0] if name == "cuda" else func(*args, **kwargs)
            moved = there != marked(used[0])
            return mark(out.clone() if moved else out, there)
        many = [one for one in used if one.ndim]
        if name not in FETCHES and len({marked(one) for one in many}) > 1:
            shapes = [(tuple(one.shape), marked(one)) for one in used]
            raise RuntimeError(f"{name}: tensors on both devices {shapes}")
        if name == "__getitem__" and not marked(args[0]) and any(map(marked, used)):
            raise RuntimeError("a CUDA index into a CPU tensor")
        if name == "__setitem__" and many and many[0] is args[0]:
            index = [o for o in tensors([args[1]]) if o.ndim]
            value = [o for o in tensors([args[2]]) if o.ndim]
            wrong = [o for o in value if marked(o) != marked(args[0])]
            if (wrong and index) or (not marked(args[0]) and any(map(marked, index))):
                raise RuntimeError("__setitem__: tensors on both devices")
        there = bool(asked) or any(marked(one) for one in used)
        out = func(*args, **kwargs)
        if name.startswith("__set") or out is None:
            return out
        return mark(out, there)


def there_and_pretended(pretended):
    """A fixture's parameters: the pretended device, and the real one if there is."""
    missing = not torch.cuda.is_available()
    real = pytest.mark.skipif(missing, reason="no CUDA device here")
    return [
        pytest.param(pretended, id="pretended"),
        pytest.param(nullcontext, id="real", marks=real),
    ]
