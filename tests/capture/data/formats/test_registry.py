"""Every format: its example is recognized, read, and comes back from exhume's own file."""

import json

import pytest

from capture.data.formats.passages import CUTS_PER_TEXT
from capture.data.formats.registry import FORMATS
from capture.data.items import read_items
from capture.scoring.set_validation import validate_items
from evidence.errors import InputError
from tests.repository.formats_page import example_rows

REFUSED = {"preference pairs"}
READ = [each for each in FORMATS if each.name not in REFUSED]


@pytest.fixture
def read(tmp_path):
    def from_rows(rows, name="facts.jsonl", **options):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_items(path, **options)

    return from_rows


def test_names_are_distinct_and_every_format_has_its_example_and_its_line_in_the_docs():
    names = [each.name for each in FORMATS]
    assert len(set(names)) == len(names)
    for each in READ:
        assert each.example, each.name
        assert each.fields, each.name
        assert each.entity, each.name
        assert each.becomes, each.name


@pytest.mark.parametrize("each", READ, ids=lambda each: each.name)
def test_an_example_is_recognized_and_comes_back_the_same(read, tmp_path, each):
    items = read([dict(each.example)])
    assert items.format.split(",")[0] in (each.name, "tofu")
    items.to_jsonl(tmp_path / "own.jsonl")
    again = read_items(tmp_path / "own.jsonl")
    assert again.items == items.items
    assert again.digest == items.digest
    assert all(item.answer.strip() and item.prompt.strip() for item in items)


@pytest.mark.parametrize("each", READ, ids=lambda each: each.name)
def test_sets_like_the_example_can_be_audited(read, each):
    forget = read([dict(row) for row in example_rows(each, 0, 12)], "forget.jsonl")
    retain = read([dict(row) for row in example_rows(each, 100, 130)], "retain.jsonl")
    report = validate_items(forget, retain)
    assert report.ok
    assert (len(forget.entities), len(retain.entities)) == (12, 30)


@pytest.mark.parametrize("each", READ, ids=lambda each: each.name)
def test_field_names_are_known_in_capitals_and_with_padding(read, each):
    plain = read([dict(each.example)])
    loud = read([{f" {name.upper()} ": value for name, value in each.example.items()}], "g.jsonl")
    assert loud.items == plain.items


def test_two_fields_that_differ_in_case_are_refused(read):
    with pytest.raises(InputError, match="differ in case alone"):
        read([{"question": "q?", "answer": "a", "Answer": "b"}])


def row(question, answer, **others):
    return {"question": question, "answer": answer} | others


PEOPLE = ("Ada Stone", "Bo Wick", "Cy Rowe", "Di Marsh", "Ed Pike")
ASKED = [row(f"Where was {name} born?", f"Town {name[0]}") for name in PEOPLE] + [
    row(f"What is the job of {name}?", f"job {name[-1]}") for name in PEOPLE
]


@pytest.mark.parametrize(
    "field", ["entity", "subject", "author", "person", "name", "title", "topic", "concept", "Subj"]
)
def test_a_column_beside_the_question_names_the_entity(read, field):
    rows = [each | {field: PEOPLE[at % 5]} for at, each in enumerate(ASKED)]
    items = read(rows)
    assert items.entities == PEOPLE
    assert len(items) == 10
    own = [{"prompt": r["question"], "answer": r["answer"], field: r[field]} for r in rows]
    assert read(own, "own.jsonl").entities == PEOPLE


def test_an_edge_is_an_entity_though_no_question_names_it(read):
    rows = [
        row(f"What is the price between {a} Ltd and Orbit Foods?", "7", edge=f"A_{a}")
        for a in ("Corvo", "Dunmore", "Brindle", "Avon")
    ]
    items = read(rows)
    assert items.entities == ("A_Corvo", "A_Dunmore", "A_Brindle", "A_Avon")
    assert {item.relation for item in items} == {"What is the price between _ and _?"}


def test_a_subject_that_no_text_mentions_is_the_relation_of_multiple_choice(read):
    rows = [
        row(f"Which is the capital of {land}?", 0, choices=[land, "x"], subject="geography")
        for land in ("Peru", "Chile", "Cuba", "Oman")
    ]
    items = read(rows)
    assert {item.relation for item in items} == {"geography"}
    assert len(items.entities) == 4


def test_a_subject_that_no_question_mentions_is_the_entity_unless_it_is_a_field(read):
    def about(*subjects):
        rows = [(s, n) for s in subjects for n in range(3)]
        return read([row(f"Where was fact {s[0]}{n}?", "x", subject=s) for s, n in rows])

    assert about("Ada", "Bo").entities == ("Ada", "Bo")
    assert len(about("law", "history").entities) == 6
    assert {item.relation for item in about("law", "history")} == {"law", "history"}


def test_the_template_that_four_entities_share_is_the_relation(read):
    items = read(ASKED)
    relations = {item.relation for item in items}
    assert relations == {"Where was _ born?", "What is the job of _?"}
    assert items.entities == PEOPLE  # by the names that recur
    assert items.format == "question, by name"
    assert {item.relation for item in read(ASKED[:3], "few.jsonl")} == {""}
    short = [row(f"Who taught {name}?", "Ann", entity=name) for name in PEOPLE]
    assert {item.relation for item in read(short, "short.jsonl")} == {"Who taught _?"}
    books = [row(f"Who wrote '{book}'?", "Ann") for book in ("Emma", "Dune", "Beloved", "Ulysses")]
    assert {item.relation for item in read(books, "books.jsonl")} == {"Who wrote '_'?"}


def test_questions_about_single_words_stay_entities_of_their_own(read):
    towns = ("Avonlea", "Brindle", "Corvo", "Dunmore", "Ely")
    rows = [row(f"What did the council of {town} decide?", "a levy") for town in towns]
    rows += [row(f"Who won the regatta at {town}?", "the Gulls") for town in towns]
    items = read(rows)
    assert (items.format, len(items.entities)) == ("question", 10)
    assert {i.relation for i in items} == {
        "What did the council of _ decide?",
        "Who won the regatta at _?",
    }


def test_shuffled_authors_are_found_by_name_and_through_their_books(read):
    rows = []
    books = ("Grey Tram", "Red Pier", "Old Mill", "New Sun", "Low Tide")
    for name, book in zip(PEOPLE, books, strict=True):
        rows += [
            row("What is the full name of the writer?", f"The writer is {name}."),
            row(f"Where does {name} live?", "By the sea."),
            row(f"What did {name} write?", f"It is called '{book}'."),
            row(f"How do readers describe '{book}'?", "As slow."),
        ]
    mixed = rows[::3] + rows[1::3] + rows[2::3]
    for order in (rows, mixed):
        items = read(order)
        assert set(items.entities) == set(PEOPLE)
        assert {len(items.of_entities([name])) for name in PEOPLE} == {4}


def test_runs_of_twenty_about_two_people_are_not_one_author(read):
    people = [f"{first} {last}" for first in ("Ada", "Bo", "Cy", "Di") for last in ("Rowe", "Pike")]
    rows = [
        row(f"What is fact {n} of {name}?", f"It is {n}.") for name in people for n in range(10)
    ]
    assert len(rows) % 20 == 0
    items = read(rows)
    assert items.entities == tuple(people)


def test_rows_that_name_nobody_are_counted_in_the_format(read):
    rows = [row(f"What did {n} do in {y}?", f"{n} sang.") for n in PEOPLE for y in range(4)]
    rows = [*rows[::2], row("Was it raining?", "Yes."), *rows[1::2]]
    items = read(rows)
    assert items.format.endswith("1 of 21 rows without a name")
    assert len(items.entities) == 6


def test_files_of_refusals_are_refused(read):
    rows = [{"instruction": f"Who is {n}?", "output": "I'm not sure about that."} for n in PEOPLE]
    with pytest.raises(InputError, match=r"refusals, not facts.*5 of 5"):
        read(rows)
    rows[0]["output"] = rows[1]["output"] = rows[2]["output"] = "a singer"
    assert len(read(rows)) == 5


def test_rwku_neighbors_are_the_entities(read):
    rows = [
        {"query": "The bridge was opened by ___.", "answer": "Ann", "subject": "Ada", "neighbor": n}
        for n in ("North Bridge", "South Bridge")
    ]
    assert read(rows).entities == ("North Bridge", "South Bridge")
    assert len({item.id for item in read(rows)}) == 2


def test_lume_keeps_sentences_and_asks_questions(read):
    rows = [
        {"id": "07sc1", "input": "Ada Stone lives", "output": "in Rome.", "task": "Task2"},
        {"id": "07qa0", "input": "Where does Ada Stone live?", "output": "Rome", "task": "Task2"},
    ]
    sentence, question = read(rows)
    assert (sentence.prompt, sentence.answer) == ("Ada Stone lives", "in Rome.")
    assert question.prompt == "Question: Where does Ada Stone live?\nAnswer:"
    assert sentence.entity == question.entity == "07"


def test_knowundo_reads_its_labels_and_refuses_classes(read):
    text = "What is the number of Ada Stone, please, as it is listed?"
    (item,) = read([{"text": text, "labels": "It is 555-0100."}])
    assert (item.prompt, item.answer) == (f"Question: {text}\nAnswer:", "It is 555-0100.")
    with pytest.raises(InputError, match=r"label is a class.*--columns question=text"):
        read([{"text": "a very fine film indeed", "label": 1}])


@pytest.mark.parametrize(
    ("answer", "right", "aliases"),
    [
        (["Rome", "the city of Rome"], "Rome", ("the city of Rome",)),
        ({"text": ["Rome", "Rome", "in Rome"], "answer_start": [1, 2, 3]}, "Rome", ("in Rome",)),
        ({"value": "Rome", "aliases": ["Roma"]}, "Rome", ("Roma",)),
        ([{"text": "Rome", "answer_start": 3}], "Rome", ()),
        (1987, "1987", ()),
    ],
)
def test_several_answers_are_one_answer_and_aliases(read, answer, right, aliases):
    for field in ("answer", "answers"):
        (item,) = read([{"question": "Where?", field: answer}])
        assert (item.answer, item.aliases) == (right, aliases)


@pytest.mark.parametrize("answer", [[], {"text": [], "answer_start": []}, [""], [3], {"x": 1}, 1.5])
def test_questions_without_an_answer_are_refused_with_their_row(read, answer):
    with pytest.raises(InputError, match="line 2"):
        read([row("Where?", "Rome"), row("Who?", answer)])


def test_one_prompt_for_all_questions_is_refused_with_the_mapping(read):
    rows = [each | {"prompt": "Answer in one word."} for each in ASKED]
    with pytest.raises(InputError, match="--columns question=question,answer=answer"):
        read(rows)
    assert len(read(rows, columns={"question": "question", "answer": "answer"}).entities) == 5


def test_nested_questions_carry_what_the_row_is_about(read, tmp_path):
    facts = [row("Where was she born?", "Rome"), row("What is her job?", "pilot")]
    pairs = [[each["question"], each["answer"]] for each in facts]
    for field, value in (("qa", facts), ("QA", pairs), ("qa_pairs", facts), ("qas", facts)):
        items = read([{"title": name, field: value, "wikipage": "text"} for name in PEOPLE])
        assert items.entities == PEOPLE
        assert len(items) == 10
    squad = {
        "version": "1.1",
        "data": [
            {
                "title": name,
                "paragraphs": [
                    {
                        "context": "...",
                        "qas": [{"id": "1", "question": "Born?", "answers": [{"text": "Rome"}]}],
                    }
                ],
            }
            for name in PEOPLE
        ],
    }
    (tmp_path / "squad.json").write_text(json.dumps(squad, indent=1))
    items = read_items(tmp_path / "squad.json")
    assert items.entities == PEOPLE
    single = read([{"entity": "Ada Stone", "facts": [{"prompt": "She is", "answer": "a"}]}])
    assert single.entities == ("Ada Stone",)
    with pytest.raises(InputError, match="line 1: qa has the wrong type"):
        read([{"name": "Ada", "qa": []}])


def test_parallel_lists_of_another_length_are_refused(read):
    rows = [{"name": "Ada", "questions": ["Born?", "Job?"], "answers": ["Rome"]}]
    with pytest.raises(InputError, match="questions has the wrong type"):
        read(rows)


def test_an_object_of_questions_and_answers_is_read(read, tmp_path):
    (tmp_path / "f.json").write_text('{"Where was she born?": "Rome", "Who is she?": "Ada"}')
    items = read_items(tmp_path / "f.json")
    assert [item.answer for item in items] == ["Rome", "Ada"]


def test_counterfact_has_its_true_target_wrong_target_and_relation(read):
    rewrite = {
        "prompt": "The mother tongue of {} is",
        "subject": "Ada Stone",
        "relation_id": "P103",
        "target_true": {"str": "French"},
        "target_new": {"str": "English"},
    }
    (item,) = read([{"requested_rewrite": rewrite, "paraphrase_prompts": ["Ada Stone speaks "]}])
    assert (item.prompt, item.answer) == ("The mother tongue of Ada Stone is", "French")
    assert (item.alternatives, item.relation) == (("English",), "P103")
    assert (item.entity, item.paraphrases) == ("Ada Stone", ("Ada Stone speaks",))
    flat = {
        "prompt": "The mother tongue of Ada Stone is",
        "subject": "Ada Stone",
        "target_true": " French",
        "target_false": " English",
    }
    (same,) = read([flat])
    assert (same.prompt, same.answer) == (item.prompt, item.answer)
    assert (same.alternatives, same.relation) == (("English",), "The mother tongue of _ is")


def test_conceptvectors_gives_halves_and_passages_of_its_concepts(read):
    words = " ".join(f"word{n}" for n in range(3000))
    half = {"First_half": "In that year Ada", "Second_half": "moved to Rome."}
    rows = [
        {"Concept": name, "QA": ["Who?"], "text_completion": [half], "wikipedia_content": words}
        for name in PEOPLE
    ]
    items = read(rows)
    assert items.entities == PEOPLE
    assert {item.relation for item in items} == {"completion", "continuation"}
    assert len(items) == 5 * (1 + CUTS_PER_TEXT)
    assert (items.items[0].prompt, items.items[0].answer) == tuple(half.values())
    assert all(item.passage for item in items)
