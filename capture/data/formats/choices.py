"""Multiple choice: WMDP, MMLU, ARC and the like, options as a list, an object or columns."""

import re
from collections.abc import Callable, Sequence

from capture.data.facts.fact import Fact, as_prompt, field_text, parse_cell, wrong_type
from capture.data.facts.prompts import LETTERS
from capture.data.facts.subjects import subjects
from capture.data.files.rows import Row
from evidence.errors import InputError

CHOICE_FIELDS = ("choices", "options", "endings", "answer_choices", "mc1_targets")
QUESTION_FIELDS = (
    *("question", "question_stem", "query", "prompt", "ctx", "input", "stem", "goal"),
)
ANSWER_FIELDS = (
    *("answer", "answer_idx", "answer_index", "answer_key", "answerkey", "correct_answer"),
    *("correct_option", "correct", "gold", "target", "label", "cop", "output"),
)
_SETS = (
    tuple("abcdefgh"),
    *(
        tuple(f"{stem}{mark}{label}" for label in labels)
        for stem in ("option", "choice", "op", "answer", "opt", "sol")
        for mark in ("", "_")
        for labels in ("abcdefgh", "12345678", "01234567")
    ),
)
_INDEX = re.compile(r"[0-9]{1,9}")
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.):]?")
_LETTER_TEXT = re.compile(r"\(?([A-Z])[.):]\s+(\S.*)", re.DOTALL)
_PREFIXED = re.compile(r"\(?([A-H])[.):]\s+(\S.*)", re.DOTALL)


def choice_columns(present: frozenset[str]) -> tuple[str, ...]:
    """Columns that hold one option each, in order; () if there are none."""
    for names in _SETS:
        found = []
        for name in names:
            if name not in present:
                break
            found.append(name)
        if len(found) >= 2 and not {"q", "a"} >= set(found):
            return tuple(found)
    return ()


def is_letter(answer: str) -> bool:
    """Whether an answer is the letter of an option."""
    return bool(_LETTER.fullmatch(answer.strip()))


def question_field(present: frozenset[str]) -> str:
    """The field of the question of a multiple-choice row; "" if there is none."""
    return next((field for field in QUESTION_FIELDS if field in present), "")


def has_choices(present: frozenset[str]) -> bool:
    """Whether rows with these fields are multiple choice."""
    listed = bool(choice_columns(present)) or any(f in present for f in CHOICE_FIELDS)
    answered = any(f in present for f in ANSWER_FIELDS) or "mc1_targets" in present
    return listed and answered and bool(question_field(present))


def read_choices(rows: Sequence[Row]) -> list[Fact]:
    """Rows of a question, its options, and which is right."""
    present = frozenset(name for row in rows for name in row.fields)
    columns = choice_columns(present)
    listed = next((f for f in CHOICE_FIELDS if f in present), "")
    options = [_listed(row, listed) if listed else _by_columns(row, columns) for row in rows]
    question = question_field(present)
    answers = [f for f in ANSWER_FIELDS if f in present and f not in columns]
    marked = _marked(rows, listed)
    right = resolve(rows, options, answers[0]) if answers and marked is None else marked
    if right is None:
        raise InputError(
            f"{rows[0].location}: which option is right is not said",
            expected="one of the fields " + ", ".join(ANSWER_FIELDS),
            got=", ".join(sorted(present))[:200],
            fix="Name the column: --columns question=...,choices=...,answer=...",
        )
    for field in answers[1:]:
        _check_same(rows, options, right, answers[0], field)
    texts = [f"{field_text(row, question)}" for row in rows]
    about = subjects(rows, texts, used=(*answers, *columns, question), multiple_choice=True)
    return [
        make_choice(
            row, texts[at], options[at][1], right[at], about.entities[at], about.relations[at]
        )
        for at, row in enumerate(rows)
    ]


def make_choice(
    row: Row, question: str, options: Sequence[str], right: int, entity: str, relation: str
) -> Fact:
    """The fact of one question with its options."""
    answer = options[right]
    return Fact(
        row.location,
        as_prompt(question),
        answer,
        entity=entity,
        relation=relation,
        alternatives=tuple(text for at, text in enumerate(options) if at != right),
        choices=tuple(options),
        question=question.strip(),
    )


def _listed(row: Row, field: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels and texts of the options in a list or an object."""
    value = row.fields.get(field)
    if isinstance(value, str):
        value = parse_cell(row, field, value)
        if isinstance(value, str):
            lines = [line.strip() for line in value.splitlines() if line.strip()]
            value = lines if len(lines) > 1 else [part.strip() for part in value.split("|")]
    labels: object = None
    if isinstance(value, dict):
        inner = value.get("text", value.get("choices"))
        if isinstance(inner, list):
            labels, value = value.get("label"), inner
        else:
            labels, value = list(value), list(value.values())
    elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        objects = [each for each in value if isinstance(each, dict)]
        labels = [each.get("label", each.get("key")) for each in objects]
        value = [each.get("text", each.get("value")) for each in objects]
    if not isinstance(value, list):
        raise wrong_type(row, field, "a list of options", value)
    while value and value[-1] is None:  # columns of structs hold one for each label
        value = value[:-1]
    texts = [text for text in value if isinstance(text, str) and text.strip()]
    if len(texts) < len(value):
        wrong = next(t for t in value if not isinstance(t, str) or not t.strip())
        raise wrong_type(row, field, "a list of texts, none empty", wrong)
    if len(texts) < 2:
        raise InputError(
            f"{row.location} has too few options", expected="two or more", got=str(len(texts))
        )
    named = labels[: len(texts)] if isinstance(labels, list) else []
    if len(named) < len(texts):
        named = []
    return tuple(str(label).strip().upper() for label in named), _without_letters(texts)


def _without_letters(texts: Sequence[str]) -> tuple[str, ...]:
    """Options that begin with their letters, without these: they are shown again later."""
    found = [_PREFIXED.fullmatch(text.strip()) for text in texts]
    letters = "".join(each[1] for each in found if each)
    if letters != LETTERS[: len(texts)]:
        return tuple(texts)
    return tuple(each[2] for each in found if each)


def _by_columns(row: Row, columns: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    held = [field for field in columns if field in row.fields]
    if len(held) < 2 or held != list(columns[: len(held)]):
        raise InputError(
            f"{row.location} lacks an option",
            expected="text in " + ", ".join(columns),
            got="text in " + (", ".join(held) or "none"),
        )
    return tuple(f[-1].upper() for f in held), tuple(field_text(row, f) for f in held)


def _marked(rows: Sequence[Row], listed: str) -> list[int] | None:
    """Places of the right options where each carries a mark, as in TruthfulQA."""
    if listed != "mc1_targets":
        return None
    places = []
    for row in rows:
        value = row.fields.get(listed)
        marks = value.get("labels") if isinstance(value, dict) else None
        if not isinstance(marks, list) or marks.count(1) != 1:
            raise wrong_type(row, listed, "one right option", marks)
        places.append(marks.index(1))
    return places


def resolve(
    rows: Sequence[Row], options: Sequence[tuple[Sequence[str], Sequence[str]]], field: str
) -> list[int]:
    """Place of the right option in each row.

    Answers are read in the first way that fits all rows: as labels of the options, as their texts,
    as letters, and as numbers from zero. "2" is a text where all answers are texts of options.

    Raises:
        InputError: no way fits all rows; the message names the first row that does not.
    """
    values = [row.fields.get(field) for row in rows]
    ways: tuple[Callable[[object, Sequence[str], Sequence[str]], int | None], ...] = (
        _as_text,
        _as_label,
        _as_letter,
        _as_index,
    )
    best: list[int | None] = []
    for way in ways:
        places = [way(v, *option) for v, option in zip(values, options, strict=True)]
        if None not in places:
            return [place for place in places if place is not None]
        if len(best) == 0 or places.count(None) <= best.count(None):
            best = places
    bad = best.index(None)
    row, value, texts = rows[bad], values[bad], options[bad][1]
    if value is None:
        raise InputError(
            f"{row.location} has no {field}", expected="the letter, number or text of an option"
        )
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise wrong_type(row, field, "the index of a choice, its letter or its text", value)
    last = len(texts) - 1
    raise InputError(
        f"{row.location}: {field} is not the index of a choice, its letter or its text",
        expected=f"a number from 0 to {last}, a letter from A to {LETTERS[min(last, 25)]}, or a "
        "text of the options, the same way in all rows",
        got=repr(value)[:80],
        fix="Numbers count from zero; subtract one if yours count from one",
    )


def _as_text(value: object, labels: Sequence[str], texts: Sequence[str]) -> int | None:
    del labels
    if not isinstance(value, str):
        return None
    if value in texts:
        return texts.index(value)
    wanted = [text.strip() for text in texts]
    return wanted.index(value.strip()) if value.strip() in wanted else None


def _as_label(value: object, labels: Sequence[str], texts: Sequence[str]) -> int | None:
    del texts
    plain = str(value).strip().upper() if not isinstance(value, bool) else ""
    if isinstance(value, str):
        plain = plain.strip("().:")
        for stem in ("OPTION", "CHOICE", "OP"):
            plain = plain.removeprefix(stem).strip(" _")
    elif all(label.isalpha() for label in labels):
        return None
    return labels.index(plain) if plain in labels else None


def _as_letter(value: object, labels: Sequence[str], texts: Sequence[str]) -> int | None:
    del labels
    if not isinstance(value, str):
        return None
    found = _LETTER.fullmatch(value.strip())
    if not found:
        found = _LETTER_TEXT.fullmatch(value.strip())
        if not found or _as_text(found[2], (), texts) is None:
            return None
    place = LETTERS.index(found[1].upper())
    return place if place < len(texts) else None


def _as_index(value: object, labels: Sequence[str], texts: Sequence[str]) -> int | None:
    del labels
    if isinstance(value, str) and _INDEX.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < len(texts) else None


def _check_same(
    rows: Sequence[Row],
    options: Sequence[tuple[Sequence[str], Sequence[str]]],
    right: Sequence[int],
    first: str,
    field: str,
) -> None:
    """Refuse a second field of the answer that says something else."""
    try:
        others = resolve(rows, options, field)
    except InputError:
        return  # another kind of field
    for row, one, other in zip(rows, right, others, strict=True):
        if one != other:
            raise InputError(
                f"{row.location}: {first} and {field} name different options",
                expected="one right option",
                got=f"{row.fields.get(first)!r} and {row.fields.get(field)!r}"[:120],
                fix=f"Name the right one: --columns question=...,choices=...,answer={field}",
            )
