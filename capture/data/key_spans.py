"""Key spans: the words of an answer that state the fact, beyond what the question says.

A model that answers in a sentence of its own still knows the fact, so a sentence counts by the
words in it that no other answer and no question contains.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from capture.data.items import Item, normalize_text

_WORD = re.compile(r"[^\W_](?:[\w'’.,:/-]*[^\W_])?")
"""A word or number, with the signs inside it: "O'Neil", "13/07/1971", "3.5"."""
MIN_SENTENCE_WORDS = 6
"""An answer of fewer words is taken as a whole."""
MAX_SPAN_WORDS = 6
_JOINING = frozenset("of the de la le du von van der al bin di da and y".split())


def word_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of every word."""
    return [match.span() for match in _WORD.finditer(text)]


def is_sentence(answer: str) -> bool:
    """Whether an answer is a sentence rather than a name, a number or a phrase."""
    return len(word_spans(answer)) >= MIN_SENTENCE_WORDS


def key_spans(items: Sequence[Item]) -> list[tuple[int, int] | None]:
    """Start and end of the key span in each item's answer.

    A short answer is its own span. In a sentence, words of the question are no part of it; of the
    rest, the run of words with the rarest one is taken, where rare means in few answers of the
    items, and a capital letter or a digit counts as rare.

    Returns:
        (item,) a pair of character positions, or None where the answer says nothing that its
        question does not.
    """
    words = [[item.answer[a:b] for a, b in word_spans(item.answer)] for item in items]
    counts = Counter(word for each in words for word in set(map(_bare, each)))
    return [_key_span(item, counts, len(items)) for item in items]


def _key_span(item: Item, counts: Counter[str], n_items: int) -> tuple[int, int] | None:
    if not is_sentence(item.answer):
        return 0, len(item.answer)
    spans = word_spans(item.answer)
    words = [_bare(item.answer[start:end]) for start, end in spans]
    asked = {_bare(item.prompt[a:b]) for a, b in word_spans(item.prompt)}
    rarity = np.zeros(len(words))
    for position, (word, (start, end)) in enumerate(zip(words, spans, strict=True)):
        if word in asked or word in _JOINING or (len(word) == 1 and not word.isdigit()):
            continue
        stands_out = _stands_out(item.answer[start:end]) and not _opens(item.answer, start)
        rarity[position] = np.log((1 + n_items) / max(counts[word], 1)) + 2.0 * stands_out
    if not rarity.any():
        return None
    seeds = np.flatnonzero(rarity >= 0.8 * rarity.max())
    runs = [_run(item.answer, spans, words, rarity, int(seed)) for seed in seeds]
    first, last = max(runs, key=lambda run: (_score(rarity, run), -run[0]))
    return spans[first][0], spans[last][1]


def _run(
    text: str, spans: Sequence[tuple[int, int]], words: Sequence[str], rarity: np.ndarray, seed: int
) -> tuple[int, int]:
    """First and last word of the run about ``seed``: words about as rare, and joining ones."""
    limit = 0.6 * rarity[seed]
    ends = [seed, seed]
    for side, step in ((0, -1), (1, 1)):
        while ends[1] - ends[0] + 1 < MAX_SPAN_WORDS:
            following = ends[side] + step
            if 0 <= following + step < len(words) and words[following] in _JOINING:
                following += step
            if not 0 <= following < len(words) or rarity[following] < limit:
                break
            low, high = sorted((ends[side], following))
            if not all(_adjacent(text, spans, index) for index in range(low + 1, high + 1)):
                break
            ends[side] = following
    return ends[0], ends[1]


def _bare(word: str) -> str:
    """A word without case and without the ending of a possessive."""
    return normalize_text(word).removesuffix("'s").removesuffix("’s")


def _stands_out(word: str) -> bool:
    return word[0].isupper() or any(character.isdigit() for character in word)


def _opens(text: str, start: int) -> bool:
    """Whether a sentence begins here, so that a capital letter says nothing."""
    before = text[:start].rstrip(" '\"“‘(")
    return not before or before[-1] in ".!?:"


def _adjacent(text: str, spans: Sequence[tuple[int, int]], index: int) -> bool:
    """Whether a word follows the one before it with nothing but a space between."""
    return not text[spans[index - 1][1] : spans[index][0]].strip()


def _score(rarity: np.ndarray, run: tuple[int, int]) -> float:
    """Mean rarity of a run; of equally rare runs the longer one says more."""
    within = rarity[run[0] : run[1] + 1]
    return float(within.mean() + 0.2 * len(within))
