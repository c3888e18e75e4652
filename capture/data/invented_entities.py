"""Items about entities no model can know: the floor where there is no reference."""

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
    """Mirror each entity of ``items`` with an invented one.

    The invented items keep relation, template, answer and alternatives, so that
    answers are as frequent as in the originals and only the name differs. A name of
    several words recombines words of known names of that many words, each in its
    own place (a given name stays a given name); any other name is drawn from a
    letter model of the known names (three letters of context, fewer where the names
    are few). No name equals a known entity, is part of one, contains one, is spelled
    almost like one, or is an answer. That no model has met it by chance is likely,
    not certain: check that the original does not answer these items.

    Args:
        items: What to mirror, such as the forget set.
        known: Every other name to learn from and to avoid, such as the retain set;
            may hold ``items`` or not.
        rng: Source of the names.

    Returns:
        As many items as ``items``, in its order, with ids of their own.

    Raises:
        InputError: a prompt or paraphrase does not name its entity, or too few
            names are known to invent others.
    """
    names = tuple(dict.fromkeys((*items.entities, *known.entities)))
    answers = {
        text for item in (*items, *known) for text in (item.answer, *item.alternatives)
    }
    taken = _Taken(names, answers)
    draw = _drawer(names, rng)
    invented: dict[str, str] = {}
    for entity in items.entities:
        for _ in range(MAX_TRIES):
            name = draw(entity)
            if name and taken.free(name):
                break
        else:
            raise InputError(
                f"no new name could be invented for {entity!r}",
                expected="enough known names to recombine",
                got=f"{len(names)}",
                fix="Give a larger retain set, or never-taught items of your own",
            )
        taken.add(name)
        invented[entity] = name
    return ItemSet(
        tuple(_mirror(item, invented[item.entity]) for item in items),
        f"never taught ({items.name})" if items.name else "never taught",
        "invented",
    )


class _Taken:
    """Names that may not be given, compared without case and whitespace."""

    def __init__(self, names: Sequence[str], answers: set[str]):
        self._names = [normalize_text(name) for name in names]
        self._answers = {normalize_text(answer) for answer in answers}

    def free(self, name: str) -> bool:
        folded = normalize_text(name)
        if folded in self._answers or any(
            folded in known or known in folded for known in self._names
        ):
            return False
        # A made-up word one letter from a known one would be read as that one;
        # recombined names share whole words with known ones, and may.
        alike = 0.9 if " " in folded else 0.8
        return not get_close_matches(folded, self._names, 1, alike)

    def add(self, name: str) -> None:
        self._names.append(normalize_text(name))


def _drawer(
    names: Sequence[str], rng: np.random.Generator
) -> Callable[[str], str | None]:
    """A function that draws one candidate name like the one it is given."""
    by_length: dict[int, list[list[str]]] = defaultdict(list)
    for name in names:
        by_length[len(name.split())].append(name.split())
    whole = [name for name in names if " " not in name.strip()]
    parts = [word for name in names for word in name.split()]
    # Names of one word have a sound of their own; with few of them, any word serves.
    letters = _LetterModel(whole if len(whole) >= 20 else parts)
    calls: Counter[str] = Counter()

    def draw(entity: str) -> str | None:
        words = entity.split()
        kin = by_length[len(words)]
        calls[entity] += 1
        # Few names have few recombinations: after half the tries, make up letters.
        if len(words) > 1 and len(kin) > 1 and calls[entity] <= MAX_TRIES // 2:
            mixed = [kin[rng.integers(len(kin))][place] for place in range(len(words))]
            return " ".join(mixed)
        made = [letters.draw(word, rng) for word in words]
        return " ".join(part for part in made if part) if all(made) else None

    return draw


class _LetterModel:
    """Letters that follow three letters in known names, then two, then one."""

    def __init__(self, words: Sequence[str]):
        self._next: dict[str, list[str]] = defaultdict(list)
        for word in dict.fromkeys(words):
            if not word.isalpha():  # "U.S." teaches full stops inside words
                continue
            text = START + word + END
            for place in range(1, len(text)):
                for context in range(1, min(3, place) + 1):
                    self._next[text[place - context : place]].append(text[place])

    def draw(self, like: str, rng: np.random.Generator) -> str | None:
        """A word about as long as ``like``, or None when the draw fails."""
        text = START
        while len(text) <= len(like) + 3:
            # With few names three letters determine the rest: then look at fewer.
            for context in (3, 2, 1):
                follow = self._next.get(text[-context:], [])
                if len(set(follow)) > 1 or context == 1:
                    break
            if not follow:
                return None
            letter = follow[rng.integers(len(follow))]
            if letter == END:
                break
            text += letter
        else:
            return None
        word = text[1:]
        if len(word) < max(3, len(like) - 2):
            return None
        return word[0].upper() + word[1:] if like[:1].isupper() else word


def _mirror(item: Item, name: str) -> Item:
    return replace(
        item,
        id=f"never-{item.id}",
        entity=name,
        prompt=rename_entity(item, item.prompt, name),
        paraphrases=tuple(rename_entity(item, text, name) for text in item.paraphrases),
    )


def rename_entity(item: Item, text: str, name: str) -> str:
    """A prompt of ``item`` with another name where its entity stands.

    Raises:
        InputError: the text does not name the entity.
    """
    # Whole words only: the "Niger" in "Nigeria" stays. Whitespace as it comes.
    words = r"\s+".join(map(re.escape, item.entity.split()))
    for flags in (re.NOFLAG, re.IGNORECASE):
        renamed, count = re.subn(
            rf"(?<!\w){words}(?!\w)", lambda _: name, text, flags=flags
        )
        if count:
            return renamed
    raise InputError(
        f"a prompt of item {item.id!r} does not name its entity",
        expected=f"{item.entity!r} in the prompt",
        got=repr(text[:120]),
        fix="Name the entity in every prompt, or give never-taught items of your own",
    )
