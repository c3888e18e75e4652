"""The house: import order, no cycles, no side effects, short files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "evidence": set(),
    "capture": {"evidence"},
    "attribution": {"evidence", "capture"},
    "probes": {"evidence"},
    "erasure": {"evidence"},
    "testbeds": {"evidence", "capture", "erasure"},
    "audits": {
        "evidence",
        "capture",
        "attribution",
        "probes",
        "erasure",
        "testbeds",
    },
}
ALLOWED = {name: used for name, used in ALLOWED.items() if (ROOT / name).is_dir()}
FILES = [
    path
    for package in ALLOWED
    for path in sorted((ROOT / package).rglob("*.py"))
    if "__pycache__" not in path.parts
]


def imports(path: Path, top_level: bool) -> set[str]:
    """Modules of ours that a file imports, at load time or anywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ALLOWED}


def test_every_package_is_checked():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    used = {name.split(".")[0] for name in imports(path, top_level=False)}
    assert used - {package} <= ALLOWED[package]


def test_no_two_modules_import_each_other():
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in FILES}
    graph = {
        name: {each for each in imports(path, top_level=False) if each in names}
        for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for each in sorted(graph[name] - {name}):
                visit(each, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_package_init_holds_a_docstring_alone(package):
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_importing_the_command_line_loads_no_model_library():
    code = (
        "import sys, audits.cli;"
        "print([m for m in ('torch','transformers','transformer_lens','nnsight',"
        "'sae_lens','peft','plotly') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]", done.stderr
