"""Old names of modules, functions and classes, supported for one release.

``moved.tsv`` maps old module names to new ones. Importing an old name returns the module of the
new name and emits a DeprecationWarning. The finder is the last one in ``sys.meta_path``, so it
sees only names that no other finder knows. ``moved_names.tsv`` maps names inside modules; they are
available once the old module name was imported.
"""

import sys
import warnings
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def renamed() -> dict[str, str]:
    """Old module name to new module name."""
    return {old: new for old, new in _rows("moved.tsv")}


@cache
def renamed_names() -> dict[str, dict[str, str]]:
    """New module name to a map from old names in the module to new ones.

    A name that moved to another module is written ``module:name``.
    """
    by_module: dict[str, dict[str, str]] = {}
    for module, old, new in _rows("moved_names.tsv"):
        by_module.setdefault(module, {})[old] = new
    return by_module


def _rows(name: str) -> list[list[str]]:
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


class MovedModules:
    """Finder and loader of modules under their old names."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        """The spec of an old name, or None for all others."""
        if "." not in name or name not in renamed():
            return None
        return ModuleSpec(name, self, origin=renamed()[name])  # pyright: ignore

    def create_module(self, spec: ModuleSpec) -> None:
        """Use Python's default module object; ``exec_module`` replaces it."""

    def exec_module(self, module: ModuleType) -> None:
        """Register the module of the new name under the old name."""
        old = module.__name__
        _warn(old, renamed()[old], stacklevel=2)
        sys.modules[old] = _with_old_names(import_module(renamed()[old]))

    def get_code(self, name: str) -> CodeType | None:
        """Code of the new module, for ``python -m``."""
        spec = find_spec(renamed()[name])
        return spec.loader.get_code(spec.name)  # pyright: ignore


def install() -> None:
    """Append the finder to ``sys.meta_path``."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())  # pyright: ignore


def forward(package: str, new: str) -> Callable[[str], Any]:
    """``__getattr__`` for a package that replaces a module of the same name.

    Args:
        package: Full name of the package.
        new: The module that now holds the names of the old module.
    """

    def __getattr__(name: str) -> Any:
        if name.startswith("__") or find_spec(f"{package}.{name}") is not None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(_with_old_names(import_module(new)), name)
        _warn(package, new, stacklevel=2)
        return value

    return __getattr__


def names_of(module: str) -> Callable[[str], Any]:
    """``__getattr__`` for a module (by its new name) in which names changed."""
    changed = renamed_names()[module]

    def __getattr__(name: str) -> Any:
        if name not in changed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", changed[name], stacklevel=2)
        home, _, new = changed[name].rpartition(":")
        return getattr(import_module(home or module), new)

    return __getattr__


def renamed_arguments(**renamed: str) -> Callable[[Function], Function]:
    """Decorator of a function whose keyword arguments changed their names.

    Args:
        renamed: Old name to new name.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in renamed.keys() & kwargs.keys():
                _warn(f"the argument {old}", renamed[old], stacklevel=2)
                kwargs[renamed[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call  # pyright: ignore[reportReturnType]

    return decorate


def _with_old_names(module: ModuleType) -> ModuleType:
    name = module.__name__
    if name in renamed_names() and "__getattr__" not in vars(module):
        vars(module)["__getattr__"] = names_of(name)
    return module


def _warn(old: str, new: str, stacklevel: int) -> None:
    warnings.warn(
        f"{old} moved to {new}; the old name goes with the next release",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )
