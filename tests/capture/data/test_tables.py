"""Hostile files end in one clear error that says where."""

import json

import pyarrow
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.data import tables
from capture.data.items import read_items
from evidence.errors import InputError

GOOD = b'{"prompt": "p", "answer": "a"}\n'


@pytest.fixture
def file(tmp_path):
    def write(data, name="f.jsonl"):
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="got nothing there"):
        read_items(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="got a folder"):
        read_items(tmp_path)


@pytest.mark.parametrize("name", ["f.jsonl", "f.csv", "f.json", "f"])
@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(file, name, data):
    with pytest.raises(InputError, match=r"is empty"):
        read_items(file(data, name))


def test_empty_arrays_tables_and_headers_are_empty_files(file, tmp_path):
    pq.write_table(pyarrow.table({"prompt": [], "answer": []}), tmp_path / "e.parquet")
    for path in (file("[]", "f.json"), file("prompt,answer\n", "f.csv"), tmp_path / "e.parquet"):
        with pytest.raises(InputError, match="is empty"):
            read_items(path)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"prompt": "p"', "not valid JSON"),
        (b'{"prompt": NaN, "answer": "a"}', "NaN is not a JSON number"),
        (b'{"a":' * 100_000, "nested more than 100 deep"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'["p", "a"]', "is not an item"),
        (b"7", "is not an item"),
        (b'{"prompt": "\xff", "answer": "a"}', "not valid UTF-8"),
        (b'{"prompt": "' + b"x" * 1_000_001 + b'"}', "line 3 is too long"),
        (b'{"prompt": 7, "answer": "a"}', "prompt has the wrong type"),
        (b'{"prompt": "p", "answer": 1987}', "answer has the wrong type"),
        (b'{"prompt": "p", "answer": null}', "has no answer"),
        (b'{"prompt": "p"}', "has no answer"),
        (b'{"answer": "a"}', "has no prompt"),
        (b'{"prompt": "p", "answer": " "}', "empty answer"),
        (b'{"prompt": "p", "answer": "a", "id": 1.5}', "id has the wrong type"),
        (b'{"prompt": "p", "answer": "a", "id": true}', "id has the wrong type"),
        (b'{"prompt": "p", "answer": "a", "entity": 5}', "entity has the wrong type"),
        (b'{"prompt": "p", "answer": "a", "alternatives": [1]}', "alternatives"),
        (b'{"prompt": "p", "answer": "a", "alternatives": {}}', "alternatives"),
        (b'{"prompt": "p", "answer": "\\ud800"}', "not valid Unicode"),
    ],
)
def test_a_bad_line_is_named(file, line, why):
    with pytest.raises(InputError, match=why) as caught:
        read_items(file(GOOD + b"\n" + line + b"\n" + GOOD))
    assert "line 3" in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_broken_array_names_the_line_and_a_bad_entry_its_place(file):
    with pytest.raises(InputError, match="line 3 is not valid JSON"):
        read_items(file(b"[\n" + GOOD.strip() + b",\n oops\n]", "f.json"))
    with pytest.raises(InputError, match="line 2 is not valid UTF-8"):
        read_items(file(b'[\n{"prompt": "\xff"}]', "f.json"))
    with pytest.raises(InputError, match="item 2 has no answer"):
        read_items(file(b"[" + GOOD + b', {"prompt": "p"}]', "f.json"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('p,"never closed\n', "line 2 is not valid CSV"),
        ('p,"a"b\n', "line 2 is not valid CSV"),
        ("p,a,b\n", "line 2 has another number of cells"),
        ("p\n", "line 2 has another number of cells"),
        ("p," + "x" * 200_000 + "\n", "field larger than field limit"),
        ("p,\n", "line 2 has no answer"),
        ('"p\nq",a\np,\n', "line 4 has no answer"),
    ],
)
def test_a_bad_csv_line_is_named(file, text, why):
    with pytest.raises(InputError, match=why):
        read_items(file("prompt,answer\n" + text, "f.csv"))


def test_two_columns_of_one_name_are_refused(file):
    with pytest.raises(InputError, match="two columns have the same name"):
        read_items(file("prompt,prompt,answer\na,b,c\n", "f.csv"))


def test_csv_lists_are_json_arrays_or_bars(file):
    text = (
        "\ufeffid,entity,prompt,answer,alternatives,paraphrases\n"
        'a,Peru,"Peru, is",Lima,"[""Oslo"", ""New, York""]",\n'
        "b,Peru,Peru has,Lima,Oslo | Rome,x|y\n"
        ",,,,,\n"
    )
    first, second = read_items(file(text, "f.csv"))
    assert first.prompt == "Peru, is"
    assert first.alternatives == ("Oslo", "New, York")
    assert first.paraphrases == ()
    assert second.alternatives == ("Oslo", "Rome")
    assert second.paraphrases == ("x", "y")
    for broken in ('"[""Oslo"""', "Oslo||Rome"):
        with pytest.raises(InputError, match="line 2: alternatives"):
            read_items(file(f"prompt,answer,alternatives\np,a,{broken}\n", "f.csv"))


@pytest.mark.parametrize(("mark", "name"), [(";", "f.csv"), ("\t", "f.tsv")])
def test_semicolons_and_tabs_separate_too(file, mark, name):
    (item,) = read_items(file(f"prompt{mark}answer\nPeru, is{mark}Lima\n", name))
    assert (item.prompt, item.answer) == ("Peru, is", "Lima")


def test_csv_jsonl_json_and_parquet_say_the_same(file, tmp_path):
    rows = [
        {
            "id": "a",
            "entity": "Peru",
            "relation": "capital",
            "prompt": "Peru is",
            "answer": "Lima",
            "alternatives": ["Oslo", "Rome"],
            "paraphrases": ["Where?"],
        }
    ]
    pq.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    cells = [json.dumps(v) if isinstance(v, list) else v for v in rows[0].values()]
    quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    sets = [
        read_items(file(json.dumps(rows[0]), "f.jsonl")),
        read_items(file(json.dumps(rows, indent=1), "f.json")),
        read_items(file(json.dumps(rows[0]), "noname")),
        read_items(file(",".join(rows[0]) + "\n" + quoted, "f.csv")),
        read_items(tmp_path / "f.parquet"),
    ]
    assert len({items.digest for items in sets}) == 1
    assert sets[0].name == "f"
    assert read_items(tmp_path / "f.parquet", name="mine").name == "mine"


def test_broken_and_oversized_parquet_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "f.parquet"
    pq.write_table(pyarrow.table({"prompt": ["p"] * 9, "answer": ["a"] * 9}), path)
    whole = path.read_bytes()
    for broken in (whole[:-6], whole[:60], b"PAR1" + b"\0" * 40):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="not a whole Parquet file"):
            read_items(path)
    path.write_bytes(whole)
    monkeypatch.setattr(tables, "MAX_ROWS", 8)
    with pytest.raises(InputError, match="is too large"):
        read_items(path)


def test_numbers_in_parquet_are_refused_with_their_row(tmp_path):
    path = tmp_path / "f.parquet"
    pq.write_table(pyarrow.table({"prompt": ["p", "q"], "answer": [1, 2]}), path)
    with pytest.raises(InputError, match="row 1: answer has the wrong type"):
        read_items(path)


def test_large_files_and_many_rows_are_refused(file, monkeypatch):
    path = file(GOOD * 9)
    monkeypatch.setattr(tables, "MAX_ROWS", 8)
    with pytest.raises(InputError, match="too many rows"):
        read_items(path)
    monkeypatch.setattr(tables, "MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="too large"):
        read_items(path)


def test_a_file_of_another_kind_is_refused(file):
    with pytest.raises(InputError, match="unsupported format"):
        read_items(file(b"\x80\x04\x95 a pickle", "f.pkl"))


@given(data=st.binary(max_size=200), name=st.sampled_from(["f.jsonl", "f.csv", "f.txt", "f"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, name):
    path = tmp_path_factory.mktemp("any") / name
    heads = (b"", b"prompt,answer\n", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"\x1f\x8b\x08\0")
    for content in (*(head + data for head in heads), b"PAR1" + data + b"PAR1"):
        path.write_bytes(content)
        try:
            assert len(read_items(path)) > 0
        except InputError:
            pass
