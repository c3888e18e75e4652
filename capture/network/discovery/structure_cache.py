"""What was found out about a network's structure, found once and kept.

Networks of one class, configuration and modules have one structure whatever their
weights: what was found of one of them is true of the next that is loaded. A network
without a configuration may differ in what nobody sees, and is remembered by itself.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

T = TypeVar("T")


class StructureCache(Generic[T]):
    """Findings by network, for as long as it, or its class, is there."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Any, dict[Any, T]] = WeakKeyDictionary()

    def get(self, model: nn.Module, question: Any, compute: Callable[[], T]) -> T:
        """The finding, computed unless it is there.

        Args:
            model: The network.
            question: What the finding is about, hashable.
            compute: Finds it; what it raises is not kept.
        """
        config = getattr(model, "config", None)
        owner: Any = model
        told = ""
        to_dict = getattr(config, "to_dict", None)
        if callable(to_dict):
            settings: Any = to_dict()
            # Where a checkpoint lies changes nothing in what it computes.
            settings.pop("_name_or_path", None)
            owner, told = type(model), repr(sorted(settings.items()))
        parts = tuple((name, type(each)) for name, each in model.named_modules())
        known = self._found.setdefault(owner, {})
        key = (question, told, parts)
        if key not in known:
            known[key] = compute()
        return known[key]
