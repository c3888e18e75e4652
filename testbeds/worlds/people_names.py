"""Names for invented people: combinations new, every word of them in use elsewhere."""

from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np

from evidence.errors import InputError


def name_pairs(
    names: int, people: int, rng: np.random.Generator
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs of first and last name for people, and all others, each in random order.

    Going round by round through last names shifted against the first names uses every
    name equally often, and no pair twice.
    """
    first, last = rng.permutation(names), rng.permutation(names)
    rounds = [
        (int(first[i]), int(last[(i + shift) % names]))
        for shift, i in product(range(names), range(names))
    ]
    named, spare = rounds[:people], rounds[people:]
    return (
        [named[place] for place in rng.permutation(len(named))],
        [spare[place] for place in rng.permutation(len(spare))],
    )


def choose_pairs(
    pairs: Sequence[tuple[int, int]], count: int, uses: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """``count`` pairs in which no name comes up in half of its ``uses`` or more."""
    most = max(1, (uses - 1) // 2)
    for _ in range(100):
        used: Counter[tuple[str, int]] = Counter()
        chosen: list[tuple[int, int]] = []
        for place in rng.permutation(len(pairs)):
            first, last = pairs[place]
            if len(chosen) < count and (
                used["first", first] < most and used["last", last] < most
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
