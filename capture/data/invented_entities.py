"""Never-taught items about invented entities: the floor without a reference model."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches

import numpy as np

from capture.data.items import Item, ItemSet, normalize_text
from evidence.errors import InputError

MAX_TRIES = 2000
START, END = "\x02", "\x03"


def invent_items(items: ItemSet, known: ItemSet, rng: np.random.Generator) -> ItemSet:
    """Copy ``items`` with each entity replaced by an invented one.

    Relation, template, answer and alternatives are kept, so that answer frequencies agree with
    the originals. A name of several words recombines words at the same place of known names with
    the same number of words (a given name stays a given name). Other names are drawn from a
    character model of the known names (up to three characters of context). No name equals,
    contains, is contained in or nearly equals a known entity, or equals an answer. A model may
    still know an invented name by chance: check that the original does not answer these items.

    Args:
        items: The items to copy, such as the forget set.
        known: Further names to learn from and to avoid, such as the retain set; may include
            ``items``.

    Returns:
        As many items as ``items``, in the same order, with new ids.

    Raises:
        InputError: a prompt or paraphrase does not name its entity, or too few names are known.
    """
    names = tuple(dict.fromkeys((*items.entities, *known.entities)))
    answers = {text for item in (*items, *known) for text in (item.answer, *item.alternatives)}
    used = _UsedNames(names, answers)
    draw = _name_sampler(names, rng)
    invented: dict[str, str] = {}
    for entity in items.entities:
        for _ in range(MAX_TRIES):
            name = draw(entity)
            if name and used.is_free(name):
                break
        else:
            raise InputError(
                f"no new name could be invented for {entity!r}",
                expected="enough known names to recombine",
                got=f"{len(names)}",
                fix="Give a larger retain set, or never-taught items of your own",
            )
        used.add(name)
        invented[entity] = name
    return ItemSet(
        tuple(_mirror(item, invented[item.entity]) for item in items),
        f"never taught ({items.name})" if items.name else "never taught",
        "invented",
    )


class _UsedNames:
    """Known names, compared without case and whitespace."""

    def __init__(self, names: Sequence[str], answers: set[str]):
        self._names = [normalize_text(name) for name in names]
        self._answers = {normalize_text(answer) for answer in answers}

    def is_free(self, name: str) -> bool:
        folded = normalize_text(name)
        if folded in self._answers or any(
            folded in known or known in folded for known in self._names
        ):
            return False
        # An invented word one letter away from a known one would be read as that one.
        # Recombined names share whole words with known ones.
        alike = 0.9 if " " in folded else 0.8
        return not get_close_matches(folded, self._names, 1, alike)

    def add(self, name: str) -> None:
        self._names.append(normalize_text(name))


def _name_sampler(names: Sequence[str], rng: np.random.Generator) -> Callable[[str], str | None]:
    """A function that draws a candidate name similar to a given one."""
    by_length: dict[int, list[list[str]]] = defaultdict(list)
    for name in names:
        by_length[len(name.split())].append(name.split())
    single_words = [name for name in names if " " not in name.strip()]
    parts = [word for name in names for word in name.split()]
    # Single-word names differ in spelling from parts of longer ones; if there are few,
    # use all words.
    letters = _LetterModel(single_words if len(single_words) >= 20 else parts)
    n_tries: Counter[str] = Counter()

    def draw(entity: str) -> str | None:
        words = entity.split()
        same_length = by_length[len(words)]
        n_tries[entity] += 1
        # Few names have few recombinations: after half the tries, use the character model.
        if len(words) > 1 and len(same_length) > 1 and n_tries[entity] <= MAX_TRIES // 2:
            mixed = [
                same_length[rng.integers(len(same_length))][index] for index in range(len(words))
            ]
            return " ".join(mixed)
        made = [letters.draw(word, rng) for word in words]
        return " ".join(part for part in made if part) if all(made) else None

    return draw


class _LetterModel:
    """Character model of names with up to three characters of context."""

    def __init__(self, words: Sequence[str]):
        self._next: dict[str, list[str]] = defaultdict(list)
        for word in dict.fromkeys(words):
            if not word.isalpha():  # "U.S." teaches full stops inside words
                continue
            text = START + word + END
            for place in range(1, len(text)):
                for context in range(1, min(3, place) + 1):
                    self._next[text[place - context : place]].append(text[place])

    def draw(self, template: str, rng: np.random.Generator) -> str | None:
        """A word about as long as ``template``, or None when the draw fails."""
        text = START
        while len(text) <= len(template) + 3:
            # With few names, three letters determine the next one: use less context.
            for context in (3, 2, 1):
                successors = self._next.get(text[-context:], [])
                if len(set(successors)) > 1 or context == 1:
                    break
            if not successors:
                return None
            letter = successors[rng.integers(len(successors))]
            if letter == END:
                break
            text += letter
        else:
            return None
        word = text[1:]
        if len(word) < max(3, len(template) - 2):
            return None
        return word[0].upper() + word[1:] if template[:1].isupper() else word


def _mirror(item: Item, name: str) -> Item:
    return replace(
        item,
        id=f"never-{item.id}",
        entity=name,
        prompt=rename_entity(item, item.prompt, name),
        paraphrases=tuple(rename_entity(item, text, name) for text in item.paraphrases),
    )


def rename_entity(item: Item, text: str, name: str) -> str:
    """Replace the entity of ``item`` in one of its prompts by another name.

    Raises:
        InputError: the text does not name the entity.
    """
    # Whole words only ("Niger" is not replaced in "Nigeria"), with any whitespace.
    words = r"\s+".join(map(re.escape, item.entity.split()))
    for flags in (re.NOFLAG, re.IGNORECASE):
        renamed, count = re.subn(rf"(?<!\w){words}(?!\w)", lambda _: name, text, flags=flags)
        if count:
            return renamed
    raise InputError(
        f"a prompt of item {item.id!r} does not name its entity",
        expected=f"{item.entity!r} in the prompt",
        got=repr(text[:120]),
        fix="Name the entity in every prompt, or give never-taught items of your own",
    )
