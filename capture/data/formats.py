"""Formats of fact files (TOFU, MUSE, WMDP, RWKU, UDS, ...), recognized by their fields.

Questions are rewritten to ``Question: ...`` and ``Answer:`` on two lines, because base models
continue text. With an explicit column mapping, texts are used unchanged.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from capture.data.prompts import question_prompt
from capture.data.tables import Row
from capture.data.tofu_authors import QUESTIONS_PER_AUTHOR, infer_authors, main_names
from evidence.errors import InputError
from evidence.storage.strict_json import parse_json

FIELDS = ("id", "entity", "relation", "prompt", "answer", "alternatives", "paraphrases")
# Verbatim items from running text: number of words in prompt and answer.
N_PROMPT_WORDS = 64
N_ANSWER_WORDS = 32
_INDEX = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Fact:
    """One row with exhume's field names; "" for missing fields."""

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
    """Recognize the format of ``rows`` and convert them to facts.

    ============== ========================================== =======================
    Format         Fields                                     Entity
    ============== ========================================== =======================
    exhume         prompt, answer, or a column mapping        entity
    uds            question, prefix, entity (the span), answer inferred author
    wmdp           question, choices, answer (an index)       one per question
    rwku           subject, query, answer                     subject
    muse-verbmem   prompt, gt                                 one per prompt
    tofu           question, answer, and perturbed answers    inferred author
                   or runs of twenty about one author
    question       question, answer                           one per question
    text           text                                       one per text
    ============== ========================================== =======================

    TOFU's perturbed answers become the alternatives; its paraphrased answer is correct and
    therefore not an alternative.

    Args:
        rows: The records of the file.
        columns: Field (one of ``FIELDS``) to column of the file.

    Raises:
        InputError: no format fits, or a row lacks a field or has one of the wrong type; the
            message names the row.
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
        return "exhume", _exhume(rows)  # raises an error about the missing field
    raise InputError(
        f"{rows[0].location}: no prompt or answer was found",
        expected="prompt and answer, or the fields of TOFU, MUSE, WMDP, RWKU or UDS",
        got="the fields " + (", ".join(sorted(map(str, present)))[:200] or "none"),
        fix="Rename the columns, or map fields to columns",
    )


_TOFU_ONLY = {"perturbed_answer", "paraphrased_answer", "paraphrased_question"}


def _mapped(rows: Sequence[Row], columns: Mapping[str, str], present: set[str]) -> list[Fact]:
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
        Row(row.location, {f: row.fields[c] for f, c in source.items() if c in row.fields})
        for row in rows
    ]
    return _exhume(renamed)


def _exhume(rows: Sequence[Row]) -> list[Fact]:
    for name in {str(name) for row in rows for name in row.fields} - set(FIELDS):
        # A misspelled field would be ignored silently.
        matches = get_close_matches(name.lower(), FIELDS, n=1, cutoff=0.85)
        if matches:
            raise InputError(
                f"{rows[0].location}: the field {name!r} is not known",
                expected=repr(matches[0]),
                fix=f"Rename it to {matches[0]!r}, or to a less similar name",
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
    for index, (row, question, answer, name) in enumerate(
        zip(rows, questions, answers, names, strict=True)
    ):
        # A run without a name is still one entity, named after its first question.
        first = questions[index - index % QUESTIONS_PER_AUTHOR]
        entity = name or (f"author of: {first}" if any(names) else "")
        paraphrases = _texts(row, "paraphrased_question")
        facts.append(
            Fact(
                row.location,
                question_prompt(question),
                answer,
                entity=entity,
                alternatives=_texts(row, "perturbed_answer"),
                paraphrases=tuple(question_prompt(text) for text in paraphrases),
            )
        )
    return facts


def _uds(rows: Sequence[Row]) -> list[Fact]:
    """UDS: the field "entity" holds the answer span, not the subject of the row."""
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
        # Without a row number, runs are unknown and each row is an entity of its own.
        entity = (name or f"author {key}") if isinstance(key, int) else ""
        for row in group:
            prefix = _text(row, "prefix", optional=True)
            prompt = question_prompt(_text(row, "question")) + (f" {prefix}" if prefix else "")
            facts[row.location] = Fact(row.location, prompt, _text(row, "entity"), entity=entity)
    return [facts[row.location] for row in rows]


def _wmdp(rows: Sequence[Row]) -> list[Fact]:
    facts = []
    for row in rows:
        choices = _texts(row, "choices")
        correct = row.fields.get("answer")
        if isinstance(correct, str) and _INDEX.fullmatch(correct.strip()):
            correct = int(correct)
        if isinstance(correct, bool) or not isinstance(correct, int):
            raise _wrong_type(row, "answer", "the index of a choice", correct)
        if not 0 <= correct < len(choices):
            raise InputError(
                f"{row.location}: answer is not the index of a choice",
                expected=f"a number from 0 to {len(choices) - 1}",
                got=str(correct),
            )
        wrong = tuple(text for index, text in enumerate(choices) if index != correct)
        question = _text(row, "question")
        relation = _text(row, "subject", optional=True)
        facts.append(
            Fact(
                row.location,
                question_prompt(question),
                choices[correct],
                relation=relation,
                alternatives=wrong,
            )
        )
    return facts


def _rwku(rows: Sequence[Row]) -> list[Fact]:
    return [
        Fact(
            row.location,
            _cloze_prompt(_text(row, "query")),
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


# The first format whose fields are all present is used.
_READERS: dict[str, tuple[set[str], Callable[[Sequence[Row]], list[Fact]]]] = {
    "exhume": ({"prompt", "answer"}, _exhume),
    "uds": ({"question", "answer", "prefix", "entity"}, _uds),
    "wmdp": ({"question", "choices", "answer"}, _wmdp),
    "rwku": ({"subject", "query", "answer"}, _rwku),
    "muse-verbmem": ({"prompt", "gt"}, _verbmem),
    "question": ({"question", "answer"}, _question),
    "text": ({"text"}, _running_text),
}


def _cloze_prompt(query: str) -> str:
    """The prompt of a cloze: the text before a final blank, else a question."""
    before, mark, after = query.partition("__")
    if mark and before.strip() and not after.strip("_ .?!\"'"):
        return before.rstrip()
    if mark:
        return f"Fill in the blank.\n{question_prompt(query)}"
    return question_prompt(query)


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
    """The id of a row, as text; integers are allowed."""
    value = row.fields.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(row, "id", optional=True)


def _texts(row: Row, field: str) -> tuple[str, ...]:
    """A field with several texts: a list, one text, a JSON array in a cell, or a|b|c."""
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
