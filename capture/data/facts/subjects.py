"""Columns that name the entity or the relation of a row, in every format."""

from collections.abc import Sequence
from dataclasses import dataclass

from capture.data.facts.fact import field_label
from capture.data.files.rows import Row

ENTITY_FIELDS = (
    *("entity", "entity_name", "neighbor", "neighbour", "author", "author_name", "person"),
    *("person_name", "subject_name", "character", "edge", "concept", "subj"),
    *("subject", "name", "title", "topic", "target"),
)
"""Columns that name whom or what a row is about; the first that is present is used."""
RELATION_FIELDS = (
    *("relation", "property", "prop", "predicate", "relation_id", "category", "type", "task"),
)
# May also name a field of knowledge ("college_biology").
_AMBIGUOUS = {"subject", "topic", "target"}
_MIN_MENTIONS = 0.3
_MIN_ENTITIES = 8
_MIN_CAPITALS = 0.8


@dataclass(frozen=True)
class Subjects:
    """Entity and relation of each row; "" where the file does not say."""

    entities: tuple[str, ...]
    relations: tuple[str, ...]


def subjects(
    rows: Sequence[Row],
    texts: Sequence[str],
    *,
    used: Sequence[str] = (),
    multiple_choice: bool = False,
    always: bool = False,
) -> Subjects:
    """Read the columns that name entity and relation.

    "subject" and "topic" name the entity where the texts mention it in 30 % of the rows. Otherwise
    they name a field of knowledge, and so the relation, in multiple choice and where they have
    fewer than 8 values that are not written as names.

    Args:
        texts: Question and answer of each row.
        used: Fields that the format uses for something else.
        always: Whether "subject" and "topic" name the entity whatever the texts say.
    """
    present = {name for row in rows for name in row.fields}.difference(used)
    given = (f for f in RELATION_FIELDS if f in present and _is_text(rows, f))
    entity, relation = "", next(given, "")
    for field in ENTITY_FIELDS:
        if field not in present:
            continue
        sure = field not in _AMBIGUOUS
        if not (sure or _is_text(rows, field)):
            continue
        values = _column(rows, field)
        if not any(values):
            continue
        if not (sure or always or _names_entities(values, texts, multiple_choice)):
            relation = relation or field
            continue
        entity = field
        break
    return Subjects(_column(rows, entity), _column(rows, relation))


def _is_text(rows: Sequence[Row], field: str) -> bool:
    values = [row.fields[field] for row in rows if field in row.fields]
    return all(isinstance(v, str | int) and not isinstance(v, bool) for v in values)


def _names_entities(values: Sequence[str], texts: Sequence[str], multiple_choice: bool) -> bool:
    pairs = zip(values, texts, strict=True)
    mentions = sum(value.casefold() in text.casefold() for value, text in pairs if value)
    if mentions >= _MIN_MENTIONS * len(values):
        return True
    if multiple_choice:
        return False
    capitals = sum(value[:1].isupper() for value in values)
    return len(set(values)) >= _MIN_ENTITIES or capitals >= _MIN_CAPITALS * len(values)


def _column(rows: Sequence[Row], field: str) -> tuple[str, ...]:
    return tuple(field_label(row, field).strip() if field else "" for row in rows)
