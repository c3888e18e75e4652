"""Choices: scores of each answer against its alternatives, with TOFU's truth ratio."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.data.items import Item, ItemSet, normalize_text
from capture.data.tokenization import encode, prompt_of
from capture.scoring.answers import score_answers
from evidence.errors import InputError
from evidence.progress import AUTO, Progress
from evidence.seeds import numpy_rng


@dataclass(frozen=True, eq=False)
class ChoiceScores:
    """Scores of each answer against its alternatives.

    Attributes:
        correct: (row,) bool, whether the answer has a higher mean log-probability per token
            than every alternative.
        truth_ratio: (row,) mean over alternatives of the length-normalized probability
            P(a)^(1/tokens), divided by that of the answer: near 0 if the model knows the
            answer, 1 without a preference. Equation 1 of TOFU (arXiv 2401.06121), with the
            answer in place of TOFU's paraphrase of it, and the arithmetic mean of the paper. 1
            if both are 0, as for NaN logits.
        answer: (row,) mean log-probability per token of the answer, in nats.
        best_alternative: (row,) highest mean log-probability of an alternative, in nats.
        n_alternatives: (row,) int, number of alternatives.
    """

    correct: np.ndarray
    truth_ratio: np.ndarray
    answer: np.ndarray
    best_alternative: np.ndarray
    n_alternatives: np.ndarray

    def __len__(self) -> int:
        return len(self.correct)

    def to_frame(self) -> pd.DataFrame:
        """One row per item, one column per attribute."""
        return pd.DataFrame({f.name: getattr(self, f.name) for f in fields(self)})


def score_choices(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: ItemSet | Sequence[Item],
    *,
    prompt_index: int | None = None,
    batch_tokens: int = 4096,
    progress: Progress = AUTO,
) -> ChoiceScores:
    """Score each item's answer against its alternatives (see ``alternatives_of``).

    Args:
        model: A causal language model.
        prompt_index: None for ``Item.prompt``, else an index into ``Item.paraphrases``.
        batch_tokens: Maximum number of padded positions per batch.

    Raises:
        InputError: an item has no alternatives and none can be drawn; or as ``encode``.
    """
    items = list(items)
    others = alternatives_of(items)
    prompts, answers = [], []
    for item, wrong in zip(items, others, strict=True):
        prompts += [prompt_of(item, prompt_index)] * (1 + len(wrong))
        answers += [item.answer, *wrong]
    scores = score_answers(
        model, encode(tokenizer, prompts, answers), batch_tokens=batch_tokens, progress=progress
    ).mean_logprob
    right, best, truth_ratio = np.zeros((3, len(items)))
    start = 0
    for row, wrong in enumerate(others):
        answer_score, *alternative_scores = scores[start : start + 1 + len(wrong)]
        start += 1 + len(wrong)
        right[row], best[row] = answer_score, max(alternative_scores)
        mean = np.mean(np.exp(alternative_scores))
        truth_ratio[row] = (
            1.0
            if np.exp(answer_score) == mean == 0
            else _truth_ratio(answer_score, alternative_scores)
        )
    return ChoiceScores(
        correct=right > best,
        truth_ratio=truth_ratio,
        answer=right,
        best_alternative=best,
        n_alternatives=np.array([len(wrong) for wrong in others], dtype=int),
    )


def alternatives_of(
    items: ItemSet | Sequence[Item], *, max_drawn: int = 3
) -> tuple[tuple[str, ...], ...]:
    """Wrong answers of each item: its alternatives, else up to ``max_drawn`` drawn ones.

    These are drawn from the answers of other items of the same relation, without those that are
    correct for an item with the same prompt or the same entity and relation. The draw depends on
    the item's id and the set of answers, not on their order.

    Raises:
        InputError: an item has no alternatives and its relation has no other answer.
    """
    items = list(items)
    offered: dict[str, dict[str, str]] = {}
    true_answers: dict[tuple[str, ...], set[str]] = {}
    for item in items:
        offered.setdefault(item.relation, {}).setdefault(normalize_text(item.answer), item.answer)
        for key in _fact_keys(item):
            true_answers.setdefault(key, set()).add(normalize_text(item.answer))
    # Sorted once: sorting them for every item would take quadratic time.
    pools = {relation: sorted(answers.values()) for relation, answers in offered.items()}
    chosen = []
    for item in items:
        right = set().union(*(true_answers[key] for key in _fact_keys(item)))
        wrong = tuple(a for a in item.alternatives if normalize_text(a) not in right)
        if not wrong:
            pool = pools[item.relation].copy()
            for key in right & offered[item.relation].keys():
                del pool[bisect_left(pool, offered[item.relation][key])]
            rng = numpy_rng(0, "alternatives", item.id)
            order = rng.permutation(len(pool))[:max_drawn]
            wrong = tuple(pool[index] for index in order)
        if not wrong:
            raise InputError(
                f"item {item.id!r} has no wrong answer to compare with",
                expected="alternatives, or other answers of the same relation",
                got=f"one answer in relation {item.relation!r}",
                fix="Add alternatives to the item",
            )
        chosen.append(wrong)
    return tuple(chosen)


def _fact_keys(item: Item) -> tuple[tuple[str, ...], ...]:
    return (normalize_text(item.prompt),), (normalize_text(item.entity), item.relation)


def _truth_ratio(answer_score: float, alternative_scores: Sequence[float]) -> float:
    scores = np.asarray(alternative_scores)
    log_mean = np.logaddexp.reduce(scores) - np.log(len(scores))
    # exp(700) is just below the largest float64.
    return float(np.exp(min(log_mean - answer_score, 700.0)))
