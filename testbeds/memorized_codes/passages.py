"""Texts a language model verifiably knows by heart, with controls beside them.

A text counts as memorised where the model gives its tokens a mean log-probability that
it does not give to a paraphrase of the same length and register. What the two differ in
is then surprisal as well as memory, so a third pool holds texts that are as easy to
predict and that no model has read. Screening is by the model at hand, not by hope.

Source: pools and screening of arXiv 2605.01699; the texts of our own are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.data.sequences import Sequences
from capture.data.tokenization import encode
from erasure.unlearning.training.task import frozen_logprobs
from evidence.errors import InputError
from testbeds.memorized_codes.passages_text import PREDICTABLE, TEXTS

MAX_TOKENS = 96
# A text that is known by heart is known once it has begun: the first words of any text
# surprise, so they are context and are not counted. The paper counts them.
N_CONTEXT_TOKENS = 8
# Thresholds of the paper for Pythia-70M, the model nearest to ours in size.
MIN_KNOWN, MAX_UNKNOWN = -2.0, -3.0


@dataclass(frozen=True)
class Passage:
    """One text and its paraphrase.

    Attributes:
        key: Short name; the unit of every split.
        known: The text as printed everywhere.
        paraphrase: The same in other words.
    """

    key: str
    known: str
    paraphrase: str


PASSAGES = tuple(Passage(*each) for each in TEXTS)


@dataclass(frozen=True)
class Screening:
    """What a model makes of the passages.

    Attributes:
        passages: All that were screened.
        known: (passage,) mean log-probability of a token after the first eight, nats,
            of the text.
        paraphrase: (passage,) the same of its paraphrase.
        predictable: (text,) the same of ``PREDICTABLE``.
        valid: (passage,) whether the text is known and its paraphrase is not.
    """

    passages: tuple[Passage, ...]
    known: np.ndarray
    paraphrase: np.ndarray
    predictable: np.ndarray
    valid: np.ndarray

    @property
    def memorised(self) -> tuple[Passage, ...]:
        """The passages that passed."""
        return tuple(
            p for p, good in zip(self.passages, self.valid, strict=True) if good
        )


def screen(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[Passage] = PASSAGES,
    *,
    known: float = MIN_KNOWN,
    unknown: float = MAX_UNKNOWN,
) -> Screening:
    """Which passages a model knows and whose paraphrases it does not.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        passages: Candidates.
        known: Least mean log-probability a token of a text that counts as known.
        unknown: Largest of a paraphrase that counts as unknown.

    Raises:
        InputError: no passages, two of one key, or thresholds that cross.
    """
    if not passages or len({each.key for each in passages}) < len(passages):
        raise InputError("passages need keys of their own, and there must be some")
    if not unknown <= known < 0:
        raise InputError(
            "thresholds of the screening cannot be used",
            expected="unknown <= known < 0, in nats a token",
            got=f"{unknown} and {known}",
        )
    texts = [p.known for p in passages]
    others = [p.paraphrase for p in passages]
    every = text_logprobs(model, tokenizer, [*texts, *others, *PREDICTABLE])
    first, second, third = np.split(every, [len(texts), 2 * len(texts)])
    valid = (first >= known) & (second <= unknown)
    return Screening(tuple(passages), first, second, third, valid)


def text_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Sequences:
    """Texts as tokens, at most 96 of each, as in the paper."""
    rows = encode(tokenizer, texts)
    ids = tuple(row[:MAX_TOKENS] for row in rows.ids)
    return Sequences(ids, tuple(map(len, ids)))


def text_logprobs(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> np.ndarray:
    """(text,) mean log-probability of a token after the first eight, nats."""
    rows = text_rows(tokenizer, texts)
    starts = tuple(min(N_CONTEXT_TOKENS, len(ids) - 1) for ids in rows.ids)
    rows = Sequences(rows.ids, starts)
    total = frozen_logprobs(model, rows, "answer").double().numpy()
    counts = [len(ids) - start for ids, start in zip(rows.ids, starts, strict=True)]
    return total / np.array(counts)
