"""Files that are whole or absent when written, and bounded when read."""

import os

import pytest

from evidence.errors import InputError
from evidence.files import read_bounded, read_json


def test_json_comes_back(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"é": [1, 2.5, null, "\\ud83d\\ude00"]}', encoding="utf-8")
    assert read_json(path) == {"é": [1, 2.5, None, "😀"]}
    path.write_text("[]", encoding="utf-8")
    assert read_json(path, list) == []


BAD = {
    "empty": (b"", "Expecting value"),
    "cut": (b'{"a": [1, 2', "Expecting"),
    "bytes": (b"\x93\x00\xff", "no UTF-8"),
    "latin": ('{"a": "é"}'.encode("latin-1"), "no UTF-8"),
    "twice": (b'{"a": {"b": 1, "b": 1}}', "'b' stands there twice"),
    "NaN": (b'{"a": NaN}', "NaN is no JSON number"),
    "infinity": (b'{"a": [-Infinity]}', "Infinity is no JSON number"),
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
    content, said = BAD[name]
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
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
        "/dev/zero",
    ):
        with pytest.raises(InputError):
            read_bounded(path, 100)
    full = tmp_path / "full"
    full.write_bytes(b"x" * 101)
    with pytest.raises(InputError, match="at most 100 bytes"):
        read_bounded(full, 100)
    assert len(read_bounded(full, 101)) == 101
