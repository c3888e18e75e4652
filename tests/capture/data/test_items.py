"""Items, sets of them, and splits that never part an entity."""

import hashlib
import json
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.data.items import Item, ItemSet, normalize_text, read_items, split_entities
from evidence.errors import InputError


def some(entities=6, each=2):
    return ItemSet(
        tuple(
            Item(f"{e}-{n}", f"entity {e}", f"Fact {n} of entity {e} is", f"answer {n}")
            for n in range(each)
            for e in range(entities)
        ),
        "facts",
    )


def test_a_set_counts_iterates_and_lists_entities_in_order():
    items = some(3)
    assert len(items) == len(list(items)) == 6
    assert items.entities == ("entity 0", "entity 1", "entity 2")
    part = items.of_entities(["entity 2", "entity 0"])
    assert [item.id for item in part] == ["0-0", "2-0", "0-1", "2-1"]
    with pytest.raises(InputError, match="no entity 'entity 9'"):
        items.of_entities(["entity 9"])


@pytest.mark.parametrize("field", ["id", "entity", "prompt", "answer"])
@pytest.mark.parametrize("value", ["", "  ", 7, None, "\ud800"])
def test_a_field_must_be_real_text(field, value):
    good = Item("a", "b", "c", "d")
    with pytest.raises(InputError, match=field):
        replace(good, **{field: value})


@pytest.mark.parametrize("field", ["alternatives", "paraphrases"])
@pytest.mark.parametrize("value", [("",), (3,), ["list"], "text"])
def test_a_list_field_must_be_a_tuple_of_real_texts(field, value):
    with pytest.raises(InputError, match=field):
        Item("a", "b", "c", "d", **{field: value})


def test_an_id_used_twice_is_refused():
    item = Item("a", "b", "c", "d")
    with pytest.raises(InputError, match="id 'a'"):
        ItemSet((item, item))


def nfc(text):
    return unicodedata.normalize("NFC", text)


letters = st.characters(codec="utf-8", exclude_characters="\0")
words = st.text(letters, min_size=1, max_size=8).map(nfc).filter(str.strip)
facts = st.builds(
    Item,
    words.map(str.strip),
    words.map(str.strip),
    words,
    words,
    st.text(letters, max_size=5).map(nfc).map(str.strip),
    st.lists(words, max_size=3).map(tuple),
    st.lists(words, max_size=3).map(tuple),
)


@given(st.lists(facts, min_size=1, max_size=5, unique_by=lambda item: item.id))
def test_jsonl_comes_back_equal(tmp_path_factory, items):
    spellings = {}
    items = [
        Item(**vars(i) | {"entity": spellings.setdefault(normalize_text(i.entity), i.entity)})
        for i in items
    ]
    path = tmp_path_factory.mktemp("round") / "facts.jsonl"
    before = ItemSet(tuple(items), "facts")
    before.to_jsonl(path)
    after = read_items(path)
    assert after == before
    assert after.digest == before.digest


def test_the_digest_is_that_of_the_file_and_of_nothing_but_the_items(tmp_path):
    items = some()
    items.to_jsonl(tmp_path / "f.jsonl")
    data = (tmp_path / "f.jsonl").read_bytes()
    assert items.digest == hashlib.sha256(data).hexdigest()
    assert ItemSet(items.items, "other", "tofu").digest == items.digest
    assert ItemSet(items.items[::-1]).digest != items.digest


def test_missing_ids_and_entities_are_made_from_the_text(tmp_path):
    rows = [
        {"prompt": "Peru is", "answer": "Lima"},
        {"prompt": "Peru is", "answer": "Lima"},
        {"prompt": "peru is", "answer": "Cusco"},
        {"prompt": "Peru is", "answer": "Cusco"},
    ]
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = read_items(path)
    assert len({item.id for item in items}) == 4
    # The same prompt is the same entity, so no split can part it.
    first, second, third, fourth = (item.entity for item in items)
    assert first == second == fourth != third
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[2:]))
    assert read_items(path).items[-1].entity == first


def test_spellings_of_an_entity_become_one(tmp_path):
    path = tmp_path / "f.jsonl"
    names = ["Anna Keller", "anna  keller", " ANNA KELLER", "Anna Weber"]
    path.write_text(
        "".join(
            json.dumps({"entity": n, "prompt": f"p{i}", "answer": "a"}) + "\n"
            for i, n in enumerate(names)
        )
    )
    assert read_items(path).entities == ("Anna Keller", "Anna Weber")


def test_a_repeated_id_names_both_lines(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"id": 3, "prompt": "p", "answer": "a"}\n' * 2)
    with pytest.raises(InputError, match=r"line 2 has the id '3' of f\.jsonl, line 1"):
        read_items(path)


@given(
    st.integers(1, 8),
    st.integers(1, 3),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 9),
)
def test_parts_are_disjoint_by_entity_and_whole(entities, each, sizes, seed):
    items = some(entities, each)
    if sum(sizes) > entities:
        with pytest.raises(InputError, match="too few entities") as caught:
            split_entities(items, sizes, np.random.default_rng(seed))
        assert f"{sum(sizes)} entities" in str(caught.value)
        assert f"got {entities}" in str(caught.value)
        assert f"about {sum(sizes) - entities} more" in str(caught.value)
        return
    parts = split_entities(items, sizes, np.random.default_rng(seed))
    assert [len(part.entities) for part in parts] == sizes
    assert [len(part) for part in parts] == [size * each for size in sizes]
    used = [entity for part in parts for entity in part.entities]
    assert len(used) == len(set(used))
    for part in parts:
        assert list(part) == [item for item in items if item in part.items]
    assert parts == split_entities(items, sizes, np.random.default_rng(seed))


def test_splits_are_random_and_sizes_checked():
    items = some(30)
    first, second = (split_entities(items, [10], np.random.default_rng(seed))[0] for seed in (0, 1))
    assert set(first.entities) != set(second.entities)
    with pytest.raises(InputError, match="would be empty"):
        split_entities(items, [3, 0], np.random.default_rng(0))
