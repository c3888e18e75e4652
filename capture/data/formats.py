"""The fact files people already have, told apart by their fields.

Questions become ``LogisticQuestion: ...`` and ``Answer:`` on two lines, for a base model
continues text and does not take questions. Whoever wants another prompt names the
columns, and then every text is taken as it stands.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from capture.data.tables import Row
from capture.data.tofu_authors import QUESTIONS_PER_AUTHOR, infer_authors, main_names
from evidence.errors import InputError
from evidence.storage.strict_json import parse_json

FIELDS = (
    "id",
    "entity",
    "relation",
    "prompt",
    "answer",
    "alternatives",
    "paraphrases",
)
# Verbatim items from running text: the first words, and those that follow.
N_PROMPT_WORDS = 64
N_ANSWER_WORDS = 32
_INDEX = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Fact:
    """One row in exhume's own words; "" where the file does not say."""

    location: str
    prompt: str
    answer: str
    id: str = ""
    entity: str = ""
    relation: str = ""
    alternatives: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()


def parse_facts(
    rows: Sequence[Row], columns: Mapping[str, str] | None = None
) -> tuple[str, list[Fact]]:
    """Name the format of ``rows`` and read them as facts.

    ============== ========================================== =======================
    Format         Fields that tell it                        Entity
    ============== ========================================== =======================
    exhume         prompt, answer, or columns named           entity
    uds            question, prefix, entity (the span), answer the author of the run
    wmdp           question, choices, answer (an index)       each question its own
    rwku           subject, query, answer                     subject
    muse-verbmem   prompt, gt                                 each prompt its own
    tofu           question, answer, and perturbed answers    the author of the run
                   or runs of twenty about one author
    question       question, answer                           each question its own
    text           text                                       each text its own
    ============== ========================================== =======================

    TOFU's perturbed answers are the alternatives; its paraphrased answer is right
    and therefore not one of them.

    Args:
        rows: The file's records.
        columns: Which of the file's columns holds which of ``FIELDS``.

    Raises:
        InputError: no format fits, or a row lacks a field, or has one of the wrong
            type; the message names the row.
    """
    present = {name for row in rows for name in row.fields}
    if columns is not None:
        return "exhume", _mapped(rows, columns, present)
    for name, (needed, read) in _READERS.items():
        if needed <= present:
            facts = read(rows)
            if name == "question" and any(fact.entity for fact in facts):
                name = "tofu"
            elif name == "question" and _TOFU_ONLY & present:
                name = "tofu"
            return name, facts
    if {"prompt", "answer"} & present:
        return "exhume", _exhume(rows)  # which says what lacks, and where
    raise InputError(
        f"{rows[0].location}: no prompt or answer was found",
        expected="prompt and answer, or the fields of TOFU, MUSE, WMDP, RWKU or UDS",
        got="the fields " + (", ".join(sorted(map(str, present)))[:200] or "none"),
        fix="Rename the columns, or say which column holds which field",
    )


_TOFU_ONLY = {"perturbed_answer", "paraphrased_answer", "paraphrased_question"}


def _mapped(
    rows: Sequence[Row], columns: Mapping[str, str], present: set[str]
) -> list[Fact]:
    if not isinstance(columns, Mapping):
        raise InputError(
            "columns are not a mapping",
            expected="fields to columns: {'prompt': 'your column'}",
            got=f"{type(columns).__name__} {columns!r}"[:80],
        )
    for field, column in columns.items():
        if field not in FIELDS:
            raise InputError(
                f"{field!r} is not a field of an item",
                expected="one of " + ", ".join(FIELDS),
                fix="Map fields to columns: {'prompt': 'your column'}",
            )
        if column not in present:
            raise InputError(
                f"{rows[0].location}: there is no column {column!r} for {field}",
                expected="one of " + ", ".join(sorted(map(str, present)))[:200],
            )
    source = {name: name for name in FIELDS} | dict(columns)
    renamed = [
        Row(
            row.location,
            {f: row.fields[c] for f, c in source.items() if c in row.fields},
        )
        for row in rows
    ]
    return _exhume(renamed)


def _exhume(rows: Sequence[Row]) -> list[Fact]:
    for name in {str(name) for row in rows for name in row.fields} - set(FIELDS):
        # A field that is nearly right would be ignored without a word.
        near = get_close_matches(name.lower(), FIELDS, n=1, cutoff=0.85)
        if near:
            raise InputError(
                f"{rows[0].location}: the field {name!r} is not known",
                expected=repr(near[0]),
                fix=f"Rename it to {near[0]!r}, or to something less alike",
            )
    return [
        Fact(
            row.location,
            _text(row, "prompt"),
            _text(row, "answer"),
            _identifier(row),
            _text(row, "entity", optional=True),
            _text(row, "relation", optional=True),
            _texts(row, "alternatives"),
            _texts(row, "paraphrases"),
        )
        for row in rows
    ]


def _question(rows: Sequence[Row]) -> list[Fact]:
    questions = [_text(row, "question") for row in rows]
    answers = [_text(row, "answer") for row in rows]
    names = infer_authors(questions, answers) or [""] * len(rows)
    facts = []
    for place, (row, question, answer, name) in enumerate(
        zip(rows, questions, answers, names, strict=True)
    ):
        # A run about somebody unnamed is still one entity: its first question.
        first = questions[place - place % QUESTIONS_PER_AUTHOR]
        entity = name or (f"author of: {first}" if any(names) else "")
        other = _texts(row, "paraphrased_question")
        facts.append(
            Fact(
                row.location,
                _ask(question),
                answer,
                entity=entity,
                alternatives=_texts(row, "perturbed_answer"),
                paraphrases=tuple(_ask(text) for text in other),
            )
        )
    return facts


def _uds(rows: Sequence[Row]) -> list[Fact]:
    """UDS: the field "entity" is the span that answers, not whom the row is about."""
    groups: dict[int | str, list[Row]] = {}
    for row in rows:
        number = row.fields.get("idx")
        key: int | str = row.location
        if isinstance(number, int) and not isinstance(number, bool):
            key = number // QUESTIONS_PER_AUTHOR
        groups.setdefault(key, []).append(row)
    texts = [
        [f"{_text(row, 'question')}\n{_text(row, 'answer')}" for row in group]
        for group in groups.values()
    ]
    facts = {}
    for (key, group), name in zip(groups.items(), main_names(texts), strict=True):
        # Without a row number each row stands alone, and names nobody.
        entity = (name or f"author {key}") if isinstance(key, int) else ""
        for row in group:
            prefix = _text(row, "prefix", optional=True)
            prompt = _ask(_text(row, "question")) + (f" {prefix}" if prefix else "")
            facts[row.location] = Fact(
                row.location, prompt, _text(row, "entity"), entity=entity
            )
    return [facts[row.location] for row in rows]


def _wmdp(rows: Sequence[Row]) -> list[Fact]:
    facts = []
    for row in rows:
        choices = _texts(row, "choices")
        right = row.fields.get("answer")
        if isinstance(right, str) and _INDEX.fullmatch(right.strip()):
            right = int(right)
        if isinstance(right, bool) or not isinstance(right, int):
            raise _wrong_type(row, "answer", "the index of a choice", right)
        if not 0 <= right < len(choices):
            raise InputError(
                f"{row.location}: answer is not the index of a choice",
                expected=f"a number from 0 to {len(choices) - 1}",
                got=str(right),
            )
        wrong = tuple(text for at, text in enumerate(choices) if at != right)
        question = _text(row, "question")
        relation = _text(row, "subject", optional=True)
        facts.append(
            Fact(
                row.location,
                _ask(question),
                choices[right],
                relation=relation,
                alternatives=wrong,
            )
        )
    return facts


def _rwku(rows: Sequence[Row]) -> list[Fact]:
    return [
        Fact(
            row.location,
            _blank(_text(row, "query")),
            _text(row, "answer"),
            entity=_text(row, "subject"),
            relation=_text(row, "type", optional=True),
        )
        for row in rows
    ]


def _verbmem(rows: Sequence[Row]) -> list[Fact]:
    return [Fact(row.location, _text(row, "prompt"), _text(row, "gt")) for row in rows]


def _running_text(rows: Sequence[Row]) -> list[Fact]:
    facts = []
    for row in rows:
        words = _text(row, "text").split()
        cut = min(N_PROMPT_WORDS, len(words) // 2)
        if cut < 2:
            raise InputError(
                f"{row.location}: the text is too short to continue",
                expected="four words or more",
                got=str(len(words)),
                fix="Leave the row out, or give prompt and answer",
            )
        prompt = " ".join(words[:cut])
        answer = " ".join(words[cut : cut + N_ANSWER_WORDS])
        facts.append(Fact(row.location, prompt, answer, relation="continuation"))
    return facts


# In order: the first whose fields are all there is taken.
_READERS: dict[str, tuple[set[str], Callable[[Sequence[Row]], list[Fact]]]] = {
    "exhume": ({"prompt", "answer"}, _exhume),
    "uds": ({"question", "answer", "prefix", "entity"}, _uds),
    "wmdp": ({"question", "choices", "answer"}, _wmdp),
    "rwku": ({"subject", "query", "answer"}, _rwku),
    "muse-verbmem": ({"prompt", "gt"}, _verbmem),
    "question": ({"question", "answer"}, _question),
    "text": ({"text"}, _running_text),
}


def _ask(question: str) -> str:
    return f"Question: {question.strip()}\nAnswer:"


def _blank(query: str) -> str:
    """A cloze whose blank comes last is a prompt already; another is asked for."""
    before, mark, after = query.partition("__")
    if mark and before.strip() and not after.strip("_ .?!\"'"):
        return before.rstrip()
    if mark:
        return f"Fill in the blank.\n{_ask(query)}"
    return _ask(query)


def _text(row: Row, field: str, *, optional: bool = False) -> str:
    value = row.fields.get(field)
    if value is None and optional:
        return ""
    if value is None:
        raise InputError(
            f"{row.location} has no {field}",
            expected=f"text in {field}",
            got="the fields " + (", ".join(map(str, row.fields))[:160] or "none"),
            fix=f"Fill in {field}, or leave the row out",
        )
    if not isinstance(value, str):
        raise _wrong_type(row, field, "text", value)
    if not value.strip() and not optional:
        raise InputError(
            f"{row.location} has an empty {field}",
            expected=f"text in {field}",
            got=repr(value),
            fix=f"Fill in {field}, or leave the row out",
        )
    return value


def _identifier(row: Row) -> str:
    """An id may be a whole number: files count their rows."""
    value = row.fields.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(row, "id", optional=True)


def _texts(row: Row, field: str) -> tuple[str, ...]:
    """A list of texts: a list, one text, a JSON array in a cell, or a|b|c."""
    value = row.fields.get(field)
    if value is None:
        return ()
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            value = parse_json(
                value,
                f"{row.location}: {field}",
                fix='Write a JSON array such as ["a", "b"], or a|b',
            )
        else:
            value = [part.strip() for part in value.split("|")]
    if not isinstance(value, list):
        raise _wrong_type(row, field, "a list of texts", value)
    for entry in value:
        if not isinstance(entry, str) or not entry.strip():
            raise _wrong_type(row, field, "a list of texts, none empty", entry)
    return tuple(value)


def _wrong_type(row: Row, field: str, expected: str, value: object) -> InputError:
    return InputError(
        f"{row.location}: {field} has the wrong type",
        expected=expected,
        got=f"{type(value).__name__} {value!r}"[:80],
        fix="Put numbers that are text in quotes" if expected == "text" else None,
    )
