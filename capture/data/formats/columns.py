"""Mapping of fields to columns, for files of no known format."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from capture.data.facts.fact import Fact, field_label, field_text, field_texts, wrong_type
from capture.data.facts.subjects import subjects
from capture.data.files.rows import Row
from capture.data.formats.chat import is_conversation, read_conversations, read_prompt_messages
from capture.data.formats.choices import read_choices
from capture.data.formats.passages import read_texts
from capture.data.formats.questions import answers_of, make_questions
from evidence.errors import InputError

FIELDS = (
    *("id", "entity", "relation", "prompt", "answer", "alternatives", "paraphrases"),
    *("choices", "aliases", "messages", "passage"),
)
"""exhume's own fields, as ``ItemSet.to_jsonl`` writes them."""
MAPPED_FIELDS = (*FIELDS, "question", "text")
"""Fields that a column can be mapped to."""


def parse_columns(text: str) -> dict[str, str]:
    """Parse a mapping such as "question=q,answer=labels,entity=subject".

    "prompt" is taken as it stands; "question" is put as a question. The options of multiple
    choice are one column of lists, or several: "choices=A+B+C+D".

    Raises:
        InputError: an entry without "=", an unknown field, or a field named twice.
    """
    columns: dict[str, str] = {}
    for entry in filter(str.strip, text.split(",")):
        field, mark, column = (part.strip() for part in entry.partition("="))
        if not mark or not field or not column:
            raise InputError(
                f"{entry.strip()!r} maps no field to a column",
                expected="field=column, such as question=q,answer=labels,entity=subject",
            )
        if field in columns:
            raise InputError(f"{field!r} is mapped twice", expected="every field once")
        columns[field] = column
    if not columns:
        raise InputError(
            "the mapping of columns is empty", expected="such as question=q,answer=labels"
        )
    check_fields(columns)
    return columns


def check_fields(columns: Mapping[str, str]) -> None:
    """Refuse a mapping of fields that do not exist.

    Raises:
        InputError: no mapping, or an unknown field.
    """
    if not isinstance(columns, Mapping):
        raise InputError(
            "columns are not a mapping",
            expected="fields to columns: {'prompt': 'your column'}",
            got=f"{type(columns).__name__} {columns!r}"[:80],
        )
    for field, column in columns.items():
        if not isinstance(column, str):
            raise InputError(
                f"the column for {field!r} is not a name",
                expected="text, such as {'prompt': 'your column'}",
                got=f"{type(column).__name__} {column!r}"[:80],
            )
        if field not in MAPPED_FIELDS:
            raise InputError(
                f"{field!r} is not a field of an item",
                expected="one of " + ", ".join(MAPPED_FIELDS),
                fix="Map fields to columns: {'prompt': 'your column'}",
            )
    if "prompt" in columns and "question" in columns:
        raise InputError(
            "both prompt and question are mapped",
            expected="prompt for a text to continue, or question",
        )


def read_mapped(
    rows: Sequence[Row], columns: Mapping[str, str], canonical: Mapping[str, str]
) -> list[Fact]:
    """Read rows by a mapping of fields to columns.

    Args:
        columns: Field to column.
        canonical: Column as it is spelled in the file to its name in ``rows``.

    Raises:
        InputError: a column does not exist, or a row is invalid.
    """
    check_fields(columns)
    present = {name for row in rows for name in row.fields}
    source = {name: [name] for name in FIELDS}
    if {"question", "text", "messages"} & set(columns):
        # Another column of the file may be called "prompt".
        source = {name: source[name] for name in ("entity", "relation", "answer") if name in source}
    for field, column in columns.items():
        parts = [column]
        if field == "choices" and canonical.get(column, column) not in present:
            parts = column.split("+")
        source[field] = [_column(rows, field, part, present, canonical) for part in parts]
    renamed = [Row(row.location, _renamed(row, source)) for row in rows]
    if "text" in columns:
        return read_texts(_without(renamed, "answer"))
    if "messages" in columns:
        return read_conversations(_without(renamed, "answer"))
    asked = "question" if "question" in columns else "prompt"
    if "choices" in columns:
        return _choices(renamed, asked)
    if is_conversation(renamed, asked) or is_conversation(renamed, "answer"):
        return read_prompt_messages([_moved(row, asked, "prompt") for row in renamed])
    if asked == "prompt":
        return read_own(renamed)
    return make_questions(
        renamed,
        [field_text(row, "question") for row in renamed],
        [answers_of(row, "answer") for row in renamed],
        used=("question", "answer"),
    )


def _column(
    rows: Sequence[Row], field: str, column: str, present: set[str], canonical: Mapping[str, str]
) -> str:
    for name in (canonical.get(column, column), column.strip().lower()):
        if name in present:
            return name
    raise InputError(
        f"{rows[0].location}: there is no column {column!r} for {field}",
        expected="one of " + ", ".join(sorted(map(str, present)))[:200],
    )


def _renamed(row: Row, source: Mapping[str, Sequence[str]]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for field, columns in source.items():
        if len(columns) > 1:
            # The last sign of "option_b" or "o2" is the name of the option in the answers.
            labels = [column[-1] for column in columns]
            named = len(set(labels)) == len(labels)
            texts = [row.fields.get(column) for column in columns]
            fields[field] = dict(zip(labels, texts, strict=True)) if named else texts
        elif columns[0] in row.fields:
            fields[field] = row.fields[columns[0]]
    return fields


def _without(rows: Sequence[Row], field: str) -> list[Row]:
    return [Row(r.location, {k: v for k, v in r.fields.items() if k != field}) for r in rows]


def _moved(row: Row, old: str, new: str) -> Row:
    return Row(row.location, {new if k == old else k: v for k, v in row.fields.items()})


def _choices(rows: Sequence[Row], asked: str) -> list[Fact]:
    facts = read_choices([_moved(row, asked, "question") for row in rows])
    if asked == "question":
        return facts
    texts = [field_text(row, asked) for row in rows]
    return [
        replace(fact, prompt=text, question="") for fact, text in zip(facts, texts, strict=True)
    ]


def read_own(rows: Sequence[Row]) -> list[Fact]:
    """Read exhume's own fields; texts are taken as they stand."""
    for name in {str(name) for row in rows for name in row.fields} - set(FIELDS):
        # A misspelled field would be ignored silently.
        matches = get_close_matches(name.lower(), FIELDS, n=1, cutoff=0.85)
        if matches:
            raise InputError(
                f"{rows[0].location}: the field {name!r} is not known",
                expected=repr(matches[0]),
                fix=f"Rename it to {matches[0]!r}, or to a less similar name",
            )
    texts = [f"{row.fields.get('prompt')}\n{row.fields.get('answer')}" for row in rows]
    about = subjects(rows, texts, used=tuple(f for f in FIELDS if f not in ("entity", "relation")))
    return [
        _own(row, entity, relation)
        for row, entity, relation in zip(rows, about.entities, about.relations, strict=True)
    ]


def _own(row: Row, entity: str, relation: str) -> Fact:
    prompt = field_text(row, "prompt")
    answers = answers_of(row, "answer") if isinstance(row.fields.get("answer"), list) else ()
    answer = answers[0] if answers else field_text(row, "answer")
    return Fact(
        row.location,
        prompt,
        answer,
        _identifier(row),
        field_text(row, "entity", optional=True) or entity,
        field_text(row, "relation", optional=True) or relation,
        field_texts(row, "alternatives"),
        field_texts(row, "paraphrases"),
        field_texts(row, "choices"),
        (*answers[1:], *field_texts(row, "aliases")),
        _messages(row),
        _flag(row, "passage"),
    )


def _identifier(row: Row) -> str:
    """The id of a row, as text; integers are allowed."""
    return field_label(row, "id")


def _messages(row: Row) -> tuple[tuple[str, str], ...]:
    value = row.fields.get("messages")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong_type(row, "messages", "a list of [role, text]", value)
    turns = []
    for each in value:
        pair = [each.get("role"), each.get("content")] if isinstance(each, dict) else each
        match pair:
            case [str(role), str(text)]:
                turns.append((role, text))
            case _:
                raise wrong_type(row, "messages", "a list of [role, text]", each)
    return tuple(turns)


def _flag(row: Row, field: str) -> bool:
    value = row.fields.get(field, False)
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if not isinstance(value, bool):
        raise wrong_type(row, field, "true or false", value)
    return value
