"""Passages are verbatim, spread over the text, and the same whatever the order of the rows."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.data.formats import passages
from capture.data.formats.passages import cut
from capture.data.items import read_items

WINDOW = passages.N_PROMPT_WORDS + passages.N_ANSWER_WORDS


def words(start, stop):
    return " ".join(f"w{n}" for n in range(start, stop))


@pytest.fixture
def write(tmp_path):
    def to(name, content):
        path = tmp_path / name
        path.write_text(content, newline="")
        return path

    return to


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=6),
    st.sampled_from(["\n\n", "\n", "  \n \n", " "]),
    st.booleans(),
)
def test_passages_are_verbatim_and_do_not_overlap(sizes, mark, sections):
    total = sum(sizes)
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    text = mark.join(words(s, s + size) for s, size in zip(starts, sizes, strict=True))
    if total < 4:
        return
    end = 0
    for each in cut(text, "here", sections=sections):
        at = text.index(each.prompt, end)
        follows = text.index(each.answer, at + len(each.prompt))
        assert text[at + len(each.prompt) : follows].strip() == ""
        end = follows + len(each.answer)
        if sum(size >= WINDOW for size in sizes) >= passages.CUTS_PER_TEXT and not sections:
            assert "\n\n" not in text[at:end]


def test_cuts_are_spread_evenly_and_capped():
    places = [each.place for each in cut(words(0, 4000), "here")]
    assert len(places) == passages.CUTS_PER_TEXT
    assert places[0] == 0
    assert places[-1] > 3800
    steps = {b - a for a, b in pairwise(places)}
    assert max(steps) - min(steps) <= WINDOW
    many = [each.place for each in cut(words(0, 20_000), "here", sections=True)]
    assert len(many) == passages.SECTIONS_PER_TEXT
    assert min(b - a for a, b in pairwise(many)) >= passages.SECTION_WORDS


def test_a_book_of_short_paragraphs_is_cut_all_the_same(write):
    parts = [words(n, n + 40) for n in range(0, 8000, 40)]
    parts[3] = words(120, 320)
    items = read_items(write("book.txt", "\n\n".join(parts)))
    assert len(items.entities) > 50


def test_a_prompt_and_its_answer_join_with_one_space_where_lines_are_short():
    lines = [words(8 * n, 8 * n + 8) for n in range(20)]
    text = "\n".join(lines)
    (each, *_) = cut(text, "here")
    assert f"{each.prompt} {each.answer}" in text


def test_text_without_spaces_is_counted_in_characters(write):
    text = "北京是中华人民共和国的首都也是全国的政治中心" * 20
    items = read_items(write("f.txt", text))
    assert len(items.items[0].prompt) == passages.N_PROMPT_WORDS
    assert items.items[0].prompt + items.items[0].answer in text


def test_one_long_text_has_many_entities_and_many_texts_one_each(write):
    book = read_items(
        write("book.txt", "\n\n".join(words(n, n + 200) for n in range(0, 9000, 200)))
    )
    assert len(book) == len(book.entities) == 45
    rows = [{"text": words(n, n + 2000), "title": f"T{n}"} for n in range(0, 20_000, 2000)]
    papers = read_items(write("p.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert papers.entities == tuple(row["title"] for row in rows)
    assert len(papers) == 10 * passages.CUTS_PER_TEXT


def test_books_of_megabytes_are_cut_in_slices(write):
    text = " ".join(f"word{n}" for n in range(300_000))
    assert len(text) > 3_000_000
    items = read_items(write("book.jsonl", json.dumps({"text": text}) + "\n"))
    assert len(items.entities) == passages.SECTIONS_PER_TEXT
    last = items.items[-1]
    assert text.index(f"{last.prompt} {last.answer}") > 0.9 * len(text)
    assert len(last.prompt.split()) == passages.N_PROMPT_WORDS


def test_of_very_many_texts_some_are_cut_whatever_their_order(write, monkeypatch):
    monkeypatch.setattr(passages, "MAX_TEXTS", 3)
    rows = [json.dumps({"text": words(n, n + 50)}) + "\n" for n in range(0, 500, 50)]
    items = read_items(write("f.jsonl", "".join(rows)))
    assert items.format == "text, 3 of 10 texts"
    assert len(items.entities) == 3
    again = read_items(write("g.jsonl", "".join(rows[::-1])))
    assert set(again) == set(items)


def test_lists_of_texts_and_their_columns_are_read(write):
    texts = [words(n, n + 120) for n in range(0, 1000, 120)]
    sets = [
        read_items(write("a.json", json.dumps(texts))),
        read_items(write("b.jsonl", "".join(json.dumps(text) + "\n" for text in texts))),
        read_items(write("c.json", json.dumps({"text": texts}))),
        read_items(write("d.json", json.dumps([{"text": text} for text in texts], indent=1))),
    ]
    assert len({items.digest for items in sets}) == 1
    assert len(sets[0].entities) == len(texts)


def test_subjects_of_passages_are_entities_though_the_text_does_not_say_them(write):
    rows = [{"subject": "Ada", "text": words(0, 9)}, {"target": "Bo", "intro": words(9, 20)}]
    for at, row in enumerate(rows):
        items = read_items(write(f"{at}.jsonl", json.dumps(row) + "\n"))
        assert items.entities == (row.get("subject", row.get("target")),)
