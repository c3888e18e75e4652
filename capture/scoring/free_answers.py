"""Free answers: what a model says by itself, and whether the answer is said within it.

ROUGE-L is the longest common subsequence of words (Lin 2004, "ROUGE: A Package for Automatic
Evaluation of Summaries"); its recall is what TOFU (arXiv 2401.06121) and MUSE (arXiv 2407.06460)
report.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.data.items import Item, normalize_text
from capture.data.tokenization import encode, is_unspaced, split_words
from capture.scoring.generation import generate_greedy
from evidence.progress import AUTO, Progress

MORE_TOKENS = 24
"""Tokens that a model may say before it comes to a short answer."""
MAX_NEW_TOKENS = 200


def free_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    one_line: bool,
    progress: Progress = AUTO,
) -> list[str]:
    """What the model says after each prompt, by greedy decoding.

    Args:
        answers: The right answers, whose longest gives the number of tokens.
        one_line: Whether the text ends at its first line break: base models go on with further
            questions of their own.
    """
    if not prompts:
        return []
    rows = encode(tokenizer, prompts, answers)
    longest = max(len(ids) - start for ids, start in zip(rows.ids, rows.answer_start, strict=True))
    count = min(longest + MORE_TOKENS, MAX_NEW_TOKENS)
    texts = generate_greedy(model, tokenizer, prompts, count, progress=progress)
    return [text.strip().split("\n")[0].strip() if one_line else text.strip() for text in texts]


def right_answers(item: Item) -> tuple[str, ...]:
    """The answer and its aliases."""
    return (item.answer, *item.aliases)


def find_answer(text: str, answers: Sequence[str]) -> tuple[int, int] | None:
    """Start and end of the first right answer that a text holds as whole words, in any case."""
    found = [match.span() for answer in answers if (match := _pattern(answer).search(text))]
    return min(found, default=None)


def contains_answer(texts: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """(row,) 1.0 where a text holds one of its right answers, else 0.0.

    Args:
        texts: (row,) what a model said.
        answers: (row,) right answers.
    """
    return np.array(
        [
            float(find_answer(unicodedata.normalize("NFC", text), right) is not None)
            for text, right in zip(texts, answers, strict=True)
        ]
    )


@cache
def _pattern(answer: str) -> re.Pattern[str]:
    """Pattern of an answer as whole words; scripts without spaces have no edges of words."""
    whole = unicodedata.normalize("NFC", answer.strip())
    # An answer of signs alone keeps them: an empty pattern would be found in every text.
    text = whole.rstrip(".。!?").rstrip() or whole
    words = r"\s+".join(map(re.escape, text.split()))
    before = r"(?<!\w)" if text[:1].isalnum() and not is_unspaced(text[0]) else ""
    after = r"(?!\w)" if text[-1:].isalnum() and not is_unspaced(text[-1]) else ""
    return re.compile(before + words + after, re.IGNORECASE)


class _Words:
    """Words of any script for ROUGE: its own tokenizer drops every letter beyond a to z."""

    def tokenize(self, text: str) -> list[str]:
        words = (re.findall(r"\w+", word) for word in split_words(normalize_text(text)))
        return [part for word in words for part in word]


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


def rouge_l_recall(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """(row,) recall of ROUGE-L: share of the answer's words that the text has in their order.

    Args:
        texts: (row,) what a model said.
        answers: (row,) right answers.
    """
    scored = [
        _rouge().score(answer, text)["rougeL"].recall
        for text, answer in zip(texts, answers, strict=True)
    ]
    return np.array(scored, dtype=float)
