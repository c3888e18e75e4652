"""Scorers: what counts as giving an answer, chosen by the kind of the items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.data.asking import Asking, ask
from capture.data.items import Item, ItemSet
from capture.data.key_spans import is_sentence
from capture.data.questions import Questions, build_questions
from capture.data.tokenization import encode
from capture.scoring.answers import score_answers
from capture.scoring.choices import score_choices
from capture.scoring.free_answers import (
    contains_answer,
    find_answer,
    free_answers,
    right_answers,
    rouge_l_recall,
)
from capture.scoring.options import score_options
from evidence.errors import InputError
from evidence.progress import AUTO, Progress

ScorerName = Literal["auto", "exact", "contains", "rouge_l", "options", "passage", "truth_ratio"]
Metric = Literal[
    "contains",
    "rouge_l",
    "answer_probability",
    "truth_ratio",
    "letters",
    "any_order",
    "option_texts",
]


@dataclass(frozen=True)
class Scorer:
    """What counts as giving an answer.

    Attributes:
        name: Its name in settings.
        label: The same in words.
        metrics: Metrics that it measures besides exact match, the first decides first.
        known: Smallest value of a metric from which the original knows an item; a metric without
            one does not decide that.
        generates: Whether the model answers freely.
    """

    name: ScorerName
    label: str
    metrics: tuple[Metric, ...] = ()
    known: dict[Metric, float] = field(default_factory=dict)
    generates: bool = False


SCORERS: dict[ScorerName, Scorer] = {
    each.name: each
    for each in (
        Scorer("exact", "exact match: the answer follows the prompt token for token"),
        Scorer(
            "contains",
            "containment: the answer is said within what the model says",
            ("contains",),
            {"contains": 1.0},
            generates=True,
        ),
        Scorer(
            "rouge_l",
            "sentences: the key words are said, recall of ROUGE-L, and the probability of the "
            "answer",
            ("contains", "rouge_l", "answer_probability"),
            {"contains": 1.0, "rouge_l": 0.75},
            generates=True,
        ),
        Scorer(
            "options",
            "multiple choice: log-probability of each option by letter, in any order, and by text",
            ("letters", "any_order", "option_texts"),
            {"letters": 1.0, "any_order": 1.0, "option_texts": 1.0},
        ),
        Scorer(
            "passage",
            "running text: recall of ROUGE-L of the continuation, and its probability",
            ("rouge_l", "answer_probability"),
            {"rouge_l": 0.6},
            generates=True,
        ),
        Scorer(
            "truth_ratio",
            "truth ratio: the answer is likelier than its alternatives",
            ("truth_ratio",),
            {"truth_ratio": 0.5},
        ),
    )
}


def choose_scorer(items: Sequence[Item], chat: bool) -> tuple[Scorer, str]:
    """The scorer that fits the items, and why, in one sentence.

    Args:
        chat: Whether they are asked in a chat, where a model answers in its own words.
    """
    total = len(items)
    choices = sum(bool(item.choices) for item in items)
    if choices == total:
        return SCORERS["options"], "every item has choices"
    if sum(item.passage for item in items) == total:
        return SCORERS["passage"], "every item is running text"
    sentences = sum(is_sentence(item.answer) for item in items)
    if 2 * sentences > total:
        return SCORERS["rouge_l"], f"{sentences} of {total} answers are sentences"
    short = "answers are names, numbers or phrases"
    if chat:
        return SCORERS["contains"], f"{short}, and a chat model answers in its own words"
    return SCORERS["exact"], f"{short} that continue the prompt"


def metrics_of(scorer: Scorer, items: ItemSet | Sequence[Item]) -> tuple[Metric, ...]:
    """Its metrics on these items: the truth ratio of sentences where all have alternatives."""
    if scorer.name == "rouge_l" and all(item.alternatives for item in items):
        return (*scorer.metrics, "truth_ratio")
    return scorer.metrics


def fitting_scorer(scorer: Scorer, items: ItemSet) -> Scorer:
    """The scorer of the forget set, or the one that fits another set of other items."""
    fits = {
        "options": all(item.choices for item in items),
        "passage": all(item.passage for item in items),
        "truth_ratio": all(item.alternatives for item in items),
    }
    if fits.get(scorer.name, True):
        return scorer
    chosen, _ = choose_scorer(items.items, chat=True)
    return chosen


def given(scores: Mapping[Metric, np.ndarray], scorer: Scorer) -> np.ndarray:
    """(row,) whether the answer is given by any of the scorer's metrics."""
    least = scorer.known
    return np.any([scores[each] >= least[each] for each in scorer.metrics if each in least], axis=0)


def check_scorer(scorer: Scorer, items: Sequence[Item]) -> None:
    """Refuse a scorer that the items lack a field for.

    Raises:
        InputError: options without choices.
    """
    if scorer.name == "options" and not all(item.choices for item in items):
        lacking = next(item for item in items if not item.choices)
        raise InputError(
            f"item {lacking.id!r} has no choices",
            expected="choices in every item, for the scorer options",
            fix="Leave --scorer out, or give the choices",
        )


@dataclass(frozen=True, eq=False)
class SaidScores:
    """Scores of asked items, one row a prompt.

    Attributes:
        by_metric: Metric to (row,) scores in [0, 1].
        entities: (row,) entity.
        texts: (row,) what the model said; empty where it was not asked to speak.
    """

    by_metric: dict[Metric, np.ndarray]
    entities: tuple[str, ...]
    texts: tuple[str, ...] = ()


def score_said(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: ItemSet,
    scorer: Scorer,
    asking: Asking,
    n_prompts: int = 1,
    progress: Progress = AUTO,
) -> SaidScores:
    """Score what a model says to items.

    Args:
        items: The items as they were read, not yet rendered.
        asking: How they are put to the model.
        n_prompts: Prompts an item: its own, then paraphrases. Options have one.
    """
    if scorer.name == "options":
        options = score_options(model, tokenizer, items, asking, progress)
        return SaidScores(
            {
                "letters": options.letters,
                "any_order": options.any_order,
                "option_texts": options.texts,
            },
            tuple(item.entity for item in items),
        )
    questions = build_questions(ask(tokenizer, items, asking), n_prompts)
    found: dict[Metric, np.ndarray] = {}
    metrics = metrics_of(scorer, items)
    if "truth_ratio" in metrics:
        found["truth_ratio"] = _preference(model, tokenizer, questions, progress)
    if not scorer.generates:
        return SaidScores(found, tuple(questions.entities))
    texts = free_answers(
        model,
        tokenizer,
        questions.prompts,
        questions.answers,
        # Base models go on with questions of their own.
        one_line=not asking.chat
        and scorer.name != "passage"
        and not any("\n" in item.answer for item in items),
        progress=progress,
    )
    if "contains" in scorer.metrics:
        found["contains"] = contains_answer(texts, _spoken(items, questions, scorer))
    if "rouge_l" in scorer.metrics:
        found["rouge_l"] = rouge_l_recall(texts, questions.answers)
    if "answer_probability" in scorer.metrics:
        rows = encode(tokenizer, questions.prompts, questions.answers)
        scores = score_answers(model, rows, progress=progress)
        found["answer_probability"] = np.exp(scores.mean_logprob)
    return SaidScores(found, tuple(questions.entities), tuple(texts))


@dataclass(frozen=True)
class ScorerCheck:
    """A scorer on texts whose truth is known.

    Attributes:
        right: Share of right answers in other words that count.
        wrong: Share of wrong answers that count.
    """

    right: float
    wrong: float


def check_by_words(items: ItemSet, scorer: Scorer) -> ScorerCheck | None:
    """Score texts that are made of the items: right answers in other words, and wrong ones.

    A right text holds the key words in a frame of its own, or a passage after an opening phrase.
    A wrong one is the same with the words of the next item that answers otherwise. None where
    the scorer reads no text.

    Args:
        items: Items with the keys by which they are scored.
    """
    if not scorer.generates:
        return None
    pairs = []
    for place, item in enumerate(items.items):
        others = (items.items[(place + step) % len(items)] for step in range(1, len(items)))
        found = (x for x in others if _differ(item, x))
        other = next(found, None)
        if other is not None:
            pairs.append((item, other))
    if not pairs:
        return None
    right = [_counts(scorer, item, _in_other_words(scorer, item)) for item, _ in pairs]
    wrong = [_counts(scorer, item, _in_other_words(scorer, other)) for item, other in pairs]
    return ScorerCheck(float(np.mean(right)), float(np.mean(wrong)))


def _differ(item: Item, other: Item) -> bool:
    """Whether the words of one answer are not in the other."""
    return (
        find_answer(other.answer, [item.key_words]) is None
        and find_answer(item.answer, [other.key_words]) is None
    )


def _in_other_words(scorer: Scorer, item: Item) -> str:
    said = item.answer if scorer.name == "passage" else item.key_words
    return f"Sure! As far as I remember: {said}"


def _counts(scorer: Scorer, item: Item, text: str) -> bool:
    scores: dict[str, float] = {
        "contains": contains_answer([text], [(item.key_words, *item.aliases)])[0],
        "rouge_l": rouge_l_recall([text], [item.answer])[0],
    }
    return any(scores[str(metric)] >= least for metric, least in scorer.known.items())


def _spoken(items: ItemSet, questions: Questions, scorer: Scorer) -> list[tuple[str, ...]]:
    """(row,) texts of which one must be said: the answer, or the key words of a sentence."""
    asked = [items.items[index] for index in questions.item_index]
    if scorer.name == "rouge_l":
        return [(item.key_words,) for item in asked]
    return [right_answers(item) for item in asked]


def _preference(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, questions: Questions, progress: Progress
) -> np.ndarray:
    """(row,) p / (p + mean of the alternatives), length-normalized: 1/2 without a preference."""
    rows = [
        replace(questions.items[index], id=str(row), prompt=prompt, paraphrases=())
        for row, (index, prompt) in enumerate(
            zip(questions.item_index, questions.prompts, strict=True)
        )
    ]
    return 1 / (1 + score_choices(model, tokenizer, rows, progress=progress).truth_ratio)
