"""Items: facts with a prompt, an answer, and an entity, the unit of all splits."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from capture.data.facts.fact import Fact
from capture.data.formats.registry import parse_facts
from capture.data.tables import Row, read_table
from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.storage.files import write_atomic
from evidence.storage.regular_files import as_path

_LATER_FIELDS = ("choices", "aliases", "messages", "passage", "key")
MAX_COMBINING_MARKS = 30
"""Combining marks in a row: the limit of Unicode's Stream-Safe Text Format."""


@dataclass(frozen=True)
class Item:
    """One fact.

    Attributes:
        id: Unique within the set.
        entity: Subject of the fact; the unit of splits and intervals.
        prompt: Text before the answer.
        answer: Correct continuation, without the joining space.
        relation: Kind of fact, such as "birthplace"; "" if there is only one kind.
        alternatives: Wrong answers of the same kind.
        paraphrases: Other prompts for the same answer.
        choices: Options of a multiple-choice question in their order, the answer among them.
        aliases: Other right answers.
        messages: (role, text) of each turn before the answer, where one question does not say
            it all: a system prompt, or several turns.
        passage: Whether prompt and answer are running text, asked for verbatim.
        key: The words of the answer that state the fact; the whole answer where empty.

    Raises:
        InputError: a field has the wrong type, is empty although required, or is not valid
            Unicode.

    Examples:
        >>> exhume.Item("1", "France", "The capital of France is", "Paris").answer
        'Paris'
    """

    id: str
    entity: str
    prompt: str
    answer: str
    relation: str = ""
    alternatives: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    passage: bool = False
    key: str = ""

    def __post_init__(self) -> None:
        for field in ("id", "entity", "prompt", "answer", "relation"):
            value = getattr(self, field)
            _check_text(self.id, field, value)
            if field != "relation" and not value.strip():
                raise InputError(
                    f"item {self.id!r} has an empty {field}",
                    expected="some text",
                    got=repr(value),
                    fix=f"Fill in {field}, or leave the item out",
                )
        for field in ("alternatives", "paraphrases", "choices", "aliases"):
            values = getattr(self, field)
            if not isinstance(values, tuple):
                raise InputError(
                    f"item {self.id!r}: {field} is not a tuple",
                    expected="a tuple of strings",
                    got=type(values).__name__,
                )
            for value in values:
                _check_text(self.id, field, value)
                if not value.strip():
                    raise InputError(
                        f"item {self.id!r} has an empty entry in {field}",
                        expected="some text",
                        got=repr(value),
                        fix=f"Remove it from {field}",
                    )
        if self.choices and self.answer not in self.choices:
            raise InputError(
                f"item {self.id!r}: the answer is none of its choices",
                expected=f"one of {', '.join(map(repr, self.choices))}"[:160],
                got=repr(self.answer),
                fix="Spell the answer as the choice is spelled",
            )
        if self.key not in self.answer:
            raise InputError(
                f"item {self.id!r}: the key is not in its answer",
                expected=f"words of {self.answer[:80]!r}",
                got=repr(self.key[:80]),
            )
        for turn in self.messages:
            for value in turn:
                _check_text(self.id, "messages", value)

    @property
    def key_words(self) -> str:
        """The words that must be said: the key, or else the whole answer."""
        return self.key or self.answer

    def to_dict(self) -> dict[str, object]:
        """Its fields, without those added later where they are empty: hashes stay the same."""
        fields = asdict(self)
        return {k: v for k, v in fields.items() if v or k not in _LATER_FIELDS}


@dataclass(frozen=True, repr=False)
class ItemSet:
    """Items in file order, with unique ids.

    Attributes:
        items: The items.
        name: Name of the set in reports; by default, the name of its file.
        format: Recognized file format, such as "exhume" or "tofu".

    Examples:
        >>> items = exhume.ItemSet(tuple(
        ...     exhume.Item(name, name, f"The capital of {name} is", city)
        ...     for name, city in (("France", "Paris"), ("Peru", "Lima"))
        ... ))
        >>> items.entities
        ('France', 'Peru')
        >>> items.of_entities(["Peru"])
        ItemSet('', 1 items, 1 entities)
    """

    items: tuple[Item, ...]
    name: str = ""
    format: str = "exhume"

    def __post_init__(self) -> None:
        if not isinstance(self.items, tuple) or not all(
            isinstance(each, Item) for each in self.items
        ):
            raise InputError(
                f"the items of {self.name or 'the set'} are not items",
                expected="a tuple of Item",
                got=f"{type(self.items).__name__} {self.items!r}"[:80],
            )
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise InputError(
                    f"two items of {self.name or 'the set'} have the id {item.id!r}",
                    expected="every id once",
                    fix="Give each item its own id, or drop the id column",
                )
            seen.add(item.id)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __repr__(self) -> str:
        return f"ItemSet({self.name!r}, {len(self)} items, {len(self.entities)} entities)"

    def to_frame(self) -> pd.DataFrame:
        """One row an item, one column a field."""
        return pd.DataFrame(list(map(asdict, self.items)))

    def _repr_html_(self) -> str:
        columns = ["entity", "relation", "prompt", "answer"]
        return frame_html(repr(self), self.to_frame().reindex(columns=columns))

    @cached_property
    def entities(self) -> tuple[str, ...]:
        """Distinct entities, in the order of first appearance."""
        return tuple(dict.fromkeys(item.entity for item in self.items))

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the items without name and format."""
        return hashlib.sha256(self._jsonl().encode()).hexdigest()

    def of_entities(self, entities: Iterable[str]) -> "ItemSet":
        """The items of ``entities``, in the order of this set.

        Raises:
            InputError: an entity is not in the set.
        """
        wanted = set(entities)
        unknown = sorted(wanted.difference(self.entities))
        if unknown:
            raise InputError(
                f"{self.name or 'the set'} has no entity {unknown[0]!r}",
                expected=f"one of its {len(self.entities)} entities",
                got=f"{len(unknown)} unknown",
            )
        kept = tuple(item for item in self.items if item.entity in wanted)
        return ItemSet(kept, self.name, self.format)

    def to_jsonl(self, path: str | Path) -> None:
        """Write the items as JSON Lines, readable by ``read_items``.

        Raises:
            InputError: the file cannot be written.
        """
        write_atomic(Path(path), self._jsonl())

    def _jsonl(self) -> str:
        rows = (
            json.dumps(item.to_dict(), ensure_ascii=False, sort_keys=True) for item in self.items
        )
        return "".join(row + "\n" for row in rows)


def normalize_text(text: str) -> str:
    """Normalize case, character width and whitespace, for the comparison of texts."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_items(
    path: str | Path, *, name: str | None = None, columns: Mapping[str, str] | None = None
) -> ItemSet:
    """Read facts from JSON, CSV, Parquet, Arrow or text files, also in gzip.

    The format is recognized by the fields: exhume's own (``prompt`` and ``answer``), those of the
    published benchmarks, chats, multiple choice and running text. ``docs/reference/formats.md``
    lists all. A missing id is derived from the text of the row, and a missing entity from its
    prompt and options, so that rows with the same prompt stay together. Spellings of an entity
    that differ only in case, whitespace or Unicode form are unified, and all texts are in NFC.

    Args:
        path: The file, or a folder of ``save_to_disk``. ``FILE/SPLIT`` names a split.
        name: Name of the set; by default, the file name without its suffix.
        columns: Field to column of the file, for other formats: see ``parse_columns``. A column
            mapped as ``prompt`` is taken as it stands, one mapped as ``question`` is put as a
            question.

    Raises:
        InputError: the file is missing, empty, damaged or too large, or a row is invalid; the
            message names the line.

    Examples:
        >>> items = exhume.read_items("forget.jsonl")
        >>> items
        ItemSet('forget', 60 items, 20 entities)
        >>> items.items[0].prompt, items.items[0].answer
        ('Tessa Aalto was born in', 'Lisbon')
    """
    path = as_path(path, "the file of items")
    table = read_table(path)
    file_format, facts = parse_facts(_in_nfc(table.rows), columns)
    entities = [
        fact.entity.strip() or f"about-{_short_hash(fact.prompt, *sorted(fact.choices))}"
        for fact in facts
    ]
    spelling = _spellings(entities)
    stems = _stems(facts)
    seen: dict[str, str] = {}
    copies: Counter[str] = Counter()
    items = []
    for fact, entity, stem in zip(facts, entities, stems, strict=True):
        identifier = fact.id.strip() or _new_id(stem, seen, copies)
        if identifier in seen:
            raise InputError(
                f"{fact.location} has the id {identifier!r} of {seen[identifier]}",
                expected="every id once",
                fix="Give each item its own id, or drop the id column",
            )
        seen[identifier] = fact.location
        try:
            item = Item(
                identifier,
                spelling[normalize_text(entity)],
                fact.prompt,
                fact.answer,
                fact.relation.strip(),
                fact.alternatives,
                fact.paraphrases,
                fact.choices,
                fact.aliases,
                fact.messages,
                fact.passage,
            )
        except InputError as error:
            raise error.prefixed(f"{fact.location}: ") from error
        items.append(item)
    stem = path.name.removesuffix(".gz") if path.suffix == ".gz" else path.name
    file_format = ", ".join([file_format, *table.notes])
    return ItemSet(tuple(items), Path(stem).stem if name is None else name, file_format)


def split_entities(
    items: ItemSet, sizes: Sequence[int], rng: np.random.Generator
) -> tuple[ItemSet, ...]:
    """Split ``items`` at random into disjoint sets of entities.

    Args:
        sizes: Number of entities of each part; other entities are left out.

    Returns:
        One set per size, each in the order of ``items``.

    Raises:
        InputError: a size is below one, or there are too few entities.
    """
    if any(size < 1 for size in sizes):
        raise InputError(
            "a part of a split would be empty",
            expected="sizes of one entity or more",
            got=str(list(sizes)),
        )
    present, needed = len(items.entities), sum(sizes)
    if present < needed:
        raise InputError(
            f"{items.name or 'the set'} has too few entities to split",
            expected=f"{needed} entities ({' + '.join(map(str, sizes))})",
            got=str(present),
            fix=f"Add items about {needed - present} more, or ask for smaller parts",
        )
    order = rng.permutation(present)
    parts, start = [], 0
    for size in sizes:
        chosen = [items.entities[index] for index in order[start : start + size]]
        parts.append(items.of_entities(chosen))
        start += size
    return tuple(parts)


def _check_text(identifier: object, field: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(
            f"item {identifier!r}: {field} is not text",
            expected="a string",
            got=f"{type(value).__name__} {value!r}"[:80],
            fix="Put it in quotes",
        )
    if value.isascii() and "\0" not in value:
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"item {identifier!r}: {field} is not valid Unicode",
            expected="text without lone surrogates",
            got=repr(value[error.start : error.start + 10]),
            fix="Save the file again as UTF-8",
        ) from error
    if "\0" in value:
        raise InputError(
            f"item {identifier!r}: {field} holds a NUL character", expected="plain text"
        )
    if heap := _excess_marks().search(value):
        raise InputError(
            f"item {identifier!r}: {field} has too many combining marks on one letter",
            expected=f"at most {MAX_COMBINING_MARKS}, as in any writing system",
            got=ascii(heap.group()[:4]) + " ...",
        )


@cache
def _excess_marks() -> re.Pattern[str]:
    """Pattern of long runs of combining marks, which are slow to normalize."""
    characters = map(chr, range(0x300, 0x1F000))
    marks = "".join(character for character in characters if unicodedata.combining(character))
    return re.compile(f"[{marks}]{{{MAX_COMBINING_MARKS + 1}}}")


def _short_hash(*texts: str) -> str:
    data = "\x1f".join(texts).encode(errors="surrogatepass")
    return hashlib.sha256(data).hexdigest()[:12]


def _in_nfc(rows: Sequence[Row]) -> list[Row]:
    """The rows with all texts in NFC, so that both Unicode spellings tokenize the same."""
    return [Row(row.location, {name: _nfc(v) for name, v in row.fields.items()}) for row in rows]


def _nfc(value: object) -> object:
    if isinstance(value, list):
        return [_nfc(each) for each in value]
    if isinstance(value, dict):
        return {name: _nfc(each) for name, each in value.items()}
    # A long run of combining marks is slow to normalize, and refused later.
    if isinstance(value, str) and not value.isascii() and not _excess_marks().search(value):
        return unicodedata.normalize("NFC", value)
    return value


def _spellings(entities: Sequence[str]) -> dict[str, str]:
    """Normalized to preferred spelling: the commonest, then one in mixed case.

    The choice does not depend on the order of the rows.
    """
    found: dict[str, Counter[str]] = {}
    for entity in entities:
        found.setdefault(normalize_text(entity), Counter())[entity] += 1
    return {
        key: max(names, key=lambda n: (names[n], not (n.isupper() or n.islower()), n))
        for key, names in found.items()
    }


def _stems(facts: Sequence[Fact]) -> list[str]:
    """Ids from the text: of prompt and answer, and of all fields where these are not enough."""
    stems = [f"item-{_short_hash(fact.prompt, fact.answer)}" for fact in facts]
    rest: dict[str, set[str]] = {}
    others = [_short_hash(*map(repr, _identity(fact))) for fact in facts]
    for stem, other in zip(stems, others, strict=True):
        rest.setdefault(stem, set()).add(other)
    return [
        stem if len(rest[stem]) == 1 else f"{stem}-{other}"
        for stem, other in zip(stems, others, strict=True)
    ]


def _identity(fact: Fact) -> tuple[object, ...]:
    """Everything that a fact says apart from prompt and answer."""
    return (
        *(fact.entity, fact.relation, fact.alternatives, fact.paraphrases),
        *(fact.choices, fact.aliases, fact.messages),
    )


def _new_id(stem: str, taken: Mapping[str, str], copies: Counter[str]) -> str:
    candidate = stem
    while candidate in taken:
        # The counter avoids quadratic time for files of repeated lines.
        copies[stem] += 1
        candidate = f"{stem}-{copies[stem] + 1}"
    return candidate
