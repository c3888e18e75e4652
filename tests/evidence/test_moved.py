"""Old module names give the modules of the new names, and say so."""

import ast
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from evidence import moved

ROOT = Path(__file__).parents[2]


def python(arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("old", sorted(moved.renamed()))
def test_an_old_name_leads_to_a_module_and_never_to_another_old_name(old):
    new = moved.renamed()[old]
    assert new not in moved.renamed()
    path = ROOT.joinpath(*new.split(".")).with_suffix(".py")
    assert path.is_file()
    package = ROOT.joinpath(*old.split("."))
    assert not package.with_suffix(".py").exists()
    if package.is_dir():  # the finder is never asked: the package has to pass it on
        body = ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body
        assert ast.unparse(body[-1]) == f"__getattr__ = moved.forward({old!r}, {new!r})"


def test_an_old_name_is_the_new_module_itself(monkeypatch):
    (old, new), *_ = [
        pair
        for pair in moved.renamed().items()
        if pair[0].startswith("evidence.") and not (ROOT / pair[0].replace(".", "/")).is_dir()
    ]
    monkeypatch.delitem(sys.modules, old, raising=False)  # another test may have asked
    with pytest.warns(DeprecationWarning, match=f"{old} moved to {new}"):
        found = import_module(old)
    assert found is import_module(new)
    assert found.__spec__ is not None and found.__spec__.name == new


def test_a_package_named_like_a_module_that_moved_passes_on_its_names():
    if moved.renamed().get("capture.scoring") is None:
        pytest.skip("not moved yet")
    from capture.scoring.answers import score_answers

    with pytest.warns(DeprecationWarning, match=r"capture\.scoring moved to"):
        from capture.scoring import score_answers as found
    assert found is score_answers
    with pytest.raises(ImportError):
        from capture.scoring import nothing_of_this_name  # noqa: F401
    import capture.scoring

    assert not hasattr(capture.scoring, "__wrapped__")


def test_the_warning_names_the_line_that_imports():
    old = next(name for name in moved.renamed() if name.startswith("evidence."))
    code = f"import warnings; warnings.simplefilter('always')\n\nimport {old}\n"
    done = python(["-c", code])
    assert done.returncode == 0, done.stderr
    assert "<string>:3: DeprecationWarning" in done.stderr


def test_the_old_way_to_run_the_command_still_runs_it():
    done = python(["-W", "ignore::DeprecationWarning", "-m", "audits", "--help"])
    assert done.returncode == 0, done.stderr
    assert "audit" in done.stdout


def test_names_that_never_were_are_not_found():
    assert find_spec("evidence.no_such_module") is None
    with pytest.raises(ModuleNotFoundError):
        import_module("evidence.no_such_module")


def test_each_old_name_in_a_module_leads_to_a_name_that_is_there():
    wrong = []
    for module, changed in moved.renamed_names().items():
        names = vars(import_module(module))
        for target in changed.values():
            home, _, new = target.rpartition(":")
            if new not in vars(import_module(home or module)):
                wrong.append(f"{home or module}.{new} is gone")
        wrong += [f"{module}.{old} is back" for old in changed if old in names]
    assert not wrong


def test_an_old_name_gives_the_function_of_the_new_name_and_says_so():
    code = (
        "import warnings; warnings.simplefilter('always')\n"
        "from audits.contrast import hear\n"
        "from capture.scoring.contrast import score_questions\n"
        "assert hear is score_questions\n"
    )
    done = python(["-c", code])
    assert done.returncode == 0, done.stderr
    assert "<string>:2: DeprecationWarning" in done.stderr
    assert "hear moved to score_questions" in done.stderr


def test_an_old_name_in_a_module_that_stayed_is_found_there():
    from evidence import seeds

    with pytest.warns(DeprecationWarning, match="LARGEST_SEED moved to MAX_SEED"):
        assert seeds.LARGEST_SEED == seeds.MAX_SEED
    with pytest.raises(AttributeError, match="no attribute 'NO_SUCH_NAME'"):
        _ = seeds.NO_SUCH_NAME
