"""The same facts give the same items in any order of rows, any file and any case of names."""

import csv
import json
import random
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import feather

from capture.data.items import normalize_text, read_items
from evidence.errors import InputError

names = st.sampled_from(
    ["Ada Stone", "Bo Wick", "Cy Rowe", "Di Marsh", "Ed Pike", "Fay Cole", "Zoë Åberg", "Zoë Lind"]
)
relations = st.sampled_from(
    ["Where was {} born?", "What is the job of {}?", "Who taught {}?", "When did {} leave Rome?"]
)
texts = st.text(st.characters(categories=["L", "N", "Zs", "P"], max_codepoint=0x24F), min_size=1)
answers = texts.map(lambda t: " ".join(t.split())).filter(
    lambda t: t and t.isprintable() and t[0] not in "[{" and "|" not in t and "\x00" not in t
)
rows = st.lists(
    st.tuples(names, relations, answers).map(
        lambda each: {"entity": each[0], "question": each[1].format(each[0]), "answer": each[2]}
    ),
    min_size=1,
    max_size=12,
)
# A data set goes through files of one folder, which hypothesis would call a shared fixture.
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


def as_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_items(path, name="f")


def as_csv(path, rows, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return read_items(path, name="f")


@same_folder
@given(rows)
def test_every_container_gives_the_same_items(tmp_path, rows):
    table = pa.Table.from_pylist(rows)
    expected = as_jsonl(tmp_path / "f.jsonl", rows)
    pq.write_table(table, tmp_path / "f.parquet")
    feather.write_feather(table, tmp_path / "f.feather")
    with pa.ipc.new_stream(tmp_path / "f.arrow", table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "f.json").write_text(json.dumps({"data": rows}, indent=2))
    (tmp_path / "g.json").write_text(json.dumps(table.to_pydict()))
    found = [
        as_csv(tmp_path / "f.csv", rows),
        as_csv(tmp_path / "f.tsv", rows, "\t"),
        *(
            read_items(tmp_path / name, name="f")
            for name in ("f.parquet", "f.feather", "f.arrow", "f.json", "g.json")
        ),
    ]
    assert {items.digest for items in found} == {expected.digest}
    assert {items.format for items in found} == {expected.format}


@same_folder
@given(rows, st.randoms())
def test_the_order_of_rows_changes_no_item(tmp_path, rows, chance):
    mixed = list(rows)
    chance.shuffle(mixed)
    assert set(as_jsonl(tmp_path / "f.jsonl", rows)) == set(as_jsonl(tmp_path / "g.jsonl", mixed))
    bare = [{k: v for k, v in row.items() if k != "entity"} for row in rows]
    mixed_bare = [{k: v for k, v in row.items() if k != "entity"} for row in mixed]
    first, second = as_jsonl(tmp_path / "h.jsonl", bare), as_jsonl(tmp_path / "i.jsonl", mixed_bare)
    assert set(first) == set(second)


@same_folder
@given(
    rows, st.sampled_from([("Entity", "QUESTION", "Answer"), (" entity", "question ", "answer")])
)
def test_the_case_of_names_changes_nothing_and_a_mapping_little(tmp_path, rows, renamed):
    expected = as_jsonl(tmp_path / "f.jsonl", rows)
    other = [dict(zip(renamed, row.values(), strict=True)) for row in rows]
    assert as_jsonl(tmp_path / "g.jsonl", other) == expected
    mapped = [{"who": r["entity"], "ask": r["question"], "gold": r["answer"]} for r in rows]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mapped))
    items = read_items(
        tmp_path / "h.jsonl", columns={"question": "ask", "answer": "gold", "entity": "who"}
    )
    assert items.items == expected.items


def test_shuffled_multiple_choice_and_copies_keep_their_ids(tmp_path):
    rows = [
        {"question": "Which is true?", "choices": [a, b], "answer": at % 2, "subject": "law"}
        for at, (a, b) in enumerate([("x", "y"), ("y", "x"), ("x", "y"), ("x", "z"), ("z", "x")])
    ]
    first = set(as_jsonl(tmp_path / "f.jsonl", rows))
    for seed in range(5):
        mixed = list(rows)
        random.Random(seed).shuffle(mixed)
        assert set(as_jsonl(tmp_path / "g.jsonl", mixed)) == first
    assert len(first) == len(rows)


def test_both_unicode_spellings_of_a_name_are_the_same_text(tmp_path):
    composed, decomposed = "Ilse Vorl\u00e4nder", "Ilse Vorla\u0308nder"
    sets = [
        as_jsonl(
            tmp_path / f"{at}.jsonl",
            [{"entity": n, "prompt": f"{n} was born in", "answer": n, "alternatives": [n + "!"]}],
        )
        for at, n in enumerate((composed, decomposed))
    ]
    assert sets[0].items == sets[1].items
    assert sets[1].entities == (composed,)
    assert normalize_text(decomposed) == normalize_text(composed)
    both = as_jsonl(
        tmp_path / "both.jsonl",
        [
            {"entity": n, "prompt": f"{n} is{at}", "answer": "a"}
            for at, n in enumerate((decomposed, composed))
        ],
    )
    assert both.entities == (composed,)


def test_questions_in_decomposed_letters_are_understood_the_same(tmp_path):
    names = ("Zoë Åberg", "Émile Roy", "Søren Löwe", "Ilse Möhn")
    rows = [
        {"question": ask.format(name), "answer": f"In {name}."}
        for name in names
        for ask in ("Where was {} born?", "Who taught {}?")
    ]
    decomposed = unicodedata.normalize("NFD", json.dumps(rows, ensure_ascii=False))
    (tmp_path / "d.json").write_text(decomposed)
    (tmp_path / "c.json").write_text(json.dumps(rows))
    composed = read_items(tmp_path / "c.json", name="f")
    assert read_items(tmp_path / "d.json", name="f") == composed
    assert set(composed.entities) == set(names)


def test_too_many_marks_are_refused_before_they_are_normalized(tmp_path):
    path = tmp_path / "f.jsonl"
    row = {"prompt": "a" + "\u0308\u0316" * 400_000, "answer": "b"}
    path.write_text(json.dumps(row, ensure_ascii=False))
    with pytest.raises(InputError, match="too many combining marks"):
        read_items(path)
