"""Never-taught items about invented entities: the floor without a reference model."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

import numpy as np

from capture.data.items import Item, ItemSet, normalize_text
from capture.data.tokenization import CJK_CHARACTERS, UNSPACED_CHARACTERS, is_unspaced
from evidence.errors import InputError

MAX_TRIES = 2000
START, END = "\x02", "\x03"
SHORT, CHARACTER_CLASSES = 3, 64
"""Length of the substrings by which names are found, and classes by which characters are counted.
"""
_SEPARATOR = re.compile(rf"(\s+|[・･]|(?<=[{CJK_CHARACTERS}])·(?=[{CJK_CHARACTERS}]))")
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_UNSPACED = re.compile(f"[{UNSPACED_CHARACTERS}]")


def invent_items(items: ItemSet, known: ItemSet, rng: np.random.Generator) -> ItemSet:
    """Copy ``items`` with each entity replaced by an invented one.

    Relation, template, answer and alternatives are kept, so that answer frequencies agree with
    the originals. A name of several words recombines words at the same place of known names with
    the same number of words (a given name stays a given name), and a Chinese or Japanese name
    without spaces its first character and the rest of it. Other names are drawn from a
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
    return mirror_items(items, invented)


def mirror_items(items: ItemSet, names: Mapping[str, str]) -> ItemSet:
    """Copies of the items about renamed entities; sentences name the new entity too.

    Args:
        names: New name of each entity.

    Raises:
        InputError: a prompt or paraphrase does not name its entity.
    """
    return ItemSet(
        tuple(_mirror(item, names[item.entity]) for item in items),
        f"never taught ({items.name})" if items.name else "never taught",
        "invented",
    )


def names_its_entity(item: Item) -> bool:
    """Whether every prompt of the item names its entity, so that it can be renamed."""
    return all(mentions_entity(item, prompt) for prompt in (item.prompt, *item.paraphrases))


def mentions_entity(item: Item, text: str) -> bool:
    """Whether a text names the entity of the item, in any case."""
    return bool(_entity_pattern(item, text).search(text))


class _UsedNames:
    """Known names, compared without case and whitespace.

    Every candidate is compared with every known name. Substrings are looked up, and of names that
    nearly equal it, only those with enough characters in common are compared letter by letter: a
    comparison with thousands of names takes microseconds.
    """

    def __init__(self, names: Sequence[str], answers: set[str]):
        self._answers = {normalize_text(answer) for answer in answers}
        self._names: list[str] = []
        self._known: set[str] = set()
        self._sizes: set[int] = set()
        # Substrings of SHORT characters, to the names that hold them.
        self._holding: dict[str, list[str]] = defaultdict(list)
        # (class of characters, name) counts, with room for more names.
        self._counts = np.zeros((CHARACTER_CLASSES, 256), dtype=np.int32)
        self._lengths = np.zeros(256, dtype=np.int32)
        for name in names:
            self.add(name)

    def is_free(self, name: str) -> bool:
        folded = normalize_text(name)
        if folded in self._answers or self._within_known(folded) or self._holds_known(folded):
            return False
        # An invented word one letter away from a known one would be read as that one.
        # Recombined names share whole words with known ones.
        alike = 0.9 if len(_split(folded)[0]) > 1 else 0.8
        return not get_close_matches(folded, self._similar(folded, alike), 1, alike)

    def add(self, name: str) -> None:
        folded = normalize_text(name)
        number = len(self._names)
        self._names.append(folded)
        self._known.add(folded)
        self._sizes.add(len(folded))
        for short in _substrings(folded, SHORT):
            self._holding[short].append(folded)
        if number == self._counts.shape[1]:
            self._counts = np.pad(self._counts, ((0, 0), (0, number)))
            self._lengths = np.pad(self._lengths, (0, number))
        self._lengths[number] = len(folded)
        for of_class, count in _counted(folded).items():
            self._counts[of_class, number] = count

    def _within_known(self, folded: str) -> bool:
        if len(folded) < SHORT:
            return any(folded in known for known in self._names)
        rarest = min((self._holding.get(x, []) for x in _substrings(folded, SHORT)), key=len)
        return any(folded in known for known in rarest)

    def _holds_known(self, folded: str) -> bool:
        return any(not self._known.isdisjoint(_substrings(folded, size)) for size in self._sizes)

    def _similar(self, folded: str, alike: float) -> list[str]:
        """Names of which ``get_close_matches`` may find one: an upper bound of its ratio."""
        counted, n_names = _counted(folded), len(self._names)
        counts = self._counts[list(counted), :n_names]
        shared = np.minimum(counts, np.array(list(counted.values()))[:, None]).sum(0)
        lengths = self._lengths[:n_names] + len(folded)
        return [self._names[at] for at in np.flatnonzero(2 * shared >= alike * lengths - 1e-6)]


def _substrings(text: str, size: int) -> set[str]:
    return {text[at : at + size] for at in range(len(text) - size + 1)}


def _counted(text: str) -> Counter[int]:
    return Counter(ord(character) % CHARACTER_CLASSES for character in text)


def _name_sampler(names: Sequence[str], rng: np.random.Generator) -> Callable[[str], str | None]:
    """A function that draws a candidate name similar to a given one."""
    by_length: dict[int, list[list[str]]] = defaultdict(list)
    unspaced: dict[int, list[str]] = defaultdict(list)
    for name in names:
        words, _ = _split(name)
        by_length[len(words)].append(words)
        if len(words) == 1 and _HAN.fullmatch(name):
            unspaced[len(name)].append(name)
    single_words = [words[0] for words in by_length[1]]
    parts = [word for name in names for word in _split(name)[0]]
    # Single-word names differ in spelling from parts of longer ones; if there are few,
    # use all words.
    letters = _LetterModel(single_words if len(single_words) >= 20 else parts)
    n_tries: Counter[str] = Counter()

    def draw(entity: str) -> str | None:
        words, separators = _split(entity)
        same_length = by_length[len(words)]
        n_tries[entity] += 1
        # Few names have few recombinations: after half the tries, use the character model.
        if n_tries[entity] <= MAX_TRIES // 2:
            if len(words) > 1 and len(same_length) > 1:
                mixed = [
                    same_length[rng.integers(len(same_length))][index]
                    for index in range(len(words))
                ]
                return _joined(mixed, separators)
            alike = unspaced[len(entity)] if _HAN.fullmatch(entity) else []
            if len(entity) > 1 and len(alike) > 1:
                # A family name of one character, then a given name; later every character alone.
                whole = n_tries[entity] <= MAX_TRIES // 4
                ends = [1, len(entity)] if whole else range(1, len(entity) + 1)
                starts = [0, *ends][:-1]
                return "".join(
                    alike[rng.integers(len(alike))][low:high]
                    for low, high in zip(starts, ends, strict=True)
                )
        made = [letters.draw(word, rng) for word in words]
        return _joined([part for part in made if part], separators) if all(made) else None

    return draw


def _split(name: str) -> tuple[list[str], list[str]]:
    """The words of a name, and what stands between them."""
    pieces = _SEPARATOR.split(name.strip())
    return pieces[::2], pieces[1::2]


def _joined(words: Sequence[str], separators: Sequence[str]) -> str:
    """Words with their separators; whitespace becomes a space."""
    text = words[0]
    for separator, word in zip(separators, words[1:], strict=True):
        text += (separator if separator.strip() else " ") + word
    return text


class _LetterModel:
    """Character model of names with up to three characters of context."""

    def __init__(self, words: Sequence[str]):
        self._next: dict[str, list[str]] = defaultdict(list)
        for word in dict.fromkeys(words):
            if not _is_word(word):  # "U.S." teaches full stops inside words
                continue
            text = START + word + END
            for place in range(1, len(text)):
                for context in range(1, min(3, place) + 1):
                    self._next[text[place - context : place]].append(text[place])
        self._open = {
            context for context, successors in self._next.items() if len(set(successors)) > 1
        }

    def draw(self, template: str, rng: np.random.Generator) -> str | None:
        """A word about as long as ``template``, or None when the draw fails."""
        text = START
        while len(text) <= len(template) + 3:
            # With few names, three letters determine the next one: use less context.
            for context in (3, 2, 1):
                before = text[-context:]
                if before in self._open or context == 1:
                    break
            successors = self._next.get(before, [])
            if not successors:
                return None
            letter = successors[rng.integers(len(successors))]
            if letter == END:
                break
            text += letter
        else:
            return None
        word = text[1:]
        if len(word) < max(2 if is_unspaced(template) else 3, len(template) - 2):
            return None
        return word[0].upper() + word[1:] if template[:1].isupper() else word


def _is_word(word: str) -> bool:
    """Whether a word is of letters, with marks on them."""
    return bool(word) and all(
        character.isalpha() or unicodedata.category(character).startswith("M") for character in word
    )


def _mirror(item: Item, name: str) -> Item:
    return replace(
        item,
        id=f"never-{item.id}",
        entity=name,
        prompt=rename_entity(item, item.prompt, name),
        paraphrases=tuple(rename_entity(item, text, name) for text in item.paraphrases),
        answer=_renamed_if_named(item, item.answer, name),
        alternatives=tuple(_renamed_if_named(item, text, name) for text in item.alternatives),
        aliases=tuple(_renamed_if_named(item, text, name) for text in item.aliases),
        key=_renamed_if_named(item, item.key, name),
    )


def _renamed_if_named(item: Item, text: str, name: str) -> str:
    return rename_entity(item, text, name) if mentions_entity(item, text) else text


def _entity_pattern(item: Item, text: str, flags: re.RegexFlag = re.IGNORECASE) -> re.Pattern[str]:
    """Pattern of the entity as whole words ("Niger" is not in "Nigeria"), with any whitespace.

    Scripts without spaces have no whole words, and a word of another script ends where they begin.
    """
    words = r"\s+".join(map(re.escape, item.entity.split()))
    # Those of the text alone: a class of all of them takes milliseconds to compile.
    unspaced = "".join(sorted(set(_UNSPACED.findall(text))))
    letter = rf"[^\W{re.escape(unspaced)}]" if unspaced else r"\w"
    before = "" if is_unspaced(item.entity.strip()[0]) else rf"(?<!{letter})"
    after = "" if is_unspaced(item.entity.strip()[-1]) else rf"(?!{letter})"
    return re.compile(before + words + after, flags)


def rename_entity(item: Item, text: str, name: str) -> str:
    """Replace the entity of ``item`` in one of its prompts by another name.

    Raises:
        InputError: the text does not name the entity.
    """
    for flags in (re.NOFLAG, re.IGNORECASE):
        renamed, count = _entity_pattern(item, text, flags).subn(lambda _: name, text)
        if count:
            return renamed
    raise InputError(
        f"a prompt of item {item.id!r} does not name its entity",
        expected=f"{item.entity!r} in the prompt",
        got=repr(text[:120]),
        fix="Name the entity in every prompt, or give never-taught items of your own",
    )
