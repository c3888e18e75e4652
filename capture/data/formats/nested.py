"""Rows that hold several facts, or one in parts: lists of questions, SQuAD, CounterFact."""

from collections.abc import Sequence

from capture.data.facts.fact import Fact, field_text, field_texts, parse_cell, wrong_type
from capture.data.facts.subjects import ENTITY_FIELDS, RELATION_FIELDS
from capture.data.files.rows import Row
from evidence.errors import InputError

LIST_FIELDS = (
    *("qa", "qas", "qa_pairs", "qa_list", "questions", "paragraphs", "facts", "items", "examples"),
)
_PARALLEL = (("question", "questions"), ("answer", "answers"))


def list_field(rows: Sequence[Row]) -> str:
    """The field with a list of facts in each row; "" if there is none."""
    for field in LIST_FIELDS:
        values = [row.fields[field] for row in rows if field in row.fields]
        if values and all(_is_list_of_facts(value) for value in values):
            return field
    return ""


def parallel_fields(rows: Sequence[Row]) -> tuple[str, str] | None:
    """Fields with lists of questions and of their answers, of one length in each row."""
    found = [next((f for f in names if f in rows[0].fields), "") for names in _PARALLEL]
    for row in rows:
        lists = [row.fields.get(field) for field in found]
        if not all(isinstance(each, list) and each for each in lists):
            return None
        if len({len(each) for each in lists if isinstance(each, list)}) > 1:
            return None
    return found[0], found[1]


def paired(rows: Sequence[Row]) -> list[Row]:
    """One row a question of rows that hold parallel lists of questions and answers."""
    question, answer = parallel_fields(rows) or ("question", "answer")
    result = []
    for row in rows:
        asked, told = row.fields.get(question), row.fields.get(answer)
        if not isinstance(asked, list) or not isinstance(told, list):
            raise wrong_type(row, question, "a list of questions", asked)
        rest = {name: each for name, each in row.fields.items() if name not in (question, answer)}
        for number, pair in enumerate(zip(asked, told, strict=True), 1):
            fields = rest | {"question": pair[0], "answer": pair[1]}
            result.append(Row(f"{row.location}, {question} {number}", fields))
    return result


def _is_list_of_facts(value: object) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith(("[{", "[["))
    return isinstance(value, list) and all(
        isinstance(each, dict) or (isinstance(each, list) and len(each) == 2) for each in value
    )


def unnested(rows: Sequence[Row]) -> list[Row]:
    """One row a fact; columns that name entity and relation are handed down.

    Raises:
        InputError: a list without facts, or an entry that is no object and no pair.
    """
    field = list_field(rows)
    inner: list[Row] = []
    for row in rows:
        value = row.fields.get(field)
        if isinstance(value, str):
            value = parse_cell(row, field, value)
        if not isinstance(value, list) or not value:
            raise wrong_type(row, field, "a list of questions and answers", value)
        kept = {
            name: row.fields[name]
            for name in (*ENTITY_FIELDS, *RELATION_FIELDS)
            if name in row.fields
        }
        for number, each in enumerate(value, 1):
            location = f"{row.location}, {field} {number}"
            if isinstance(each, list) and len(each) == 2:
                each = {"question": each[0], "answer": each[1]}
            if not isinstance(each, dict):
                raise wrong_type(row, field, "objects or pairs", each)
            lowered = {str(name).strip().lower(): v for name, v in each.items() if v is not None}
            # SQuAD's own numbers of questions are no entities.
            inner.append(Row(location, kept | lowered))
    return unnested(inner) if list_field(inner) else inner


def is_counterfact(present: frozenset[str]) -> bool:
    """Whether rows are CounterFact's, whole or flattened."""
    return "requested_rewrite" in present or {"prompt", "subject", "target_true"} <= present


def read_counterfact(rows: Sequence[Row]) -> list[Fact]:
    """CounterFact: the true target is the fact, the new one a wrong answer."""
    facts = []
    for row in rows:
        value = row.fields.get("requested_rewrite", row.fields)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, dict):
            raise wrong_type(row, "requested_rewrite", "an object", value)
        inner = Row(row.location, {str(name): each for name, each in value.items()})
        subject = field_text(inner, "subject")
        template = field_text(inner, "prompt")
        blanked = template if "{}" in template else template.replace(subject, "{}")
        wrong = [_target(inner, name) for name in ("target_new", "target_false")]
        paraphrases = field_texts(row, "paraphrase_prompts", bars=False)
        answer = _target(inner, "target_true")
        if not answer:
            raise InputError(
                f"{row.location} has no target_true", expected="the true answer of the rewrite"
            )
        facts.append(
            Fact(
                row.location,
                template.replace("{}", subject).rstrip(),
                answer,
                entity=subject,
                relation=field_text(inner, "relation_id", optional=True)
                or blanked.replace("{}", "_"),
                alternatives=tuple(text for text in wrong if text),
                paraphrases=tuple(text.rstrip() for text in paraphrases),
            )
        )
    return facts


def _target(row: Row, field: str) -> str:
    value = row.fields.get(field)
    if isinstance(value, dict):
        value = value.get("str")
        row = Row(row.location, {field: value})
    return field_text(row, field, optional=True).strip()
