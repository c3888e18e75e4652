"""The house: import direction, folders of one idea, no cycles, no side effects.

``architecture.toml`` has the order of the folders and the exceptions of today. An
exception that is not needed any more fails here, so that the list only shrinks.
"""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = Path(__file__).with_name("architecture.toml")
FACADE = ROOT / "exhume" / "__init__.py"
MOST_MODULES, MOST_LINES = 12, 600
# What each package may import besides itself.
ALLOWED = {
    "evidence": set(),
    "capture": {"evidence"},
    "attribution": {"evidence", "capture"},
    "probes": {"evidence"},
    "erasure": {"evidence", "capture"},
    "testbeds": {"evidence", "capture", "erasure"},
    "audits": {"evidence", "capture", "attribution", "probes", "erasure", "testbeds"},
}
ALLOWED["experiments"] = {*ALLOWED["audits"], "audits"}
ALLOWED["exhume"] = {*ALLOWED["experiments"], "experiments"}
ALLOWED = {name: used for name, used in ALLOWED.items() if (ROOT / name).is_dir()}
HOUSE = (*ALLOWED, "benchmarks")


def files(*tops: str) -> list[Path]:
    """Modules below these folders of the repository."""
    return [
        path
        for top in tops
        for path in sorted((ROOT / top).rglob("*.py"))
        if "__pycache__" not in path.parts
    ]


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in files(*HOUSE)}


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, at load time or anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = inner & set(MODULES)
            found |= modules
            if len(modules) < len(inner):
                found.add(node.module)
    return found & set(MODULES)


IMPORTS = {name: imports(path) - {name} for name, path in MODULES.items()}


def folder(name: str) -> str:
    """The folder that a module lies in."""
    return str(MODULES[name].parent.relative_to(ROOT))


def folder_arrows() -> set[tuple[str, str]]:
    """Which folder imports which; a package and its ``__init__`` are one."""
    arrows = {(folder(a), folder(b)) for a, used in IMPORTS.items() for b in used}
    return {(a, b) for a, b in arrows if a != b}


def upward(order: list[str]) -> set[str]:
    """Imports from a folder to one that stands above it."""
    place = {name: at for at, name in enumerate(order)}
    return {f"{a} -> {b}" for a, b in folder_arrows() if place[a] > place[b]}


def across() -> set[str]:
    """Imports from a package to one that it may not import."""
    return {
        f"{a} -> {b}"
        for a, used in IMPORTS.items()
        for b in used
        if (top := a.split(".")[0]) in ALLOWED and b.split(".")[0] not in ALLOWED[top] | {top}
    }


def crowded() -> dict[str, int]:
    """Folders with too many modules, and how many."""
    counts = Counter(
        str(path.parent.relative_to(ROOT))
        for path in files(*HOUSE, "tests")
        if path.name not in ("__init__.py", "conftest.py")
    )
    return {name: n for name, n in sorted(counts.items()) if n > MOST_MODULES}


def long() -> dict[str, int]:
    """Modules with too many lines, and how many."""
    counts = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in files(*HOUSE)
    }
    return {name: n for name, n in counts.items() if n > MOST_LINES}


@pytest.fixture(scope="module")
def rules():
    return tomllib.loads(RULES.read_text(encoding="utf-8"))


def test_every_package_is_checked():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(ALLOWED)


def test_packages_are_imported_one_way(rules):
    assert across() == set(rules["exceptions"]["packages"])


def test_folders_are_imported_one_way(rules):
    assert {folder(name) for name in MODULES} == set(rules["order"])
    assert len(set(rules["order"])) == len(rules["order"])
    assert upward(rules["order"]) == set(rules["exceptions"]["upward"])


def test_no_two_modules_import_each_other():
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for each in sorted(IMPORTS[name]):
                visit(each, (*above, name))
            done.add(name)

    for name in sorted(IMPORTS):
        visit(name, ())


def test_a_folder_is_one_idea(rules):
    allowed, found = rules["exceptions"]["modules"], crowded()
    assert {name: n for name, n in found.items() if n > allowed.get(name, 0)} == {}
    assert set(allowed) <= set(found), "these folders need no exception any more"


def test_files_are_short(rules):
    allowed, found = rules["exceptions"]["lines"], long()
    assert {name: n for name, n in found.items() if n > allowed.get(name, 0)} == {}
    assert set(allowed) <= set(found), "these modules need no exception any more"


@pytest.mark.parametrize("path", files(*ALLOWED), ids=lambda p: str(p.relative_to(ROOT)))
def test_package_init_holds_a_docstring_alone(path):
    """Besides it only what leads from old module names to new ones, except in the facade."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    if path.name == "__init__.py" and path != FACADE:
        rest = [ast.unparse(node) for node in tree.body[1:]]
        allowed = ("from evidence import moved", "moved.install()")
        assert all(
            line in allowed or line.startswith("__getattr__ = moved.forward(") for line in rest
        )


def test_the_facade_defines_nothing_and_imports_no_package_of_names():
    """Its names come from the stub beside it, which holds imports alone."""
    tree = ast.parse(FACADE.read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.ClassDef) for node in tree.body)
    functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert functions == {"_public_names", "__getattr__", "__dir__"}
    imported = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name for name in imported if name.split(".")[0] in ALLOWED} == {"evidence"}
    stub = ast.parse(FACADE.with_suffix(".pyi").read_text(encoding="utf-8"))
    assert ast.get_docstring(stub)
    assert all(isinstance(node, ast.ImportFrom) for node in stub.body[1:])


def test_importing_the_command_line_loads_no_model_library():
    code = (
        "import sys, exhume.cli.app;"
        "print([m for m in ('torch','transformers','transformer_lens','nnsight',"
        "'sae_lens','peft','plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
