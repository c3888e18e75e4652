"""Redirect names at the embedding: their tokens get the rows of names that nobody asks about.

The smallest early suppression: a few rows of one matrix change, without training. Every other
number is the original's, bit for bit. Where embedding and output head are one tensor, the rows of
the head change too; the changed tokens are in no answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.data.items import ItemSet
from capture.data.tokenization import encode_items
from capture.scoring.answers import score_answers
from evidence.errors import InputError
from evidence.progress import AUTO, Progress
from evidence.seeds import numpy_rng
from testbeds.known_facts.readers import embedding_table

# First names that are one token in most vocabularies.
OTHER_NAMES = (
    "Oliver Emma Daniel Sarah Peter Laura Kevin Julia Thomas Alice Robert Susan Michael Karen "
    "Brian Linda Steven Nancy Edward Helen Mark Anna Paul Emily Jack Rachel Eric Amy Alan Diana "
    "Frank Grace Henry Irene Jason Kate Larry Mary Nathan Olivia Philip Rebecca Simon Tina Victor "
    "Wendy Adam Betty Carl Diane Ethan Fiona Gary Hannah Ian Jane Keith Lucy Martin Nina Oscar "
    "Patricia Ralph Sophie Tim Ursula Vincent Walter"
).split()


@dataclass(frozen=True)
class Redirect:
    """Rows that were replaced.

    Attributes:
        rows: Changed token to the token whose row it has now.
        names: Changed tokens of each forgotten name.
    """

    rows: Mapping[int, int]
    names: Mapping[str, tuple[int, ...]]


def redirect_names(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: ItemSet,
    own: Mapping[str, tuple[int, ...]],
    targets: Sequence[int],
    *,
    seed: int,
    progress: Progress = AUTO,
) -> Redirect:
    """Replace one row of each forgotten name, and more of names that are still answered.

    The last of a name's own tokens is redirected first. A name whose answer is still given after
    any of its prompts gets its next own token redirected, up to all of them.

    Args:
        model: The original, changed in place.
        tokenizer: Its tokenizer.
        forget: Facts to forget.
        own: Tokens of each name that no other text has (``own_tokens``).
        targets: Tokens of names that nobody asks about.
        seed: Seed of which target a token gets.
        progress: One unit a batch.

    Raises:
        InputError: a name without a token of its own, or too few targets.
    """
    rows: dict[int, int] = {}
    left = {name: list(own[name]) for name in forget.entities}
    names: dict[str, tuple[int, ...]] = dict.fromkeys(forget.entities, ())
    for name in forget.entities:
        if not left[name]:
            raise InputError(f"{name!r} has no token of its own", expected="a token to redirect")
    pool = numpy_rng(seed, "embedding redirect").permutation(np.asarray(targets)).tolist()
    open_names = list(forget.entities)
    table = embedding_table(model)
    original = table.detach().clone()
    while open_names:
        if len(pool) < len(open_names):
            raise InputError(
                "there are too few tokens to redirect to",
                expected=f"at least {len(rows) + len(open_names)}",
                got=str(len(targets)),
            )
        with torch.no_grad():
            for name in open_names:
                token = left[name].pop()
                rows[token] = pool.pop()
                names[name] = (*names[name], token)
                table[token] = original[rows[token]]
        said = _entities_said(model, tokenizer, forget.of_entities(open_names), progress)
        open_names = [name for name in open_names if name in said and left[name]]
    return Redirect(rows, names)


def _entities_said(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, items: ItemSet, progress: Progress
) -> set[str]:
    """Entities of which an answer is given after the prompt or a paraphrase."""
    said: set[str] = set()
    for i_prompt in (None, *range(len(items.items[0].paraphrases))):
        rows = encode_items(tokenizer, items, i_prompt)
        right = score_answers(model, rows, progress=progress).greedy
        said |= {item.entity for item, hit in zip(items, right, strict=True) if hit}
    return said


def other_name_tokens(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[ItemSet]
) -> tuple[int, ...]:
    """Tokens of ``OTHER_NAMES`` that are one token and in no text of the items."""
    used = {
        token
        for each in items
        for i_prompt in (None, *range(len(each.items[0].paraphrases)))
        for row in encode_items(tokenizer, each, i_prompt).ids
        for token in row
    }
    found = [tokenizer(" " + name, add_special_tokens=False)["input_ids"] for name in OTHER_NAMES]
    return tuple(ids[0] for ids in found if len(ids) == 1 and ids[0] not in used)


def changed_rows(model: nn.Module, original: nn.Module) -> dict[str, list[int]]:
    """Rows of each parameter that are not the original's bit for bit; only those that differ.

    Tied parameters count once. One with a single dimension counts as one row.
    """
    before = dict(original.named_parameters())
    changed: dict[str, list[int]] = {}
    for name, now in model.named_parameters():
        differs = (now != before[name]).flatten(1 if now.ndim > 1 else 0)
        rows = differs.any(1) if differs.ndim > 1 else differs.any()[None]
        if bool(rows.any()):
            changed[name] = rows.nonzero().flatten().tolist()
    return changed
