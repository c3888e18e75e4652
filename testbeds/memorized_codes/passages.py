"""Texts that a language model verifiably knows by heart, with controls.

A text counts as memorized if the model gives its tokens a mean log-probability that it does not
give to a paraphrase of the same length and register. The two differ in surprisal as well as in
memory, so a third pool has texts that are equally predictable and that no model has read. Each
model is screened.

Source: pools and screening of arXiv 2605.01699; the texts are our own choice.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.data.sequences import Sequences
from capture.data.tokenization import encode
from erasure.unlearning.training.task import frozen_logprobs
from evidence.errors import InputError

MAX_TOKENS = 96
# The first words of any text are surprising, so they are context and are not scored. The paper
# scores them.
N_CONTEXT_TOKENS = 8
# Thresholds of the paper for Pythia-70M, the model closest to ours in size.
MIN_KNOWN, MAX_UNKNOWN = -2.0, -3.0


@dataclass(frozen=True)
class Passage:
    """One text and its paraphrase.

    Attributes:
        key: Short name; the unit of every split.
        known: The text as commonly printed.
        paraphrase: The same in other words.
    """

    key: str
    known: str
    paraphrase: str


_TEXTS = tomllib.loads(
    files("testbeds.memorized_codes").joinpath("passages.toml").read_text(encoding="utf-8")
)
PASSAGES = tuple(Passage(**each) for each in _TEXTS["passage"])
PREDICTABLE: tuple[str, ...] = tuple(_TEXTS["predictable"])
"""Texts of ours that continue as they began; no model has read them."""


@dataclass(frozen=True)
class Screening:
    """Log-probabilities of the passages under a model.

    Attributes:
        passages: All that were screened.
        known: (passage,) mean log-probability of a token after the first eight, nats, of the text.
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
    def memorized(self) -> tuple[Passage, ...]:
        """The passages that passed."""
        return tuple(p for p, good in zip(self.passages, self.valid, strict=True) if good)


def screen(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[Passage] = PASSAGES,
    *,
    known: float = MIN_KNOWN,
    unknown: float = MAX_UNKNOWN,
) -> Screening:
    """Find passages that a model knows and whose paraphrases it does not.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        passages: Candidates.
        known: Smallest mean log-probability a token of a text that counts as known.
        unknown: Largest mean log-probability of a paraphrase that counts as unknown.

    Raises:
        InputError: no passages, two of one key, or thresholds that cross.
    """
    if not passages or len({each.key for each in passages}) < len(passages):
        raise InputError("there must be passages, each with a unique key")
    if not unknown <= known < 0:
        raise InputError(
            "thresholds of the screening cannot be used",
            expected="unknown <= known < 0, in nats a token",
            got=f"{unknown} and {known}",
        )
    texts = [p.known for p in passages]
    paraphrases = [p.paraphrase for p in passages]
    logprobs = text_logprobs(model, tokenizer, [*texts, *paraphrases, *PREDICTABLE])
    known_logprobs, paraphrase_logprobs, predictable_logprobs = np.split(
        logprobs, [len(texts), 2 * len(texts)]
    )
    valid = (known_logprobs >= known) & (paraphrase_logprobs <= unknown)
    return Screening(
        tuple(passages), known_logprobs, paraphrase_logprobs, predictable_logprobs, valid
    )


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
