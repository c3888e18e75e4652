"""Old names of modules, functions and classes go on working for one release.

``moved.tsv`` maps each old module name to the new one. Importing an old name gives the
very module of the new name and a DeprecationWarning. The finder stands last in
``sys.meta_path``: it is asked only for names that nothing else finds. ``moved_names.tsv``
maps names inside modules; they are found once the old module name was imported.
"""

import sys
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any


@cache
def renamed() -> dict[str, str]:
    """Old module name to new module name."""
    return {old: new for old, new in _rows("moved.tsv")}


@cache
def renamed_names() -> dict[str, dict[str, str]]:
    """By new module name: old name of a function, class or constant to its new name.

    A name that went to another module is written ``module:name``.
    """
    found: dict[str, dict[str, str]] = {}
    for module, old, new in _rows("moved_names.tsv"):
        found.setdefault(module, {})[old] = new
    return found


def _rows(name: str) -> list[list[str]]:
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


class MovedModules:
    """Finds a module under its old name; both finder and loader."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        """The spec of an old name, or None for all others."""
        if "." not in name or name not in renamed():
            return None
        return ModuleSpec(name, self, origin=renamed()[name])  # pyright: ignore

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python to make a module; ``exec_module`` replaces it."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name where the old name is looked up."""
        old = module.__name__
        _warn(old, renamed()[old], stacklevel=2)
        sys.modules[old] = _with_old_names(import_module(renamed()[old]))

    def get_code(self, name: str) -> CodeType | None:
        """The code of the new module, which ``python -m`` runs."""
        spec = find_spec(renamed()[name])
        return spec.loader.get_code(spec.name)  # pyright: ignore


def install() -> None:
    """Ask for old names last, after every other finder."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())  # pyright: ignore


def forward(package: str, new: str) -> Callable[[str], Any]:
    """``__getattr__`` of a package that has the name of a module that moved into it.

    Args:
        package: The package, by its whole name.
        new: The module that holds what the old module of the package's name held.
    """

    def __getattr__(name: str) -> Any:
        if name.startswith("__") or find_spec(f"{package}.{name}") is not None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(_with_old_names(import_module(new)), name)
        _warn(package, new, stacklevel=2)
        return value

    return __getattr__


def names_of(module: str) -> Callable[[str], Any]:
    """``__getattr__`` of a module in which names changed.

    Args:
        module: The module, by its name of today.
    """
    changed = renamed_names()[module]

    def __getattr__(name: str) -> Any:
        if name not in changed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", changed[name], stacklevel=2)
        home, _, new = changed[name].rpartition(":")
        return getattr(import_module(home or module), new)

    return __getattr__


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
