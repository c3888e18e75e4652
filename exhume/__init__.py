"""Was knowledge deleted, or only suppressed? Public names of the toolkit.

A name is imported when it is first used, so that ``import exhume`` loads no model library.
``__init__.pyi`` lists the names with their modules.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

from evidence import moved

moved.install()


def _public_names() -> dict[str, str]:
    """Name to the module that defines it."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {name.name: str(node.module) for node in imports for name in node.names}


_NAMES = _public_names()
__all__ = list(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_NAMES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
