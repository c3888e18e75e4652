"""Prefixes, codes and lead-ins of the code-recall world, spelled letter by letter."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from transformers import PreTrainedTokenizerFast

from capture.data.sequences import Sequences
from evidence.errors import InputError
from evidence.seeds import numpy_rng

DIGITS = 5

ADJECTIVES = (
    "amber azure black brown coral cream ebony green hazel ivory khaki lilac maroon "
    "olive orange pearl pink plum purple red rose ruby silver white"
).split()
NOUNS = (
    "badger beaver camel cobra crane eagle falcon ferret goose heron horse jackal "
    "lynx magpie moose otter panda quail raven salmon tiger turtle walrus zebra"
).split()
LEAD_INS = (
    "on file: ",
    "as noted, ",
    "in short, ",
    "for today, ",
    "to recall, ",
    "we read: ",
    "see below: ",
    "once more, ",
    "by the way, ",
    "at the desk, ",
    "it is said: ",
    "as before, ",
    "in the book, ",
    "after lunch, ",
    "on the list, ",
    "they wrote: ",
    "for the log, ",
    "in a letter, ",
    "from memory, ",
    "at last, ",
    "so they say, ",
    "on the wall, ",
    "as a rule, ",
    "once again: ",
)
"""24 short neutral openings; the published toy trains on ten."""

# The first entry is padding: 46 signs and it make the published 47.
CHARACTERS = string.ascii_lowercase + string.digits + " .,:;-'=/#"


@dataclass(frozen=True)
class Pool:
    """Sequences of one kind.

    Attributes:
        name: "memorised", "clean" or "others".
        prefixes: What comes before the code, such as "amber otter:".
        codes: The fixed code of each, five digits; None where codes are drawn anew
            in every epoch and there is nothing to know.
    """

    name: str
    prefixes: tuple[str, ...]
    codes: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.prefixes)


def make_pools(sizes: dict[str, int], seed: int) -> dict[str, Pool]:
    """Pools of prefixes drawn from one bag, so nothing but training tells them apart.

    Args:
        sizes: Prefixes a pool; only ``"memorised"`` gets fixed codes.
        seed: Fixes prefixes and codes.

    Raises:
        InputError: more prefixes than there are.
    """
    phrases = [f"{a} {b}:" for a, b in product(ADJECTIVES, NOUNS)]
    total = sum(sizes.values())
    if total > len(phrases):
        raise InputError(
            "there are not so many prefixes",
            expected=f"at most {len(phrases)} over all pools",
            got=str(total),
        )
    order = numpy_rng(seed, "codes", "prefixes").permutation(len(phrases))
    rng = numpy_rng(seed, "codes", "fixed")
    pools, start = {}, 0
    for name, size in sizes.items():
        prefixes = tuple(phrases[place] for place in order[start : start + size])
        codes = draw_codes(size, rng) if name == "memorised" else None
        pools[name] = Pool(name, prefixes, codes)
        start += size
    return pools


def draw_codes(count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """``count`` codes, every digit equally likely."""
    drawn = rng.integers(0, 10, size=(count, DIGITS))
    return tuple("".join(map(str, row)) for row in drawn)


@lru_cache(maxsize=2**14)  # every epoch asks for the same prompts
def encode(text: str) -> tuple[int, ...]:
    """Ids of a text's signs.

    Raises:
        InputError: a sign that is not in this world.
    """
    found = tuple(CHARACTERS.find(sign) + 1 for sign in text)
    if 0 in found:
        raise InputError(
            "a text has a sign this world does not know",
            expected=f"signs of {CHARACTERS!r}",
            got=repr(text[found.index(0)]),
        )
    return found


def prompts(prefixes: Sequence[str], lead_ins: Sequence[str]) -> Sequences:
    """Every prefix after every lead-in, without a code; prefix by prefix."""
    ids = tuple(encode(lead + prefix) for prefix in prefixes for lead in lead_ins)
    return Sequences(ids, tuple(map(len, ids)))


def with_codes(
    prefixes: Sequence[str], codes: Sequence[str], lead_ins: Sequence[str]
) -> Sequences:
    """Every prefix after every lead-in, followed by its code; prefix by prefix."""
    bare = prompts(prefixes, lead_ins)
    each = len(lead_ins)
    ends = [encode(code) for code in codes for _ in range(each)]
    ids = tuple(row + end for row, end in zip(bare.ids, ends, strict=True))
    return Sequences(ids, bare.answer_start)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a sign, with the ids ``encode`` gives; an unknown sign is "#"."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    entries = {"<pad>": 0} | {sign: place + 1 for place, sign in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token="#"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="#",
        pad_token="<pad>",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )
