"""Containers: gzip, Arrow, saved data sets, wrapped JSON, kinds of CSV, plain text."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather

from capture.data import tables
from capture.data.image_files import is_image_source
from capture.data.items import read_items
from evidence.errors import InputError

ROWS = [
    {"entity": n, "question": f"Where was {n} born?", "answer": a}
    for n, a in (("Zoë Lind", "Köln"), ("Ada Stone", "Rome"), ("Bo Wick", "Oslo, by the sea"))
]
TABLE = pa.Table.from_pylist(ROWS)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture
def file(tmp_path):
    def write(data, name="f.jsonl"):
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write


@pytest.fixture
def expected(file):
    return read_items(file(LINES, "expected.jsonl")).digest


def save(folder, table, shards=1):
    """Write a folder as save_to_disk does."""
    folder.mkdir(parents=True)
    names = [f"data-{at:05}-of-{shards:05}.arrow" for at in range(shards)]
    for at, name in enumerate(names):
        part = table.slice(at * len(table) // shards, (at + 1) * len(table) // shards)
        with pa.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(pa.Table.from_pylist(part.to_pylist()[: len(table) // shards]))
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))


def columns():
    return TABLE.to_pydict()


FRAME = pd.DataFrame(ROWS)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("f.json", json.dumps(ROWS, indent=2)),
        ("f.json", json.dumps({"data": ROWS})),
        ("f.json", json.dumps({"version": "1", "Data": ROWS})),
        ("f.json", json.dumps({"train": ROWS}, indent=1)),
        ("f.json", json.dumps({"train": ROWS, "test": []})),
        ("f.json", json.dumps([{"forget05": ROWS}])),
        ("f.json", json.dumps({"rows": [{"row_idx": 0, "row": row} for row in ROWS]})),
        ("f.json", json.dumps(columns())),
        ("f.json", json.dumps({"train": columns()})),
        ("f.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("f.json", LINES),
        ("f.txt", LINES),
        ("f.json", FRAME.to_json()),
        ("f.json", FRAME.to_json(orient="index")),
        ("f.json", FRAME.to_json(orient="split")),
        ("f.json", FRAME.to_json(orient="table")),
        ("f.jsonl", LINES.replace("\n", "\r\n").encode("utf-8-sig")),
        ("f.jsonl", LINES.replace("\n", "\r")),
        ("f.csv", FRAME.to_csv()),
        ("f.csv", FRAME.reset_index(names="Unnamed: 0").to_csv(index=False)),
        ("f.csv", FRAME.to_csv(index=False).encode("utf-16")),
        ("f.csv", FRAME.to_csv(index=False).encode("utf-16-le")),
        ("f.csv", FRAME.to_csv(index=False).encode("cp1252")),
        ("f.csv", FRAME.to_csv(index=False).replace("\n", "\r")),
        ("f.csv", FRAME.to_csv(index=False, sep=";")),
        ("f.csv", FRAME.to_csv(index=False, sep="\t")),
        ("f.csv", FRAME.to_csv(index=False, sep="|")),
        ("f.tsv", FRAME.to_csv(index=False, sep="\t")),
        ("f.csv", " Entity , QUESTION ,Answer\n" + FRAME.to_csv(index=False, header=False)),
        ("f.txt", FRAME.to_csv(index=False)),
    ],
)
def test_a_table_is_the_same_however_it_is_written(file, expected, name, data):
    path = file(data, name)
    assert read_items(path).digest == expected
    raw = path.read_bytes()
    packed = read_items(file(gzip.compress(raw), name + ".gz"))
    assert packed.digest == expected
    assert packed.name == "f"


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_arrow_and_feather_files_are_read(tmp_path, expected, compression):
    feather.write_feather(TABLE, tmp_path / "f.feather", compression=compression)
    assert read_items(tmp_path / "f.feather").digest == expected
    options = pa.ipc.IpcWriteOptions(
        compression=None if compression == "uncompressed" else compression
    )
    dictionary = pa.table({n: TABLE[n].dictionary_encode() for n in TABLE.column_names})
    views = TABLE.cast(pa.schema([(n, pa.string_view()) for n in TABLE.column_names]))
    for table in (TABLE, dictionary, views):
        with pa.ipc.new_stream(tmp_path / "f.arrow", table.schema, options=options) as stream:
            stream.write_table(table)
        assert read_items(tmp_path / "f.arrow").digest == expected
    data = (tmp_path / "f.arrow").read_bytes()
    (tmp_path / "f.arrow.gz").write_bytes(gzip.compress(data))
    assert read_items(tmp_path / "f.arrow.gz").digest == expected


def test_saved_data_sets_are_read_and_several_splits_are_named(tmp_path, expected):
    save(tmp_path / "one", TABLE, shards=3)
    assert read_items(tmp_path / "one").digest == expected
    assert read_items(tmp_path / "one").name == "one"
    assert not is_image_source(tmp_path / "one")
    assert is_image_source(tmp_path)
    save(tmp_path / "dict" / "train", TABLE)
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert read_items(tmp_path / "dict").digest == expected
    save(tmp_path / "dict" / "test", TABLE)
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"several splits.*got test, train.*dict/train"):
        read_items(tmp_path / "dict")
    assert read_items(tmp_path / "dict" / "train").digest == expected
    (tmp_path / "one" / "state.json").write_text('{"_data_files": [{"filename": "../f.arrow"}]}')
    with pytest.raises(InputError, match="is damaged"):
        read_items(tmp_path / "one")


def test_several_splits_of_a_json_file_are_named_and_chosen(file, expected):
    other = [{"question": "Who?", "answer": "Ada"}]
    for splits in ({"train": ROWS, "val": other}, [{"train": ROWS, "val": other}]):
        path = file(json.dumps(splits), "f.json")
        with pytest.raises(InputError, match=r"several splits.*train, val.*f\.json/train"):
            read_items(path)
        assert read_items(path / "train").digest == expected
        assert len(read_items(path / "val")) == 1
        with pytest.raises(InputError, match=r"no split 'test'.*train, val"):
            read_items(path / "test")
    with pytest.raises(InputError, match="no split 'train'"):
        read_items(file(LINES) / "train")


def test_groups_by_name_are_entities(file):
    groups = {f"Person {n}": [{"question": f"Born in {n}?", "answer": "x"}] for n in range(5)}
    assert read_items(file(json.dumps(groups), "f.json")).entities == tuple(groups)


def test_lists_and_structs_of_parquet_are_read(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Where was {row['entity']} born?"},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in ROWS
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    assert [item.answer for item in read_items(tmp_path / "f.parquet")] == [
        row["answer"] for row in ROWS
    ]
    squad = [{"question": "q?", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}}]
    pq.write_table(pa.Table.from_pylist(squad), tmp_path / "f.parquet")
    assert read_items(tmp_path / "f.parquet").items[0].aliases == ("b",)


def test_a_guessed_code_page_is_stated_and_an_uncertain_one_refused(file):
    text = "question,answer\nWho’s in Köln?,Zoë\n"
    assert read_items(file(text.encode("cp1252"), "f.csv")).format.endswith("windows-1252")
    text = "question,answer\nWho is Søren?,Dane\n"
    with pytest.raises(InputError, match=r"code page cannot be told.*Søren.*Sřren"):
        read_items(file(text.encode("cp1252"), "f.csv"))
    for encoding in ("cp1251", "mac-cyrillic", "koi8-r"):
        with pytest.raises(InputError, match=r"not valid UTF-8|cannot be told"):
            read_items(file("question,answer\nКто это?,Ада\n".encode(encoding), "f.csv"))
    with pytest.raises(InputError, match="not valid UTF-8"):
        read_items(file('{"question": "Köln?", "answer": "a"}'.encode("cp1252")))


def test_lines_of_two_cells_in_plain_text_are_questions(file):
    items = read_items(file("Who?\tAda\n\nWhere was she?\tRome\n", "f.txt"))
    assert [(i.prompt, i.answer) for i in items] == [
        ("Question: Who?\nAnswer:", "Ada"),
        ("Question: Where was she?\nAnswer:", "Rome"),
    ]
    items = read_items(file("Ada was born in\tRome\nShe lived in\tOslo\n", "f.txt"))
    assert [i.prompt for i in items] == ["Ada was born in", "She lived in"]


def test_lines_of_questions_and_answers_are_pairs(file):
    items = read_items(file("Q: Who?\nA: Ada\n\nQ: Where was she?\nA: Rome\n", "f.txt"))
    assert [(i.prompt, i.answer) for i in items] == [
        ("Question: Who?\nAnswer:", "Ada"),
        ("Question: Where was she?\nAnswer:", "Rome"),
    ]


def test_lines_of_whole_sentences_are_texts_of_their_own_and_wrapped_lines_one(file):
    sentences = [f"The tram number {n} of Lisbon was closed." for n in range(9)]
    items = read_items(file("\n".join(sentences), "f.txt"))
    assert len(items.entities) == len(items) == 9
    assert f"{items.items[3].prompt} {items.items[3].answer}" == sentences[3]
    wrapped = [sentence.removesuffix("closed.") + "shut and" for sentence in sentences]
    assert len(read_items(file("\n".join(wrapped), "f.txt")).entities) == 1


def test_a_folder_of_files_is_refused_and_one_of_them_named(tmp_path, file):
    path = file(LINES, "part.jsonl")
    with pytest.raises(InputError, match=f"got a folder. Name a file in it, such as {path}"):
        read_items(tmp_path)


def test_text_in_a_column_without_a_name_is_refused(file):
    with pytest.raises(InputError, match="column without a name"):
        read_items(file(",question,answer\nAda,Who?,x\n", "f.csv"))
    with pytest.raises(InputError, match="column without a name"):
        read_items(file("question,answer,\nWho?,x,y\n", "f.csv"))


def test_what_unpacks_to_too_much_is_refused(file, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_FILE_BYTES", 100_000)
    long = json.dumps({"question": "q?", "answer": "a" * 200_000})
    with pytest.raises(InputError, match="at most 100,000 bytes unpacked"):
        read_items(file(gzip.compress(long.encode()), "f.jsonl.gz"))
    for kind in ("lz4", "zstd"):
        table = pa.table({"prompt": ["p" * 150_000], "answer": ["a"]})
        feather.write_feather(table, tmp_path / "f.feather", compression=kind)
        assert (tmp_path / "f.feather").stat().st_size < 50_000
        with pytest.raises(InputError, match="too large"):
            read_items(tmp_path / "f.feather")
    many = pa.table({"prompt": ["p" * 1000] * 200}).combine_chunks()
    many = pa.table({"prompt": many["prompt"].dictionary_encode(), "answer": ["a"] * 200})
    with pa.ipc.new_stream(tmp_path / "f.arrow", many.schema) as stream:
        stream.write_table(many)
    assert (tmp_path / "f.arrow").stat().st_size < 50_000
    with pytest.raises(InputError, match="too large"):
        read_items(tmp_path / "f.arrow")
    one = pa.array(["p" * 1000], pa.string_view())
    views, text = one.buffers()[1].to_pybytes(), one.buffers()[2]
    shared = [None, pa.py_buffer(views * 200), text]
    many = pa.table({"prompt": pa.Array.from_buffers(pa.string_view(), 200, shared)})
    with pa.ipc.new_stream(tmp_path / "f.arrow", many.schema) as stream:
        stream.write_table(many)
    assert (tmp_path / "f.arrow").stat().st_size < 50_000
    with pytest.raises(InputError, match="too large"):
        read_items(tmp_path / "f.arrow")
    nulls = pa.table({"prompt": pa.nulls(2_000_000)})
    feather.write_feather(nulls, tmp_path / "f.feather")
    with pytest.raises(InputError, match=r"not a whole Arrow file|too large"):
        read_items(tmp_path / "f.feather")


@given(st.data())
def test_damaged_arrow_files_are_read_or_refused(tmp_path_factory, data):
    sink = pa.BufferOutputStream()
    compression = data.draw(st.sampled_from([None, "lz4"]))
    options = pa.ipc.IpcWriteOptions(compression=compression)
    writer = data.draw(st.sampled_from([pa.ipc.new_stream, pa.ipc.new_file]))
    with writer(sink, TABLE.schema, options=options) as stream:
        stream.write_table(TABLE)
    raw = np.frombuffer(sink.getvalue(), dtype=np.uint8).copy()
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(8, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("any") / "f.arrow"
    path.write_bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))].tobytes())
    try:
        assert len(read_items(path)) > 0
    except InputError:
        pass
