"""Multiple choice: log-probability of each option, by letter in any order, and by text.

Models prefer some letters whatever the question, so every option is asked at every letter and its
log-probabilities are averaged (cyclic permutations; arXiv 2309.03882).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.data.asking import Asking, ask
from capture.data.facts.prompts import LETTERS
from capture.data.items import Item, ItemSet
from capture.data.tokenization import encode
from capture.scoring.answers import score_answers
from evidence.progress import AUTO, Progress


@dataclass(frozen=True, eq=False)
class OptionScores:
    """Scores of multiple-choice items.

    Attributes:
        letters: (item,) 1.0 where the letter of the right option has the highest log-probability,
            in the order of the file.
        any_order: (item,) 1.0 where the right option has the highest mean log-probability of its
            letter over all orders of the options.
        texts: (item,) 1.0 where the text of the right option has the highest log-probability a
            token, with no option shown.
    """

    letters: np.ndarray
    any_order: np.ndarray
    texts: np.ndarray


def rotated(item: Item) -> list[Item]:
    """The item with its choices in every cyclic order.

    The ids end in the number of places the choices were moved.
    """
    orders = range(len(item.choices))
    moved = (item.choices[shift:] + item.choices[:shift] for shift in orders)
    return [
        replace(item, id=f"{item.id}-order-{shift}", choices=choices)
        for shift, choices in enumerate(moved)
    ]


def letter_items(
    tokenizer: PreTrainedTokenizerBase, items: ItemSet | Sequence[Item], asking: Asking
) -> ItemSet:
    """Every item in every order of its choices, with the prompts that a model reads.

    The answer is a letter, and no choices are left to render.
    """
    turned = [each for item in items for each in rotated(item)]
    return ItemSet(tuple(map(_by_its_letter, ask(tokenizer, ItemSet(tuple(turned)), asking))))


def _by_its_letter(asked: Item) -> Item:
    letters = LETTERS[: len(asked.choices)]
    answer = letters[asked.choices.index(asked.answer)]
    others = tuple(letter for letter in letters if letter != answer)
    return replace(asked, answer=answer, alternatives=others, choices=(), aliases=())


def text_items(
    tokenizer: PreTrainedTokenizerBase, items: ItemSet | Sequence[Item], asking: Asking
) -> ItemSet:
    """The items without their choices: the answer is the text of the right one."""
    bare = tuple(replace(item, choices=()) for item in items)
    return ask(tokenizer, ItemSet(bare), asking)


def score_options(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: ItemSet | Sequence[Item],
    asking: Asking,
    progress: Progress = AUTO,
) -> OptionScores:
    """Score multiple-choice items, each in every order of its choices.

    Args:
        items: Items with choices, not yet rendered.
        asking: How they are put to the model.
    """
    items = list(items)
    if not items:
        return OptionScores(np.zeros(0), np.zeros(0), np.zeros(0))
    return OptionScores(
        *_by_letter(model, tokenizer, items, asking, progress),
        _by_text(model, tokenizer, items, asking, progress),
    )


def _by_letter(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    asking: Asking,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """(item,) hits in the order of the file, and over all orders."""
    asked = letter_items(tokenizer, items, asking).items
    prompts = [each.prompt for each in asked for _ in range(1 + len(each.alternatives))]
    letters = [letter for each in asked for letter in LETTERS[: 1 + len(each.alternatives)]]
    scores = score_answers(model, encode(tokenizer, prompts, letters), progress=progress).logprob
    as_given, hits, start = np.zeros(len(items)), np.zeros(len(items)), 0
    for index, item in enumerate(items):
        size, right = len(item.choices), item.choices.index(item.answer)
        table = scores[start : start + size * size].reshape(size, size)  # (order, letter)
        start += size * size
        # In order ``shift`` the option at letter i is option i + shift of the file.
        by_option = np.mean([np.roll(row, shift) for shift, row in enumerate(table)], axis=0)
        as_given[index] = table[0].argmax() == right
        hits[index] = by_option.argmax() == right
    return as_given, hits


def _by_text(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    asking: Asking,
    progress: Progress,
) -> np.ndarray:
    asked = text_items(tokenizer, items, asking).items
    pairs = zip(asked, items, strict=True)
    rows = [(each.prompt, choice) for each, item in pairs for choice in item.choices]
    prompts, choices = zip(*rows, strict=True)
    scores = score_answers(model, encode(tokenizer, prompts, choices), progress=progress)
    hits, start = np.zeros(len(items)), 0
    for index, item in enumerate(items):
        chosen = scores.mean_logprob[start : start + len(item.choices)].argmax()
        start += len(item.choices)
        hits[index] = chosen == item.choices.index(item.answer)
    return hits
