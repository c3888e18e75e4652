"""Output folders: one run at a time, and nothing is deleted that is not ours."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from audits.output.outputs import AUDIT, EXPERIMENT, OWNER_MARK, check_output_folder, hold_folder
from audits.output.workspace import Workspace
from evidence.errors import InputError
from evidence.storage.locks import LOCK, run_lock
from evidence.storage.scratch import SCRATCH_NAME
from testbeds.zoo.build import build_zoo
from tests.audits.core.test_bad_input import call
from tests.helpers.audit_documents import document

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, time
from pathlib import Path
from evidence.storage.locks import run_lock
with run_lock(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def finished(tmp_path):
    """An audit's folder with everything that an audit may write into one."""
    root = tmp_path / "out"
    space = Workspace.open(root, {"a": 1}, fresh=False)
    space.run("x", lambda: 1)
    group = space.work / "activations" / ("0" * 64)
    for name in ("resid.0/c/0/0", "resid.0/c/1/0/0", "resid.0/zarr.json", "zarr.json"):
        (group / name).parent.mkdir(parents=True, exist_ok=True)
        (group / name).touch()
    sae = space.work / "saes" / ("0" * 32)
    for folder in (sae, sae.with_name(sae.name + ".part")):
        folder.mkdir(parents=True)
        (folder / "sae_weights.safetensors").touch()
    (space.work / "planted.safetensors").touch()
    (root / "audit.json").write_text(json.dumps(document()), encoding="utf-8")
    (root / "report.html").touch()
    return root


def contents(root):
    """Every path below, with what is in it."""
    return {
        path.relative_to(root): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(root.rglob("*"))
    }


AUDITING = ("--original", "a", "--unlearned", "b", "--forget", "f", "--retain", "r")


@pytest.mark.parametrize(
    "command",
    [
        ["audit", *AUDITING, "--out"],
        ["audit", *AUDITING, "--fresh", "--out"],
        ["pga", "--out"],
        ["pga", "--fresh", "--out"],
        ["demo", "--out"],
        ["demo", "--fresh", "--out"],
        ["selftest", "--out"],
        ["compare", "{one}", "{two}", "--out"],
    ],
    ids=" ".join,
)
def test_a_second_run_in_a_folder_is_refused_and_touches_nothing(tmp_path, capfd, command):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "audit.json").write_text(json.dumps(document()))
    out = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], cwd=ROOT, stdout=subprocess.PIPE
    )
    with holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            before = contents(out)
            arguments = [
                each.format(one=tmp_path / "one", two=tmp_path / "two") for each in command
            ]
            assert call(*arguments, out) == 2
            message = capfd.readouterr().err
            assert "another run is writing to" in message
            assert f"process {holder.pid} on" in message
            assert contents(out) == before
        finally:
            holder.send_signal(signal.SIGKILL)


def test_a_report_is_not_written_again_under_a_running_audit(finished, capfd):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(finished)], cwd=ROOT, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        before = contents(finished)
        assert call("report", finished) == 2
        assert "another run" in capfd.readouterr().err
        assert contents(finished) == before
        holder.kill()
    assert call("report", finished) == 0
    assert (finished / "report.html").stat().st_size > 0
    assert not (finished / LOCK).exists()


def test_fresh_removes_all_that_is_ours(finished):
    (finished / "notes.txt").write_text("the user's")
    Workspace.open(finished, {"a": 2}, fresh=True)
    assert {str(path) for path in contents(finished)} == {
        "notes.txt", "work", "work/fingerprint.json",
    }  # fmt: skip


SPOILED = {
    "a thesis": lambda work: (work / "thesis.txt").write_text("years of work"),
    "a secret": lambda work: (work / ".env").write_text("TOKEN"),
    "a copy": lambda work: (work / "stages" / "x.json.bak").touch(),
    "a folder": lambda work: ((work / "mine").mkdir(), (work / "mine" / "x.json").touch()),
    "weights": lambda work: (work / "activations" / "model.safetensors").touch(),
    "a link": lambda work: (work / "stages" / "y.json").symlink_to("/etc/hosts"),
    "a linked folder": lambda work: (work / "other").symlink_to("/etc"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_somebody_put_into_our_folder_is_never_deleted(finished, name):
    SPOILED[name](finished / "work")
    before = contents(finished)
    with pytest.raises(InputError, match="would have to be deleted, but"):
        Workspace.open(finished, {"a": 2}, fresh=True)
    assert contents(finished) == before
    assert Workspace.open(finished, {"a": 1}, fresh=False)  # going on deletes nothing


@pytest.mark.parametrize("fresh", [False, True])
def test_a_work_folder_that_is_a_link_is_refused(finished, tmp_path, fresh):
    elsewhere = tmp_path / "elsewhere"
    (finished / "work").rename(elsewhere)
    (finished / "work").symlink_to(elsewhere)
    before = contents(tmp_path)
    for value in (1, 2):
        with pytest.raises(InputError, match="is a link"):
            Workspace.open(finished, {"a": value}, fresh)
    assert contents(tmp_path) == before


FOREIGN = {
    "a thesis": {"work/thesis.txt": "years of work"},
    "a thesis beside an audit of another tool": {
        "audit.json": '{"verdict": "guilty"}',
        "work/thesis.txt": "years of work",
    },
    "an empty audit": {"audit.json": "", "work/stages/x.json": "{}"},
    "a secret": {"work/.env": "TOKEN"},
    "a hidden file": {".env": "TOKEN"},
    "a name like ours": {"work/.x.12345678.exhume.txt": ""},
    "another's mark": {"work/fingerprint.json": '{"sha256": 5}', "report.html": ""},
    "another's results": {"work/fingerprint.json": "what is this", "audit.json": "what is this"},
    "another's folder of work": {"work/stages/x.json": "{}"},
}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("kind", [AUDIT, EXPERIMENT], ids=["audit", "pga"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_that_is_not_ours_is_refused(tmp_path, name, kind, fresh):
    root = tmp_path / "out"
    for path, text in FOREIGN[name].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    before = contents(root)
    with pytest.raises(InputError, match="not an"):
        Workspace.open(root, {"a": 1}, fresh, kind)
    with pytest.raises(InputError, match="not an"):
        check_output_folder(root, kind)
    assert contents(root) == before


def test_an_experiment_does_not_replace_an_audit(finished):
    before = contents(finished)
    for fresh in (False, True):
        with pytest.raises(InputError, match="another command"):
            Workspace.open(finished, {"pga": 1}, fresh, EXPERIMENT)
    assert contents(finished) == before


@pytest.mark.parametrize("text", ["", "{", '{"sha256": '])
def test_a_mark_that_was_cut_asks_for_fresh(tmp_path, text):
    root = tmp_path / "out"
    Workspace.open(root, {"a": 1}, fresh=False).run("x", lambda: 1)
    (root / "work" / "fingerprint.json").write_text(text)
    with pytest.raises(InputError, match="--fresh"):
        Workspace.open(root, {"a": 1}, fresh=False)
    Workspace.open(root, {"a": 1}, fresh=True)
    assert not (root / "work" / "stages").exists()


def test_a_result_whose_work_was_deleted_is_ours(finished):
    for path in sorted((finished / "work").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (finished / "work").rmdir()
    with pytest.raises(InputError, match="--fresh"):
        Workspace.open(finished, {"a": 1}, fresh=False)
    Workspace.open(finished, {"a": 1}, fresh=True)
    assert not (finished / "audit.json").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from audits.output.workspace import Workspace
from evidence.storage.locks import run_lock
root, step, steps = Path(sys.argv[1]), int(sys.argv[2]), 0
def kill_at(name):
    real = getattr(os, name)
    def fatal(*args, **named):
        global steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **named)
    setattr(os, name, fatal)
for name in ("open", "mkdir", "replace", "fsync", "unlink", "rmdir", "close"):
    kill_at(name)
with run_lock(root):
    Workspace.open(root, {"a": 2}, fresh=True).run("x", lambda: 2)
"""


def test_killed_at_any_step_of_a_fresh_start_nothing_old_is_taken_for_new(tmp_path):
    """A process that dies before each call to the system that changes a folder."""
    step = 0
    while True:
        step += 1
        root = tmp_path / str(step)
        space = Workspace.open(root, {"a": 1}, fresh=False)
        space.run("x", lambda: 1)
        (root / "audit.json").write_text(json.dumps(document()), encoding="utf-8")
        child = os.fork()
        if child == 0:
            try:
                exec(KILLED.replace("sys.argv[1]", repr(str(root))).replace(
                    "sys.argv[2]", str(step)
                ), {})  # fmt: skip
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        for path in root.rglob("*"):
            if SCRATCH_NAME.fullmatch(path.name):  # a minute later
                os.utime(path, (0, 0))
        with run_lock(root):
            reopened = Workspace.open(root, {"a": 2}, fresh=True)
            assert reopened.run("x", lambda: 2).result == 2
        assert not (root / "audit.json").exists()
        left = {str(path) for path in contents(root)}
        assert left == {
            "work", "work/fingerprint.json", "work/stages", "work/stages/x.json",
        }, step  # fmt: skip
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert step > 20


def test_a_command_takes_no_folder_that_is_somebody_elses(tmp_path):
    root = tmp_path / "out"
    (root / "unlearned").mkdir(parents=True)
    (root / "unlearned" / "model.safetensors").write_text("a month of training")
    before = contents(tmp_path)
    cleared = []
    for clear in (None, lambda: cleared.append(1)):
        with (
            pytest.raises(InputError, match="was not written by exhume demo"),
            hold_folder(root, "demo", ["items", "unlearned"], {"seed": 0}, clear),
        ):
            pytest.fail("took it")
    assert contents(tmp_path) == before and not cleared


def test_a_command_knows_its_own_folder_again(tmp_path):
    root = tmp_path / "out"
    cleared = []

    def go(seed=0, command="demo", clear=None):
        with hold_folder(root, command, ["items"], {"seed": seed}, clear):
            (root / "items").touch()

    def clear():
        cleared.append(1)

    go(clear=clear)
    assert not cleared  # there was nothing yet
    go()
    with pytest.raises(InputError, match="other settings"):
        go(seed=1)
    with pytest.raises(InputError, match="another command"):
        go(command="selftest", clear=clear)
    assert not cleared
    go(seed=1, clear=clear)
    assert cleared == [1]
    go(seed=1)
    (root / OWNER_MARK).write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        go(seed=1)


def test_a_command_that_fails_at_once_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), hold_folder(tmp_path / "a" / "b", "demo", ["items"], {}):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_links_in_a_commands_folder_are_not_followed(tmp_path):
    root = tmp_path / "out"
    with hold_folder(root, "demo", ["items"], {}):
        (root / "kept").touch()
    (root / "items").symlink_to(tmp_path)
    for clear in (None, lambda: pytest.fail("cleared")):
        with (
            pytest.raises(InputError, match="is a link"),
            hold_folder(root, "demo", ["items"], {}, clear),
        ):
            pytest.fail("followed it")


@pytest.mark.parametrize("name", ["compare.csv", "compare.html"])
def test_a_comparison_replaces_no_table_of_somebody_else(tmp_path, capfd, name):
    for folder in ("one", "two", "out"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "audit.json").write_text(json.dumps(document()))
    out = tmp_path / "out"
    (out / name).write_text("a year of measurements")
    command = ("compare", tmp_path / "one", tmp_path / "two", "--out", out)
    assert call(*command) == 2
    assert f"{name} was not written by exhume compare" in capfd.readouterr().err
    assert (out / name).read_text() == "a year of measurements"
    (out / name).unlink()
    assert call(*command) == 0 and call(*command) == 0
    assert (out / name).exists()


def test_the_zoo_replaces_no_list_and_no_model_of_somebody_else(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "my web app"}')
    with pytest.raises(InputError, match="not the list of a zoo"):
        build_zoo(tmp_path, seeds=[0])
    assert (tmp_path / "manifest.json").read_text() == '{"name": "my web app"}'
    from testbeds.zoo.build import _is_built

    model = tmp_path / "models" / "mine"
    model.mkdir(parents=True)
    (model / "model.safetensors").touch()
    with pytest.raises(InputError, match="not a planted model"):
        _is_built(model, {})
    (model / "card.json").write_text('{"license": "mit"}')
    with pytest.raises(InputError, match="does not belong to the zoo"):
        _is_built(model, {})
    assert (model / "model.safetensors").exists()
