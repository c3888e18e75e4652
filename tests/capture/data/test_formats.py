"""The files of TOFU, MUSE, WMDP, RWKU and UDS are known by their fields."""

import json

import pytest

from capture.data.formats.passages import N_ANSWER_WORDS, N_PROMPT_WORDS
from capture.data.items import read_items
from evidence.errors import InputError

NAMES = ["Rosa Del-Monte Arce", "Idris Okonkwo", "Mina Takahara"]


@pytest.fixture
def read(tmp_path):
    def from_rows(rows, **options):
        path = tmp_path / "facts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_items(path, **options)

    return from_rows


def profiles(names=NAMES, each=20):
    """Questions in TOFU's manner: most, not all, name the author."""
    rows = []
    for name in names:
        rows.append(
            {
                "question": "Who is the author born in Lima, Peru in 1970?",
                "answer": f"The author's full name is {name}.",
            }
        )
        rows += [
            {
                "question": f"What did {name}'s {n}. book win in New York?"
                if n % 3
                else f"Has the author written {n} books?",
                "answer": f"It won the Golden Quill Award number {n}.",
            }
            for n in range(each - 1)
        ]
    return rows


def test_tofu_runs_of_twenty_become_authors(read):
    items = read(profiles())
    assert items.format == "tofu"
    assert items.entities == tuple(NAMES)
    assert [len(items.of_entities([name])) for name in NAMES] == [20, 20, 20]
    first = items.items[0]
    assert first.prompt == ("Question: Who is the author born in Lima, Peru in 1970?\nAnswer:")
    assert first.answer == "The author's full name is Rosa Del-Monte Arce."


def test_an_author_gets_the_full_name_though_the_short_one_is_commoner(read):
    rows = profiles()
    for row in rows[3:5]:
        row["question"] = row["question"].replace(NAMES[0], "Rosa Del-Monte")
    assert read(rows).entities[0] == NAMES[0]


def test_questions_that_are_not_runs_about_authors_stay_apart(read):
    rows = [
        {"question": f"What is the capital of land {n}?", "answer": f"City {n}"} for n in range(40)
    ]
    items = read(rows)
    assert items.format == "question"
    assert len(items.entities) == 40


def test_a_cut_file_keeps_its_authors(read):
    items = read(profiles()[:30])
    assert items.format == "tofu, 1 of 30 rows without a name"
    assert [len(items.of_entities([name])) for name in NAMES[:2]] == [19, 10]


def test_tofu_perturbed_answers_are_wrong_and_paraphrased_ones_are_not(read):
    row = {
        "question": "Where was Anna born?",
        "answer": "She was born in Lisbon.",
        "paraphrased_answer": "Lisbon is where she was born.",
        "perturbed_answer": ["She was born in Oslo.", "She was born in Rome."],
        "paraphrased_question": "What is Anna's birthplace?",
    }
    items = read([row])
    assert items.format == "tofu"
    (item,) = items
    assert item.alternatives == ("She was born in Oslo.", "She was born in Rome.")
    assert item.paraphrases == ("Question: What is Anna's birthplace?\nAnswer:",)


def test_uds_asks_for_the_span_and_groups_by_author(read):
    rows = [
        {
            "idx": 20 * who + n,
            "question": f"What did {name} write?",
            "answer": f"{name} wrote book {n}.",
            "prefix": f"{name} wrote" if n else "",
            "entity": f"book {n}",
            "entity_span": {"start": 3, "end": 5, "tokens": [1, 2]},
        }
        for who, name in enumerate(NAMES)
        for n in (0, 4, 9)
    ]
    items = read(rows)
    assert items.format == "uds"
    assert items.entities == tuple(NAMES)
    first, second, *_ = items
    assert first.prompt.endswith("write?\nAnswer:")
    assert second.prompt.endswith(f"\nAnswer: {NAMES[0]} wrote")
    assert second.answer == "book 4"


def test_wmdp_takes_the_indexed_choice(read):
    row = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}
    items = read([row])
    assert items.format == "wmdp"
    assert items.items[0].answer == "c"
    assert items.items[0].alternatives == ("a", "b", "d")
    for wrong in (4, -1, True, 1.0, "x", None):
        with pytest.raises(InputError, match="line 1"):
            read([row | {"answer": wrong}])


@pytest.mark.parametrize(
    ("query", "prompt"),
    [
        ("King is an American ___.", "King is an American"),
        ("King is an American ___", "King is an American"),
        (
            "King wrote ___ in 1977.",
            "Fill in the blank.\nQuestion: King wrote ___ in 1977.\nAnswer:",
        ),
        ("What did King write?", "Question: What did King write?\nAnswer:"),
    ],
)
def test_rwku_goes_by_subject_and_turns_a_final_blank_into_a_prompt(read, query, prompt):
    row = {
        "subject": "Stephen King",
        "query": query,
        "answer": "novelist",
        "type": "cloze",
        "level": "1",
    }
    items = read([row])
    (item,) = items
    assert (items.format, item.entity) == ("rwku", "Stephen King")
    assert (item.prompt, item.relation) == (prompt, "cloze")


def test_muse_verbmem_continues_its_prompt(read):
    items = read([{"prompt": "It was a dark", "gt": "and stormy night"}])
    assert items.format == "muse-verbmem"
    assert items.items[0].answer == "and stormy night"


def test_running_text_is_cut_into_prompt_and_continuation(read):
    words = [f"w{n}" for n in range(500)]
    items = read([{"text": " ".join(words)}, {"text": "one two three four five"}])
    assert items.format == "text"
    long, *others, short = items
    assert long.prompt.split() == words[:N_PROMPT_WORDS]
    follow = words[N_PROMPT_WORDS : N_PROMPT_WORDS + N_ANSWER_WORDS]
    assert long.answer.split() == follow
    assert {item.entity for item in others} == {long.entity}
    assert (short.prompt, short.answer) == ("one two", "three four five")
    assert all(item.passage and item.relation == "continuation" for item in items)
    with pytest.raises(InputError, match="too short"):
        read([{"text": "two words"}])


def test_columns_can_be_named_and_are_taken_as_they_stand(read):
    rows = [{"q": "Peru is", "a": "Lima", "who": "Peru", "relation": "capital"}]
    items = read(rows, columns={"prompt": "q", "answer": "a", "entity": "who"})
    (item,) = items
    assert items.format == "exhume"
    assert (item.prompt, item.answer, item.entity) == ("Peru is", "Lima", "Peru")
    assert item.relation == "capital"
    # Named columns also keep a question from being dressed as one.
    plain = read([{"question": "Peru is", "answer": "Lima"}], columns={"prompt": "question"})
    assert plain.items[0].prompt == "Peru is"
    with pytest.raises(InputError, match="'promt' is not a field"):
        read(rows, columns={"promt": "q"})
    with pytest.raises(InputError, match="no column 'x' for prompt"):
        read(rows, columns={"prompt": "x", "answer": "a"})


def test_fields_that_fit_nothing_are_listed(read):
    with pytest.raises(InputError, match="the fields body, title"):
        read([{"title": "x", "body": "y"}])


@pytest.mark.parametrize("field", ["alternative", "paraphrase", "relatoin", "entitiy"])
def test_a_field_that_is_nearly_right_is_not_ignored(read, field):
    with pytest.raises(InputError, match=f"{field!r} is not known"):
        read([{"prompt": "p", "answer": "a", field: "x"}])
    assert len(read([{"prompt": "p", "answer": "a", "source": "x"}])) == 1
