"""Names of invented people: new combinations of words that occur in other names."""

from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np

from evidence.errors import InputError


def name_pairs(
    names: int, people: int, rng: np.random.Generator
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(first, last) index pairs for people, and all other pairs, each in random order.

    Each round shifts last names against first names by one more, so every name is equally frequent
    and no pair occurs twice.
    """
    first, last = rng.permutation(names), rng.permutation(names)
    pairs = [
        (int(first[i]), int(last[(i + shift) % names]))
        for shift, i in product(range(names), range(names))
    ]
    named, spare = pairs[:people], pairs[people:]
    return (
        [named[place] for place in rng.permutation(len(named))],
        [spare[place] for place in rng.permutation(len(spare))],
    )


def choose_pairs(
    pairs: Sequence[tuple[int, int]], count: int, uses: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """``count`` pairs in which no name has half of its ``uses`` or more."""
    max_uses = max(1, (uses - 1) // 2)
    for _ in range(100):
        used: Counter[tuple[str, int]] = Counter()
        chosen: list[tuple[int, int]] = []
        for i in rng.permutation(len(pairs)):
            first, last = pairs[i]
            if len(chosen) < count and (
                used["first", first] < max_uses and used["last", last] < max_uses
            ):
                used.update((("first", first), ("last", last)))
                chosen.append((first, last))
        if len(chosen) == count:
            return chosen
    raise InputError(
        "no choice of people to forget leaves every name in use elsewhere",
        expected="more names, or fewer people to forget",
        got=f"{count} people",
    )
