"""Mappings of fields to columns."""

import json

import pytest

from capture.data.formats.columns import parse_columns
from capture.data.items import read_items
from evidence.errors import InputError

ROWS = [
    {"q": f"Where was {n} born?", "gold": "Rome", "who": n, "w1": "Oslo", "w2": "Rome"}
    for n in ("Ada", "Bo")
]


@pytest.fixture
def read(tmp_path):
    def from_rows(rows, **options):
        path = tmp_path / "facts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_items(path, **options)

    return from_rows


def test_a_mapping_is_parsed():
    assert parse_columns("prompt=question, answer=labels,entity = the subject") == {
        "prompt": "question",
        "answer": "labels",
        "entity": "the subject",
    }
    assert parse_columns("question=a=b") == {"question": "a=b"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("prompt", "maps no field"),
        ("prompt=", "maps no field"),
        ("=x", "maps no field"),
        ("promt=q", "'promt' is not a field"),
        ("prompt=q,prompt=r", "mapped twice"),
        ("prompt=q,question=r", "both prompt and question"),
    ],
)
def test_a_bad_mapping_is_refused(text, why):
    with pytest.raises(InputError, match=why):
        parse_columns(text)


def test_a_prompt_is_taken_as_it_stands_and_a_question_is_put_as_one(read):
    mapping = {"answer": "gold", "entity": "who"}
    (first, _) = read(ROWS, columns={"prompt": "q"} | mapping)
    assert (first.prompt, first.relation) == ("Where was Ada born?", "")
    items = read(ROWS, columns={"question": "Q"} | mapping)
    assert items.items[0].prompt == "Question: Where was Ada born?\nAnswer:"
    assert items.entities == ("Ada", "Bo")


def test_options_are_one_column_or_several(read):
    mapping = {"question": "q", "choices": "w1+w2", "answer": "gold"}
    (item, _) = read(ROWS, columns=mapping)
    assert (item.answer, item.choices) == ("Rome", ("Oslo", "Rome"))
    numbered = [row | {"gold": "2"} for row in ROWS]
    assert read(numbered, columns=mapping).items == read(ROWS, columns=mapping).items
    listed = [{"q": row["q"], "l": ["Oslo", "Rome"], "gold": 1} for row in ROWS]
    mapping = {"prompt": "q", "choices": "l", "answer": "gold"}
    (item, _) = read(listed, columns=mapping)
    assert (item.prompt, item.choices) == ("Where was Ada born?", ("Oslo", "Rome"))


def test_a_text_is_cut_and_a_conversation_read(read):
    (item,) = read(
        [{"body": "one two three four", "who": "Ada"}], columns={"text": "body", "entity": "who"}
    )
    assert (item.prompt, item.answer, item.entity) == ("one two", "three four", "Ada")
    assert item.passage
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada"}]
    (item,) = read([{"log": turns}], columns={"messages": "log"})
    assert (item.prompt, item.answer) == ("Question: Who?\nAnswer:", "Ada")


def test_columns_inside_nested_rows_can_be_mapped(read):
    rows = [{"name": "Ada", "qa": [{"ask": "Born?", "tell": "Rome"}]}]
    (item,) = read(rows, columns={"question": "ask", "answer": "tell", "entity": "name"})
    assert (item.answer, item.entity) == ("Rome", "Ada")


def test_a_conversation_without_an_answer_is_refused(read):
    with pytest.raises(InputError, match="has no answer"):
        read([{"log": [{"role": "user", "content": "Who?"}]}], columns={"prompt": "log"})


def test_unknown_columns_are_named(read):
    with pytest.raises(InputError, match="no column 'x' for question"):
        read(ROWS, columns={"question": "x", "answer": "gold"})
    with pytest.raises(InputError, match="not a mapping"):
        read(ROWS, columns="question=q")
