"""Every public name of ``exhume`` exists, is documented, and its example runs."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import exhume
from tests.exhume.example_folder import SETUP, make_folder

ROOT = Path(exhume.__file__).parents[1]
# The stub, which type checkers read, holds imports alone.
PUBLIC_NAMES: list[str] = vars(exhume)["__all__"]
PAGE = ROOT / "docs" / "reference" / "api.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
# Of the libraries under sae-lens.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def typed_before(tmp_path_factory):
    """What examples find: a folder, and the names that ``SETUP`` made in it."""
    folder = tmp_path_factory.mktemp("examples")
    make_folder(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXHUME_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        names: dict[str, object] = {}
        for each in doctest.DocTestParser().get_examples(SETUP):
            exec(each.source, names)
        yield names


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_the_example_of_a_public_name_runs(name, typed_before, capsys):
    value = getattr(exhume, name)
    _, heading, examples = (inspect.getdoc(value) or "").partition("\nExamples:\n")
    assert heading, f"the docstring of {name} has no example"
    parser = doctest.DocTestParser()
    test = parser.get_doctest(examples, dict(typed_before), name, None, 0)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    failed = runner.run(test, clear_globs=False).failed
    assert not failed, capsys.readouterr().out
    named = any(f"exhume.{name}" in each.source for each in test.examples)
    made = isinstance(value, type) and any(isinstance(each, value) for each in test.globs.values())
    assert named or made, f"the example of {name} does not show it"


def test_every_name_is_imported_from_where_it_is_defined():
    stub = ast.parse(Path(exhume.__file__).with_suffix(".pyi").read_text("utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names]
    assert names == PUBLIC_NAMES and sorted(names) == dir(exhume)
    assert len(set(names)) == len(names)
    for node in imports:
        for alias in node.names:
            # As type checkers want it of a name that a stub passes on.
            assert alias.asname == alias.name
            value = getattr(importlib.import_module(str(node.module)), alias.name)
            assert getattr(exhume, alias.name) is value
            assert value.__module__ == node.module, alias.name


def test_the_reference_page_shows_every_name_once():
    shown = [
        line.removeprefix("::: exhume.")
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("::: ")
    ]
    assert shown == PUBLIC_NAMES
    assert SETUP.strip() in PAGE.read_text(encoding="utf-8")


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'audt'"):
        _ = exhume.audt  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(exhume, "__path_of_nothing__")


def test_importing_it_loads_no_library_of_numbers_or_models():
    code = (
        "import sys, exhume; dir(exhume);"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pandas', 'sklearn')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
