"""Facts as items: a prompt, its answer, and the entity every split goes by."""

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

from capture.data.formats import Fact, parse_facts
from capture.data.tables import read_rows
from evidence.errors import InputError
from evidence.storage.files import write_atomic
from evidence.storage.regular_files import as_path

MAX_COMBINING_MARKS = 30
"""Combining marks in a row: the limit of Unicode's Stream-Safe Text Format."""


@dataclass(frozen=True)
class Item:
    """One fact.

    Attributes:
        id: Unique within its set.
        entity: Who or what the fact is about; the unit of splits and bootstraps.
        prompt: Text the answer follows.
        answer: The right continuation, without the space that joins it.
        relation: Kind of fact, such as "birthplace"; "" where there is one kind only.
        alternatives: Wrong answers of the same kind.
        paraphrases: Other prompts that ask for the same answer.

    Raises:
        InputError: a field has another type, is empty where it must not be, or
            holds characters that are not valid Unicode.
    """

    id: str
    entity: str
    prompt: str
    answer: str
    relation: str = ""
    alternatives: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()

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
        for field in ("alternatives", "paraphrases"):
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


@dataclass(frozen=True)
class ItemSet:
    """Items in file order, with unique ids.

    Attributes:
        items: The items.
        name: What to call the set in reports; the file's name when it was read.
        format: How the file was understood, such as "exhume" or "tofu".
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

    @cached_property
    def entities(self) -> tuple[str, ...]:
        """Each entity once, in the order of first appearance."""
        return tuple(dict.fromkeys(item.entity for item in self.items))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the items alone (name and format left out), as hexadecimal."""
        return hashlib.sha256(self._jsonl().encode()).hexdigest()

    def of_entities(self, entities: Iterable[str]) -> "ItemSet":
        """The items of ``entities``, in the order of this set.

        Raises:
            InputError: an entity that is not in the set.
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
        """Write the set as JSON Lines that ``read_items`` reads back to equal items.

        Raises:
            InputError: the file cannot be written.
        """
        write_atomic(Path(path), self._jsonl())

    def _jsonl(self) -> str:
        rows = (
            json.dumps(asdict(item), ensure_ascii=False, sort_keys=True)
            for item in self.items
        )
        return "".join(row + "\n" for row in rows)


def normalize_text(text: str) -> str:
    """``text`` with case, width and runs of whitespace made equal, to compare names."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_items(
    path: str | Path,
    *,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> ItemSet:
    """Read facts from JSON Lines, JSON, CSV or Parquet.

    Fields are exhume's own (``prompt`` and ``answer`` are required; in CSV, lists
    are JSON arrays or ``a|b``), or those of TOFU, MUSE, WMDP, RWKU and UDS: see
    ``capture.data.formats.understand``. A row without an id gets one made from its
    text; a row without an entity gets one made from its prompt, so that rows with the
    same prompt stay together. Spellings of an entity that differ only in case or
    whitespace become the first of them.

    Args:
        path: The file.
        name: What to call the set; the file's name without its ending by default.
        columns: Which column of the file holds which field, for other files.

    Raises:
        InputError: the file is missing, empty, broken or too large, or a row cannot
            be understood; the message names the line.
    """
    path = as_path(path, "the file of items")
    form, facts = parse_facts(read_rows(path), columns)
    spelling: dict[str, str] = {}
    seen: dict[str, str] = {}
    copies: Counter[str] = Counter()
    items = []
    for fact in facts:
        entity = fact.entity.strip() or f"about-{_short(fact.prompt)}"
        entity = spelling.setdefault(normalize_text(entity), entity)
        identifier = fact.id.strip() or _new_id(fact, seen, copies)
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
                entity,
                fact.prompt,
                fact.answer,
                fact.relation.strip(),
                fact.alternatives,
                fact.paraphrases,
            )
        except InputError as error:
            raise InputError(
                f"{fact.location}: {error.wrong}",
                expected=error.expected,
                got=error.got,
                fix=error.fix,
            ) from error
        items.append(item)
    return ItemSet(tuple(items), path.stem if name is None else name, form)


def split_entities(
    items: ItemSet, sizes: Sequence[int], rng: np.random.Generator
) -> tuple[ItemSet, ...]:
    """Disjoint random parts of ``items``, by entity and never by row.

    Args:
        items: The set to split.
        sizes: How many entities each part gets; entities left over are in no part.
        rng: Source of the draw.

    Returns:
        One set a size, each in the order of ``items``.

    Raises:
        InputError: a size below one, or fewer entities than the sizes add up to.
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
        chosen = [items.entities[place] for place in order[start : start + size]]
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
    if heap := _heaped().search(value):
        raise InputError(
            f"item {identifier!r}: {field} heaps marks on one letter",
            expected=f"at most {MAX_COMBINING_MARKS}, as in any writing system",
            got=ascii(heap.group()[:4]) + " ...",
        )


@cache
def _heaped() -> re.Pattern[str]:
    """Finds runs of marks that no writing has, which take for ever to put in order."""
    known = map(chr, range(0x300, 0x1F000))
    marks = "".join(each for each in known if unicodedata.combining(each))
    return re.compile(f"[{marks}]{{{MAX_COMBINING_MARKS + 1}}}")


def _short(*texts: str) -> str:
    data = "\x1f".join(texts).encode(errors="surrogatepass")
    return hashlib.sha256(data).hexdigest()[:12]


def _new_id(fact: Fact, taken: Mapping[str, str], copies: Counter[str]) -> str:
    stem = f"item-{_short(fact.prompt, fact.answer)}"
    candidate = stem
    while candidate in taken:
        # Counted on, or a file of one line said a million times would take for ever.
        copies[stem] += 1
        candidate = f"{stem}-{copies[stem] + 1}"
    return candidate
