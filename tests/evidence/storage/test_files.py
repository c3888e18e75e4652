"""Files that are whole or absent when written, and bounded when read."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evidence.errors import InputError
from evidence.storage.files import atomic_folder, disk_errors, read_json, write_atomic
from evidence.storage.regular_files import read_bytes


def test_json_comes_back(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"é": [1, 2.5, null, "\\ud83d\\ude00"]}', encoding="utf-8")
    assert read_json(path) == {"é": [1, 2.5, None, "😀"]}
    path.write_text("[]", encoding="utf-8")
    assert read_json(path, list) == []


BAD = {
    "empty": (b"", "Expecting value"),
    "cut": (b'{"a": [1, 2', "Expecting"),
    "bytes": (b"\x93\x00\xff", "not valid UTF-8"),
    "latin": ('{"a": "é"}'.encode("latin-1"), "not valid UTF-8"),
    "twice": (b'{"a": {"b": 1, "b": 1}}', "'b' occurs twice"),
    "NaN": (b'{"a": NaN}', "NaN is not a JSON number"),
    "infinity": (b'{"a": [-Infinity]}', "Infinity is not a JSON number"),
    "overflow": (b'{"a": 1e999}', "too large"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    "deep": (b'{"a":' * 200 + b"1" + b"}" * 200, "more than 100 deep"),
    "deeper": (b"[" * 100_000, "more than 100 deep"),
    "surrogate": (b'{"a": "\\ud800"}', "surrogate"),
    "surrogate key": (b'{"\\uDC00": 1}', "surrogate"),
    "list": (b"[1]", "list, not dict"),
    "null": (b"null", "NoneType, not dict"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_json_is_one_error(tmp_path, name):
    content, message = BAD[name]
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_json(path, fix="write it again")
    assert "bad.json" in str(caught.value) and "write it again" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (
        pipe,
        loop,
        tmp_path,
        tmp_path / "absent",
        tmp_path / "absent" / "below",
        tmp_path / ("n" * 300),
        tmp_path / "nul\0byte",
        Path("/dev/zero"),
    ):
        with pytest.raises(InputError):
            read_bytes(path, 100)
    full = tmp_path / "full"
    full.write_bytes(b"x" * 101)
    with pytest.raises(InputError, match="at most 100 bytes"):
        read_bytes(full, 100)
    assert len(read_bytes(full, 101)) == 101


@pytest.mark.parametrize(
    "path",
    [
        "/dev/full/x",
        "/proc/exhume",
        "/sys/exhume/x",
        "{}/file/x",
        "{}/folder",
        "{}/loop/x",
        "{}/" + "n" * 300,
        "{}/" + "n/" * 3000,
        "{}/nul\0byte",
        "{}/dangling/x",
    ],
)
def test_a_place_that_cannot_be_written_is_one_error(tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to("/proc/nowhere")
    place = Path(path.format(tmp_path))
    seen = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="could not be written: "):
        write_atomic(place, "text")
    with pytest.raises(InputError, match="could not be written: "), atomic_folder(place) as folder:
        (folder / "x").touch()
    assert sorted(tmp_path.rglob("*")) == seen


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_whatever_the_system_says_becomes_a_sentence(tmp_path, number):
    with pytest.raises(InputError, match=r"could not be written: \.?[a-z]"):
        with disk_errors(tmp_path):
            raise OSError(number, os.strerror(number))


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from evidence.errors import InputError
from evidence.storage.files import atomic_folder, write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
def by_torch(folder):
    torch.save(torch.zeros(99999), folder / "x")
def by_safetensors(folder):
    save_file({"x": torch.zeros(99999)}, folder / "x")
def by_hand(folder):
    (folder / "x").write_bytes(bytes(99999))
out = Path(sys.argv[1])
for write in (by_torch, by_safetensors, by_hand):
    try:
        with atomic_folder(out / "model") as folder:
            write(folder)
    except InputError as error:
        print(error)
try:
    write_atomic(out / "text", "x" * 99999)
except InputError as error:
    print(error)
"""


def test_a_limit_on_file_sizes_met_by_any_library_is_told(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path],
        capture_output=True,
        encoding="utf-8",
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("could not be written: ") == 4
    assert done.stdout.count("ulimit -f") == 4
    assert list(tmp_path.iterdir()) == []


def test_what_fails_while_a_folder_is_made_is_not_the_folders_fault(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "a"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
