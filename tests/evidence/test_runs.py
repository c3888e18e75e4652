"""One run at a time, scratch that is swept, and nothing deleted that is not ours."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evidence.errors import InputError
from evidence.storage import locks, scratch
from evidence.storage.files import atomic_folder, write_atomic
from evidence.storage.locks import LOCK, LockHolder, creation_lock, run_lock
from evidence.storage.removal import delete_owned_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def elsewhere():
    """Start Python in processes of their own; they are killed at the end."""
    started = []

    def start(code: str, *arguments: object) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


HOLD = """
import sys, time
from pathlib import Path
from evidence.storage.locks import run_lock, creation_lock
with (run_lock if sys.argv[1] == "run" else creation_lock)(Path(sys.argv[2])):
    print("ready", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def test_a_second_run_is_told_who_holds_the_folder(tmp_path, elsewhere):
    out = tmp_path / "out"
    holder = elsewhere(HOLD, "run", out, 60)
    before = [path.read_bytes() for path in out.iterdir()]
    with pytest.raises(InputError, match="another run") as caught, run_lock(out):
        pytest.fail("two runs at once")
    assert f"process {holder.pid} on " in str(caught.value)
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", str(caught.value))
    assert "run" in str(caught.value) and "60" in str(caught.value)
    assert [path.read_bytes() for path in out.iterdir()] == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (out / LOCK).exists()  # left by the one that was killed, held by nobody
    with run_lock(out):
        assert json.loads((out / LOCK).read_text())["process"] == os.getpid()
    assert list(out.iterdir()) == []


def test_a_folder_that_stays_empty_is_taken_away_again(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path / "a"):
        (tmp_path / "a" / "kept").touch()
    assert [each.name for each in (tmp_path / "a").iterdir()] == ["kept"]


def test_two_runs_of_one_process_exclude_each_other(tmp_path):
    with run_lock(tmp_path), pytest.raises(InputError, match="another run"), run_lock(tmp_path):
        pytest.fail("two runs at once")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused(tmp_path, kind):
    if kind == "link":
        (tmp_path / LOCK).symlink_to(tmp_path / "thesis")
    elif kind == "pipe":
        os.mkfifo(tmp_path / LOCK)
    else:
        (tmp_path / LOCK).mkdir()
    with pytest.raises(InputError), run_lock(tmp_path):
        pass
    assert not (tmp_path / "thesis").exists()


def test_a_forged_holder_cannot_move_the_cursor(tmp_path):
    path = tmp_path / LOCK
    path.write_text(
        json.dumps({"process": 1, "host": "\x1b[2Jhost\n", "since": "now", "command": "x" * 9999})
    )
    found = LockHolder.read(path)
    assert found is not None and str(found).isprintable() and len(str(found)) < 500
    for text in ("", "[]", '{"process": "x"}', "\xff", '{"process": 1}'):
        path.write_text(text, encoding="latin-1")
        assert LockHolder.read(path) is None


def test_without_locks_a_warning_says_so(tmp_path, monkeypatch):
    def no_locks(handle, blocking):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(scratch, "lock_descriptor", no_locks)
    with pytest.warns(UserWarning, match="without locks"), run_lock(tmp_path):
        pass
    write_atomic(tmp_path / "a", "text")
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "c").touch()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "b"]


def test_a_second_maker_waits_and_finds_it_made(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.02)
    target = tmp_path / "cache" / "model"
    elsewhere(HOLD, "maker", target, 0.5)
    start = time.monotonic()
    with creation_lock(target):
        assert time.monotonic() - start > 0.1
    assert list((tmp_path / "cache").iterdir()) == []


MAKE = """
import sys, time
from pathlib import Path
from evidence.storage.files import atomic_folder
from evidence.storage.scratch import scratch_file
target = Path(sys.argv[2])
if sys.argv[1] == "folder":
    with atomic_folder(target) as folder:
        (folder / "weights").write_bytes(b"0" * 1000)
        print("ready", flush=True)
        time.sleep(60)
else:
    with scratch_file(target) as (handle, path):
        path.write_bytes(b"0" * 1000)
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_swept_and_what_lives_is_not(tmp_path, elsewhere, kind):
    killed = elsewhere(MAKE, kind, tmp_path / "killed")
    alive = elsewhere(MAKE, kind, tmp_path / "alive")
    assert len(list(tmp_path.iterdir())) == 2
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    mine = tmp_path / ".mine.12345678.exhume.txt"  # nearly a name of ours
    mine.touch()
    link = tmp_path / ".link.12345678.exhume"
    link.symlink_to(tmp_path)
    write_atomic(tmp_path / "next", "text")
    left = {each.name for each in tmp_path.iterdir()} - {mine.name, link.name, "next"}
    assert len(left) == 1 and left.pop().startswith(".alive.")
    alive.send_signal(signal.SIGKILL)
    alive.wait()
    with atomic_folder(tmp_path / "last") as folder:
        (folder / "x").touch()
    assert {each.name for each in tmp_path.iterdir()} == {
        mine.name, link.name, "next", "last",
    }  # fmt: skip


def test_a_scratch_folder_without_owner_is_swept_when_it_is_old(tmp_path):
    place = tmp_path / ".x.12345678.exhume"
    place.mkdir()
    write_atomic(tmp_path / "a", "text")
    assert place.exists()  # it may be in the making
    os.utime(place, (0, 0))
    write_atomic(tmp_path / "a", "text")
    assert not place.exists()


def test_names_as_long_as_they_may_be_can_be_written(tmp_path):
    for name in ("n" * 255, "é" * 127):
        write_atomic(tmp_path / name, "text")
        with atomic_folder(tmp_path / name[:-1]) as folder:
            (folder / "x").touch()
    assert all(len(each.name) > 100 for each in tmp_path.iterdir())


def test_what_is_written_may_be_read_as_the_user_allows(tmp_path):
    before = os.umask(0o022)
    try:
        write_atomic(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace

    def noted(handle):
        events.append(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("named"), replace(a, b)))
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("a")
        (folder / "below").mkdir()
        (folder / "below" / "b").write_text("b")
    before, after = events[: events.index("named")], events[events.index("named") + 1 :]
    assert [Path(each).name for each in before if each.endswith(("/a", "/b"))]
    assert {str(folder), str(folder / "a"), str(folder / "below" / "b")} <= set(before)
    assert str(folder / "below") in before
    assert after == [str(tmp_path)]
    events.clear()
    write_atomic(tmp_path / "text", "text")
    assert [events.index("named"), len(events)] == [1, 3]


OURS = re.compile(r"a\.json|below/\d+")


def test_a_folder_of_ours_is_deleted_and_no_other(tmp_path):
    folder = tmp_path / "folder"

    def fill():
        (folder / "below").mkdir(parents=True, exist_ok=True)
        (folder / "a.json").touch()
        (folder / "below" / "1").touch()
        (folder / "below" / ".2.12345678.exhume").touch()  # left by a kill

    fill()
    delete_owned_folder(folder, OURS)
    assert list(tmp_path.iterdir()) == []
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1").touch()
    for spoil in (
        lambda: (folder / "thesis.txt").touch(),
        lambda: (folder / ".env").touch(),
        lambda: (folder / "below" / "1.txt").touch(),
        lambda: (folder / "below" / "2").symlink_to(outside / "1"),
        lambda: (folder / "other").symlink_to(outside),
        lambda: os.mkfifo(folder / "pipe"),
    ):
        fill()
        spoil()
        seen = sorted(folder.rglob("*"))
        with pytest.raises(InputError, match="would have to be deleted"):
            delete_owned_folder(folder, OURS)
        assert sorted(folder.rglob("*")) == seen
        for each in seen:
            if each.is_symlink() or not each.is_dir():
                each.unlink()
    link = tmp_path / "link"
    link.symlink_to(outside)
    for each in (link, tmp_path / "absent"):
        with pytest.raises(InputError, match="link"):
            delete_owned_folder(each, re.compile(".*"))
    assert (outside / "1").exists()
