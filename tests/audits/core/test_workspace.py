"""The work folder: resumes, refuses what is another's, leaves nothing half-written."""

import os
import time

import pytest

from audits.output.workspace import StageRunner, Workspace, canonical_json
from evidence.errors import InputError
from evidence.results import AxisResult
from evidence.storage.files import write_atomic


def test_a_finished_stage_is_not_computed_again(tmp_path):
    space = Workspace.open(tmp_path / "out", {"a": 1}, fresh=False)
    calls = []
    _, again = (space.run("x", lambda: calls.append(1) or {"value": 0.1}) for _ in range(2))
    assert len(calls) == 1
    assert again.result == {"value": 0.1}


def test_a_stage_that_fails_leaves_nothing(tmp_path):
    space = Workspace.open(tmp_path / "out", {"a": 1}, fresh=False)
    with pytest.raises(ZeroDivisionError):
        space.run("x", lambda: 1 / 0)
    assert not list((tmp_path / "out" / "work").glob("stages/*"))


def test_fresh_results_come_back_through_their_text(tmp_path):
    space = Workspace.open(tmp_path / "out", {"a": 1}, fresh=False)
    assert space.run("x", lambda: {"t": (1, 2)}).result == {"t": [1, 2]}


def test_the_same_inputs_resume_and_others_are_refused(tmp_path):
    root = tmp_path / "out"
    Workspace.open(root, {"a": 1}, fresh=False).run("x", lambda: 1)
    assert Workspace.open(root, {"a": 1}, fresh=False).run("x", lambda: 2).result == 1
    with pytest.raises(InputError, match="another audit"):
        Workspace.open(root, {"a": 2}, fresh=False)
    assert Workspace.open(root, {"a": 2}, fresh=True).run("x", lambda: 2).result == 2


def test_foreign_files_are_never_touched(tmp_path):
    root = tmp_path / "out"
    root.mkdir()
    (root / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(InputError, match="not an audit's"):
            Workspace.open(root, {"a": 1}, fresh=fresh)
    assert (root / "thesis.tex").read_text() == "years of work"


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    path = tmp_path / "out"
    path.write_text("x")
    with pytest.raises(InputError, match="is a file"):
        Workspace.open(path, {}, fresh=False)


def test_not_a_number_cannot_enter_a_stage(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": float("nan")})


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "bytes", "deep"])
def test_a_damaged_stage_is_computed_again(tmp_path, damage):
    space = Workspace.open(tmp_path / "out", {"a": 1}, fresh=False)
    space.run("x", lambda: {"é": 0.25})
    path = tmp_path / "out" / "work" / "stages" / "x.json"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-9],
            "empty": b"",
            "changed": whole.replace(b"0.25", b"0.75"),
            "bytes": b"\xff" * 9,
            "deep": b"[" * 9999,
        }[damage]
    )
    assert space.run("x", lambda: {"é": 0.25}).result == {"é": 0.25}
    assert space.run("x", lambda: None).result == {"é": 0.25}


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_stage_that_lost_its_file_is_computed_again(tmp_path, damage):
    space = Workspace.open(tmp_path / "out", {"a": 1}, fresh=False)
    path = space.work / "planted.safetensors"
    calls = []

    def compute():
        calls.append(1)
        path.write_bytes(b"tensors")
        return {"made": True}

    for _ in range(2):
        space.run("x", compute, ["planted.safetensors"])
    assert len(calls) == 1
    path.unlink() if damage == "lost" else path.write_bytes(b"ten")
    space.run("x", compute, ["planted.safetensors"])
    assert len(calls) == 2 and path.read_bytes() == b"tensors"


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_no_file_of_a_stage(tmp_path, kind):
    space = Workspace.open(tmp_path / "out", {"a": 1}, fresh=False)
    path = space.work / "planted.safetensors"

    def compute():
        write_atomic(path, b"tensors")
        return {"made": True}

    space.run("x", compute, ["planted.safetensors"])
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
        space.run("x", compute, ["planted.safetensors"])
        assert path.read_bytes() == b"tensors"
    else:
        path.mkdir()
        with pytest.raises(InputError, match="could not be written: it is a folder"):
            space.run("x", compute, ["planted.safetensors"])


def test_an_axis_is_charged_with_the_stages_of_its_name(tmp_path):
    axis = AxisResult("behaviour", "?", "no_power")
    ledger = StageRunner(Workspace.open(tmp_path / "out", {"a": 1}, fresh=False))
    calls = []

    def compute():
        calls.append(1)
        return (0.5, 1.0)

    for _ in (0, 1):
        found = ledger.typed("behaviour-measured", tuple[float, ...], compute)
        assert found == (0.5, 1.0)
    assert len(calls) == 1  # the second is read, with its cost
    assert ledger.timed("behaviour-judged", lambda: axis) == axis
    results = ledger.with_cost({"behaviour": axis, "behaviours": axis})
    measured, judged = (ledger.cost[f"behaviour-{part}"] for part in ("measured", "judged"))
    assert results["behaviour"].seconds == measured["seconds"] + judged["seconds"] > 0
    assert results["behaviour"].peak_memory_bytes == max(
        each["peak_memory_bytes"] for each in (measured, judged)
    )
    assert results["behaviours"] == axis


def test_a_saved_stage_is_read_without_computing_it(tmp_path):
    space = Workspace.open(tmp_path / "out", {"a": 1}, fresh=False)
    StageRunner(space).typed("x", dict[str, float], lambda: {"a": 0.1})
    assert space.saved("x", dict[str, float]) == {"a": 0.1}
    with pytest.raises(InputError, match="does not hold the measurement y"):
        space.saved("y", dict[str, float])
    with pytest.raises(InputError, match="cannot be read"):
        space.saved("x", tuple[int, ...])


def test_a_stage_is_not_charged_with_the_stages_inside_it(tmp_path):
    ledger = StageRunner(Workspace.open(tmp_path / "out", {"a": 1}, fresh=False))

    def outer():
        ledger.stage("x-inner", lambda: time.sleep(0.2))
        return 1

    ledger.stage("x-measured", outer)
    inner, measured = (ledger.cost[name]["seconds"] for name in ("x-inner", "x-measured"))
    assert inner >= 0.2 > measured
    with pytest.raises(ZeroDivisionError):
        ledger.stage("x-fails", lambda: ledger.stage("x-y", lambda: 1 / 0))
    assert ledger.workspace.nested == []
