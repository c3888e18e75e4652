"""Item files that nobody should trust: each is refused in one line, at once."""

import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from audits.run.item_check import check_items
from capture.data.items import Item, ItemSet, normalize_text, read_items
from tests.security import hostile_items as hostile
from tests.security.refusals import refusal, refused

SECONDS = 5.0


def read(path) -> str:
    """What is said of a file; nothing may take long."""
    start = time.process_time()
    message = refusal(lambda: read_items(path))
    assert time.process_time() - start < SECONDS
    return message


@pytest.mark.parametrize("name", hostile.LINES)
def test_hostile_lines(tmp_path, name):
    path = tmp_path / "f.jsonl"
    path.write_bytes(hostile.LINE + hostile.LINES[name])
    assert "f.jsonl, line" in read(path) or "f.jsonl has" in read(path)


@pytest.mark.parametrize("name", hostile.FORMATS)
def test_hostile_rows_of_other_formats(tmp_path, name):
    path = tmp_path / "f.jsonl"
    path.write_bytes(hostile.FORMATS[name])
    assert "f.jsonl" in read(path)


@pytest.mark.parametrize("name", hostile.ARRAYS)
def test_hostile_arrays(tmp_path, name):
    path = tmp_path / "f.json"
    path.write_bytes(hostile.ARRAYS[name])
    assert "f.json" in read(path)


@pytest.mark.parametrize("name", hostile.ENCODINGS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "dat"])
def test_other_encodings_and_kinds(tmp_path, name, ending):
    path = tmp_path / f"f.{ending}"
    path.write_bytes(hostile.ENCODINGS[name])
    assert f"f.{ending}" in read(path)


@pytest.mark.parametrize("name", hostile.TABLES)
def test_hostile_tables(tmp_path, name):
    path = tmp_path / "f.csv"
    path.write_bytes(hostile.TABLES[name])
    assert "f.csv" in read(path)


@pytest.mark.parametrize("name", hostile.PARQUETS)
def test_hostile_parquet(tmp_path, name):
    path = tmp_path / "f.parquet"
    path.write_bytes(hostile.PARQUETS[name]())
    assert "f.parquet" in read(path)


@pytest.mark.parametrize("name", hostile.PLACES)
def test_what_lies_where_a_file_should(tmp_path, name):
    read(hostile.PLACES[name](tmp_path / "f.jsonl"))


@pytest.mark.parametrize("name", ["a pipe", "a link to itself", "a name with an escape"])
def test_the_command_line_says_the_same(tmp_path, name):
    path = hostile.PLACES[name](tmp_path / "f.jsonl")
    assert "cannot be read" in refused("validate", path, path)


@pytest.mark.parametrize(
    "given", [None, 5, 1.5, True, b"f.jsonl", [], {}, object(), "", "\0", "~nobody-here/f"]
)
def test_what_is_no_path(given):
    refusal(lambda: read_items(given))
    refusal(lambda: check_items(given, given))


@pytest.mark.parametrize("columns", [5, "prompt", ["prompt"], {1: "p"}, {"prompt": 2}])
def test_columns_that_name_nothing(tmp_path, columns):
    path = tmp_path / "f.jsonl"
    path.write_bytes(hostile.LINE)
    refusal(lambda: read_items(path, columns=columns))


@pytest.mark.parametrize("items", [None, "items", [1], (1,), (None,), 5])
def test_sets_of_what_are_no_items(items):
    refusal(lambda: ItemSet(items))


@pytest.mark.parametrize("field", ["id", "entity", "prompt", "answer", "relation"])
@pytest.mark.parametrize("value", [None, 7, b"a", ["a"], "a\0b", "\udc80", "\u0301" * 31])
def test_items_of_other_types(field, value):
    item = Item("i", "e", "p", "a")
    refusal(lambda: replace(item, **{field: value}))


def test_marks_as_people_write_them_are_read():
    text = "Việt Nam, हिन्दी, עִבְרִית, e" + "\u0301" * 30
    assert Item("i", "e", "p", text).answer == text
    assert normalize_text(text)


def test_numbers_and_types_beside_the_items_do_no_harm(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(
        hostile.item(score="9" * 250, when="1e300", meta='{"a": [[[1]]]}')
        + hostile.item(**{"\\u001b[2Jprompt": '"x"'})
    )
    assert len(read_items(path)) == 2


def test_columns_of_other_types_are_left_alone(tmp_path):
    import pyarrow

    table = pyarrow.table(
        {
            "prompt": ["p", "q"],
            "answer": pyarrow.array(["a", "b"]).dictionary_encode(),
            "alternatives": [["x", "y"], []],
            "when": pyarrow.array([1, 2**62], pyarrow.timestamp("us")),
            "meta": [{"a": 1}, None],
        }
    )
    path = tmp_path / "f.parquet"
    path.write_bytes(hostile.parquet(table))
    first, second = read_items(path)
    assert first.alternatives == ("x", "y") and second.answer == "b"


def test_one_line_said_many_times_is_read_at_once(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(hostile.LINE * 30_000)
    start = time.process_time()
    items = read_items(path)
    assert time.process_time() - start < SECONDS
    assert len({item.id for item in items}) == 30_000


def test_a_file_that_grows_and_grows_is_never_read_whole(tmp_path):
    """In a process of its own: a mistake here takes all memory there is.

    Nor does reading start a program or reach a network.
    """
    code = (
        "import sys; from capture.data.items import read_items\n"
        "from evidence.errors import InputError\n"
        "watched = 'subprocess.Popen', 'os.system', 'socket.connect'\n"
        "sys.addaudithook(lambda event, _: event in watched and print(event))\n"
        "for each in sys.argv[1:]:\n"
        "    try: read_items(each); print('read')\n"
        "    except InputError as error: print('refused')\n"
    )
    many = tmp_path / "many.json"
    many.write_bytes(b"[" + b"[" * 99 + b"]" * 99 + b",[]" * 300_000 + b"]")
    packed = tmp_path / "bomb.parquet"
    packed.write_bytes(hostile.PARQUETS["bomb"]())
    sparse = hostile.PLACES["a sparse terabyte"](tmp_path / "sparse.jsonl")
    paths = [many, packed, sparse, Path("/dev/zero"), Path("/proc/self/mem")]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
    )
    assert done.stdout.split() == ["refused"] * len(paths), done.stderr
