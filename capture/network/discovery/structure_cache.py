"""Cache of findings about the structure of networks.

Networks of one class, configuration and module tree share one structure, so findings about one
are valid for all of them. A network without a configuration may differ in hidden ways and has a
cache entry of its own.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

T = TypeVar("T")


class StructureCache(Generic[T]):
    """Findings by network, held as long as the network (or its class) exists."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Any, dict[Any, T]] = WeakKeyDictionary()

    def get(self, model: nn.Module, question: Any, compute: Callable[[], T]) -> T:
        """The cached finding, or the result of ``compute``; exceptions are not cached.

        Args:
            model: The network.
            question: Hashable key of the finding.
            compute: Function that computes the finding.
        """
        config = getattr(model, "config", None)
        owner: Any = model
        settings_key = ""
        to_dict = getattr(config, "to_dict", None)
        if callable(to_dict):
            settings: Any = to_dict()
            # The path of a checkpoint does not affect its structure.
            settings.pop("_name_or_path", None)
            owner, settings_key = type(model), repr(sorted(settings.items()))
        parts = tuple((name, type(module)) for name, module in model.named_modules())
        cached = self._found.setdefault(owner, {})
        key = (question, settings_key, parts)
        if key not in cached:
            cached[key] = compute()
        return cached[key]
