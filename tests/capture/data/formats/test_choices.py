"""Multiple choice: options and their right one in every way of writing them."""

import json

import pytest

from capture.data.items import Item, ItemSet, read_items
from evidence.errors import InputError

OPTIONS = ["Rome", "Oslo", "Lima", "Cairo"]
LETTERED = dict(zip("ABCD", OPTIONS, strict=True))
TEXT = "Where was Ada Stone born?\n(A) Rome\n(B) Oslo\n(C) Lima\n(D) Cairo"
ASK = {"question": "Where was Ada Stone born?"}


@pytest.fixture
def read(tmp_path):
    def from_rows(rows, **options):
        path = tmp_path / "facts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_items(path, **options)

    return from_rows


@pytest.mark.parametrize(
    "row",
    [
        ASK | {"choices": OPTIONS, "answer": 2},
        ASK | {"choices": OPTIONS, "answer": "2"},
        ASK | {"choices": OPTIONS, "answer": "C"},
        ASK | {"choices": OPTIONS, "answer": "c"},
        ASK | {"choices": OPTIONS, "answer": "(C)"},
        ASK | {"choices": OPTIONS, "answer": "C. Lima"},
        ASK | {"choices": OPTIONS, "answer": "Lima"},
        ASK | {"options": OPTIONS, "answer_idx": 2},
        ASK | {"options": OPTIONS, "answer": "Lima", "answer_idx": "C"},
        ASK | {"options": LETTERED, "answer": "C"},
        ASK | {"options": LETTERED, "answer_idx": "C", "answer": "Lima"},
        ASK | {"choices": {"text": OPTIONS, "label": list("ABCD")}, "answerKey": "C"},
        ASK | {"choices": {"text": OPTIONS, "label": list("1234")}, "answerKey": "3"},
        ASK | {"options": [{"label": k, "text": v} for k, v in LETTERED.items()], "answer": "C"},
        ASK | {"options": LETTERED | {"E": None}, "answer": "C"},
        ASK | LETTERED | {"answer": "C"},
        ASK | {k.lower(): v for k, v in LETTERED.items()} | {"answer": "C"},
        ASK | {f"Option {k}": v for k, v in LETTERED.items()} | {"Answer": "C"},
        ASK | {f"option{k}": v for k, v in LETTERED.items()} | {"answer": "optionC"},
        ASK | {f"option{n}": v for n, v in enumerate(OPTIONS, 1)} | {"answer": "3"},
        ASK | {f"option{n}": v for n, v in enumerate(OPTIONS, 1)} | {"answer": "Lima"},
        ASK | {f"op{k.lower()}": v for k, v in LETTERED.items()} | {"cop": 2},
        ASK | {"mc1_targets": {"choices": OPTIONS, "labels": [0, 0, 1, 0]}},
        {"question": TEXT, "answer": "C"},
        {"question": TEXT + "\nAnswer:", "answer": "C) Lima"},
        {"question": TEXT.replace("\n", " "), "answer": "C"},
        {"question": TEXT.replace("?", "?\nOptions:") + "\nThe answer is:", "answer": "C"},
        {"instruction": TEXT, "input": "", "output": "C"},
        {"messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "C"}]},
        ASK | {"choices": [f"{k}. {v}" for k, v in LETTERED.items()], "answer": "C"},
        ASK | {"choices": [f"({k}) {v}" for k, v in LETTERED.items()], "answer": "(C) Lima"},
        ASK | {"options": "\n".join(f"{k}. {v}" for k, v in LETTERED.items()), "answer": "C"},
        {"prompt": TEXT + "\nAnswer:", "answer": "C"},
        {"prompt": ASK["question"], "choices": OPTIONS, "answer": 2},
    ],
    ids=lambda row: ",".join(map(str, [*row, row.get("answer", "")]))[:60],
)
def test_every_way_of_writing_options_is_understood(read, row):
    (item,) = read([row])
    assert item.prompt == "Question: Where was Ada Stone born?\nAnswer:"
    assert item.answer == "Lima"
    assert item.choices == tuple(OPTIONS)
    assert item.alternatives == ("Rome", "Oslo", "Cairo")


def test_a_conversation_keeps_its_system_prompt_and_loses_its_options(read):
    turns = [("system", "Be brief."), ("user", TEXT), ("assistant", "C")]
    (item,) = read([{"messages": [{"role": role, "content": text} for role, text in turns]}])
    assert item.messages == (("system", "Be brief."), ("user", ASK["question"]))
    assert (item.answer, item.choices) == ("Lima", tuple(OPTIONS))
    assert TEXT not in item.prompt


def test_items_with_options_in_their_prompt_come_back_as_they_were_written(tmp_path):
    items = ItemSet((Item("1", "Ada", TEXT + "\nAnswer:", "C"),), "own")
    items.to_jsonl(tmp_path / "own.jsonl")
    assert read_items(tmp_path / "own.jsonl") == items


def test_numbers_that_are_options_are_texts_in_one_file_and_places_in_another(read):
    digits = [ASK | {"choices": ["3", "2", "1", "0"], "answer": each} for each in "0123"]
    assert [item.answer for item in read(digits)] == ["0", "1", "2", "3"]
    mixed = [ASK | {"choices": c, "answer": "0"} for c in (["0", "1"], ["x", "y"])]
    assert [item.answer for item in read(mixed)] == ["0", "x"]


def test_the_same_stem_with_other_options_is_another_question(read):
    rows = [
        {"question": "Which statement is true?", "choices": [a, b], "answer": 0}
        for a, b in (("x", "y"), ("y", "x"), ("x", "z"))
    ]
    items = read(rows)
    assert len(items.entities) == 2  # the order of the options makes no other question
    assert len({item.id for item in items}) == 3


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (ASK | {"choices": OPTIONS, "answer": 4}, "number from 0 to 3"),
        (ASK | {"choices": OPTIONS, "answer": "E"}, "letter from A to D"),
        (ASK | {"choices": OPTIONS, "answer": "Paris"}, "not the index of a choice"),
        (ASK | {"choices": ["Rome"], "answer": 0}, "too few options"),
        (ASK | {"choices": ["Rome", ""], "answer": 0}, "none empty"),
        (ASK | {"choices": ["Rome", 7], "answer": 0}, "choices has the wrong type"),
        (ASK | {"options": OPTIONS, "answer": "Rome", "answer_idx": "C"}, "different options"),
        (ASK | {"A": "Rome", "B": "Oslo", "D": "Lima", "answer": "D"}, "letter"),
    ],
)
def test_options_that_cannot_be_right_are_refused(read, row, why):
    good = {name: "Rome" if name in "ABD" else value for name, value in row.items()}
    with pytest.raises(InputError, match=why):
        read([row, good] if "A" in row else [row])


def test_an_option_that_one_row_lacks_is_named(read):
    whole = ASK | LETTERED | {"answer": "C"}
    with pytest.raises(InputError, match="line 2 lacks an option"):
        read([whole, {k: v for k, v in whole.items() if k != "B"}])
    shorter = {k: v for k, v in whole.items() if k != "D"}
    assert len(read([whole, shorter]).items[1].choices) == 3


def test_letters_without_options_are_refused_with_the_mapping(read):
    rows = [{"question": f"Which is number {n}?", "answer": "ABCD"[n % 4]} for n in range(6)]
    with pytest.raises(InputError, match=r"options were not found.*--columns question"):
        read(rows)


def test_tables_write_lists_as_python_and_numpy_print_them(tmp_path):
    path = tmp_path / "f.csv"
    for cell in (
        """['Rome', "Dar es-Salaam's", 'Lima']""",
        """['Rome' "Dar es-Salaam's" 'Lima']""",
        """["Rome", "Dar es-Salaam's", "Lima"]""",
        "Rome|Dar es-Salaam's|Lima",
    ):
        quoted = cell.replace('"', '""')
        path.write_text(f'question,choices,answer\nWhere?,"{quoted}",1\n')
        (item,) = read_items(path)
        assert item.choices == ("Rome", "Dar es-Salaam's", "Lima")
        assert item.answer == "Dar es-Salaam's"


def test_files_of_mmlu_without_a_header_are_read(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text('"Where, then?",Rome,Oslo,Lima,Cairo,C\nAnd now?,Rome,Oslo,Lima,Cairo,A\n')
    assert [item.answer for item in read_items(path)] == ["Lima", "Rome"]
    path.write_text("Where was she born?,Rome\nWho was she?,Ada\n")
    with pytest.raises(InputError, match="holds text, not the names of columns"):
        read_items(path)
