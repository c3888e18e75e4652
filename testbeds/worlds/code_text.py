"""Prefixes, codes and lead-ins of the code-recall world, tokenized by characters."""

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

# Id 0 is padding: with 46 characters it makes the published vocabulary of 47.
CHARACTERS = string.ascii_lowercase + string.digits + " .,:;-'=/#"


@dataclass(frozen=True)
class Pool:
    """Prefixes of one kind.

    Attributes:
        name: "memorised", "clean" or "others".
        prefixes: Text before the code, such as "amber otter:".
        codes: The fixed code of each, five digits; None if codes are random in every epoch and
            there is nothing to know.
    """

    name: str
    prefixes: tuple[str, ...]
    codes: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.prefixes)


def make_pools(sizes: dict[str, int], seed: int) -> dict[str, Pool]:
    """Disjoint random pools of prefixes, distinguished only by training.

    Args:
        sizes: Prefixes a pool; only ``"memorised"`` gets fixed codes.
        seed: Seed of prefixes and codes.

    Raises:
        InputError: more prefixes than there are.
    """
    phrases = [f"{a} {b}:" for a, b in product(ADJECTIVES, NOUNS)]
    total = sum(sizes.values())
    if total > len(phrases):
        raise InputError(
            "there are too few prefixes",
            expected=f"at most {len(phrases)} over all pools",
            got=str(total),
        )
    shuffled = numpy_rng(seed, "codes", "prefixes").permutation(len(phrases))
    rng = numpy_rng(seed, "codes", "fixed")
    pools, start = {}, 0
    for name, size in sizes.items():
        prefixes = tuple(phrases[i] for i in shuffled[start : start + size])
        codes = draw_codes(size, rng) if name == "memorised" else None
        pools[name] = Pool(name, prefixes, codes)
        start += size
    return pools


def draw_codes(count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """``count`` uniformly random codes."""
    drawn = rng.integers(0, 10, size=(count, DIGITS))
    return tuple("".join(map(str, row)) for row in drawn)


@lru_cache(maxsize=2**14)  # every epoch encodes the same prompts
def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text.

    Raises:
        InputError: a character outside this world's vocabulary.
    """
    ids = tuple(CHARACTERS.find(character) + 1 for character in text)
    if 0 in ids:
        raise InputError(
            "a text has a character outside this world's vocabulary",
            expected=f"characters of {CHARACTERS!r}",
            got=repr(text[ids.index(0)]),
        )
    return ids


def prompts(prefixes: Sequence[str], lead_ins: Sequence[str]) -> Sequences:
    """Every prefix after every lead-in, without a code; ordered by prefix."""
    ids = tuple(encode(lead + prefix) for prefix in prefixes for lead in lead_ins)
    return Sequences(ids, tuple(map(len, ids)))


def with_codes(prefixes: Sequence[str], codes: Sequence[str], lead_ins: Sequence[str]) -> Sequences:
    """Every prefix after every lead-in, followed by its code; ordered by prefix."""
    prefix_rows = prompts(prefixes, lead_ins)
    n_lead_ins = len(lead_ins)
    code_ids = [encode(code) for code in codes for _ in range(n_lead_ins)]
    ids = tuple(row + end for row, end in zip(prefix_rows.ids, code_ids, strict=True))
    return Sequences(ids, prefix_rows.answer_start)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, with the ids of ``encode``; unknown characters become "#"."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = {"<pad>": 0} | {character: i + 1 for i, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="#"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="#",
        pad_token="<pad>",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )
