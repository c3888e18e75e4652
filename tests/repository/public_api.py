"""Names and signatures that can be imported: ``python -m tests.repository.public_api``.

The snapshot holds every name without a leading underscore that a module of ours
defines, under that module's path, and what ``import exhume`` gives. When something
moves, its old path has to go on working: the test imports each name from where it was
and compares its signature, in which paths of modules are left out. The command takes in
new names and changed signatures; names that are gone are dropped by ``--drop`` alone.
"""

import ast
import enum
import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

SNAPSHOT = Path(__file__).with_name("public_api.json")
ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
MOVED = Path(__file__).with_name("moved.tsv")
"""Where there is one: new path, tab, the old paths it was made of, as in ``git mv``."""
_PATHS = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_SET_OF_STRINGS = re.compile(r"\{('[^']*'(?:, '[^']*')*)\}")
ALIASES = ("typing", "types", "collections.abc")
"""Where the types of names such as ``Literal[...]`` and ``Callable[...]`` live."""
Snapshot = dict[str, dict[str, Any]]


def modules() -> Iterator[str]:
    """Paths of all public modules of this tree."""
    for package in PACKAGES:
        for found in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            parts = found.name.split(".")
            if not any(part.startswith("_") for part in parts):
                yield found.name


def described(value: Any) -> Any:
    """What is promised of a name: a signature, or of a constant its type."""
    if inspect.isclass(value):
        return _class(value)
    if type(value).__module__ in ALIASES:
        return f"type: {_plain(repr(value))}"
    if callable(value):
        return _signature(value)
    return f"constant: {type(value).__name__}"


def _class(value: type) -> dict[str, Any]:
    members = {}
    for name, member in sorted(vars(value).items()):
        if name.startswith("_"):
            continue
        if isinstance(member, staticmethod | classmethod):
            members[name] = f"{type(member).__name__} {_signature(member.__func__)}"
        elif inspect.isfunction(member):
            members[name] = _signature(member)
        elif isinstance(member, property) or hasattr(member, "__get__"):
            members[name] = "property"
        elif isinstance(value, enum.EnumMeta):
            members[name] = "member"
    bases = [each.__name__ for each in value.__bases__ if each is not object]
    found: dict[str, Any] = {"class": _signature(value)}
    if bases:
        found["bases"] = bases
    if members:
        found["members"] = members
    return found


def _signature(value: Any) -> str:
    try:
        return _plain(str(inspect.signature(value)))
    except ValueError:  # an exception that takes what every exception takes
        return "(...)"


def _plain(words: str) -> str:
    words = _SET_OF_STRINGS.sub(_in_order, words)
    return _ADDRESS.sub("", _PATHS.sub("", words))


def _in_order(found: re.Match[str]) -> str:
    """A set of strings, whose order differs from one process to the next."""
    return "{" + ", ".join(sorted(found[1].split(", "))) + "}"


def defined(module: ModuleType) -> dict[str, Any]:
    """Public names that the module itself defines, in alphabetical order."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.Assign():
                names |= {
                    n.id
                    for t in node.targets
                    for n in ast.walk(t)
                    if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
                }
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    public = sorted(name for name in names if not name.startswith("_"))
    return {name: described(getattr(module, name)) for name in public}


def here() -> Snapshot:
    """The snapshot of this tree."""
    found = {}
    for name in modules():
        names = defined(importlib.import_module(name))
        if names:
            found[name] = names
    facade = importlib.import_module("exhume")
    found["exhume"] = {name: described(getattr(facade, name)) for name in facade.__all__}
    return found


def kept() -> Snapshot:
    """The snapshot that was committed."""
    return json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def imported(module: str, name: str) -> Any:
    """The object of that name, from that path.

    Raises:
        ImportError: there is no such path any more.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(f"{module} has no {name}") from error
    except ModuleNotFoundError as error:
        raise ImportError(f"there is no {module}: {error}") from error


def moved() -> dict[str, list[str]]:
    """New paths of each old one, as far as something moved."""
    if not MOVED.is_file():
        return {}
    found: dict[str, list[str]] = {}
    for line in MOVED.read_text(encoding="utf-8").splitlines():
        new, old = line.split("\t")[:2]
        for each in old.split():
            if each.endswith(".py") and each != new:
                found.setdefault(_dotted(each), []).append(_dotted(new))
    return found


def _dotted(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def changes(names: Snapshot) -> dict[str, str]:
    """What no longer holds of a snapshot: by module:name, how."""
    found = {}
    for module, of_module in names.items():
        for name, before in of_module.items():
            try:
                now = described(imported(module, name))
            except ImportError as error:
                found[f"{module}:{name}"] = f"gone ({error})"
                continue
            if now != before:
                found[f"{module}:{name}"] = f"was {before}\n  is {now}"
    return found


def main() -> None:
    """Write the snapshot again."""
    drop = "--drop" in sys.argv[1:]
    found = here()
    before = kept() if SNAPSHOT.is_file() else {}
    for module, names in before.items():
        for name in names:
            try:
                now = described(imported(module, name))
            except ImportError:
                if not drop:
                    print(f"{module}:{name} is gone; --drop takes it out")
                    found.setdefault(module, {})[name] = names[name]
                continue
            found.setdefault(module, {})[name] = now
    text = json.dumps(found, indent=0, sort_keys=True, ensure_ascii=False)
    SNAPSHOT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
