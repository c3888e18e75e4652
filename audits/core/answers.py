"""Scores of a model's answers: exact match, log-probability, contrast, truth ratio."""

from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from audits.core.baseline_scores import GeneralText
from audits.core.scores import Part, ScoreTable
from capture.data.items import Item, ItemSet
from capture.data.questions import Questions
from capture.data.sequences import Sequences
from capture.data.tokenization import encode, split_words
from capture.network.discovery.position_limit import position_limit
from capture.scoring import contrast
from capture.scoring.answers import score_answers
from capture.scoring.choices import score_choices
from capture.scoring.contrast import QuestionScores
from capture.scoring.generation import generate_greedy
from evidence.progress import AUTO, Progress

# JSON has no infinity, so log-probabilities are clipped here.
MIN_LOGPROB = -1e4
MAX_TABLE = 1 << 24
"""Rows times answers in one table of logits, 128 MB."""


def general_text() -> list[str]:
    """Plain English sentences of our own, to measure a language model's utility."""
    text = files("audits.core").joinpath("general_text.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def score_question_sets(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Mapping[Part, Questions],
    progress: Progress,
) -> dict[Part, QuestionScores]:
    """Score question sets; log-probabilities are finite."""
    result = {}
    for part, question_set in questions.items():
        scores = score_many(model, question_set, question_set.encoded(tokenizer), progress)
        logprob = np.array(_finite(scores.mean_logprob))
        result[part] = QuestionScores(scores.exact_match, scores.contrast, logprob)
    return result


def score_many(
    model: nn.Module, questions: Questions, rows: Sequences, progress: Progress = AUTO
) -> QuestionScores:
    """As ``score_questions``; very many questions are scored relation by relation.

    Rows are compared with the answers of their own relation alone, and a table of all rows and
    all answers grows with the square of the questions.
    """
    if len(rows) * len(set(questions.answers)) <= MAX_TABLE:
        return contrast.score_questions(model, questions, rows, progress)
    by_relation: dict[str, list[int]] = {}
    for row, index in enumerate(questions.item_index):
        by_relation.setdefault(questions.items[index].relation, []).append(row)
    exact_match, contrasts, mean_logprob = np.zeros((3, len(rows)))
    for chosen in by_relation.values():
        mask = np.zeros(len(rows), dtype=bool)
        mask[chosen] = True
        part = contrast.score_questions(model, questions.select(mask), rows[chosen], progress)
        exact_match[chosen], contrasts[chosen] = part.exact_match, part.contrast
        mean_logprob[chosen] = part.mean_logprob
    return QuestionScores(exact_match, contrasts, mean_logprob)


def score_tables(
    questions: Mapping[Part, Questions], scores: Mapping[Part, QuestionScores]
) -> dict[str, dict[Part, ScoreTable]]:
    """Exact match and contrast of question sets: metric to part to (row, 1) scores."""
    return {
        metric: {
            part: ScoreTable(
                tuple(questions[part].entities),
                np.asarray(getattr(by_row, metric), dtype=np.float64)[:, None],
            )
            for part, by_row in scores.items()
        }
        for metric in ("exact_match", "contrast")
    }


def truth_ratios(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: ItemSet | tuple[Item, ...],
    progress: Progress,
) -> list[float]:
    """(item,) truth ratio of each item's main prompt, at most 1e4."""
    scores = score_choices(model, tokenizer, list(items), progress=progress)
    return _finite(np.minimum(scores.truth_ratio, 1e4))


def utility_of_text(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, progress: Progress, bos: bool = False
) -> GeneralText | None:
    """Mean log-probability a token of general text, or None where it is meaningless.

    With ``bos`` every text begins with the beginning-of-sequence token, as the prompts do.

    It is meaningless for a closed vocabulary, where the tokenizer does not know most words.
    """
    start = str(tokenizer.bos_token) if bos else ""
    rows = encode(tokenizer, [start + text for text in general_text()])
    unknown = tokenizer.unk_token_id
    tokens = [token for row in rows.ids for token in row]
    n_unknown = sum(token == unknown for token in tokens)
    if unknown is not None and n_unknown > 0.2 * len(tokens):
        return None
    # Some models have a short context, so texts are truncated to it.
    max_tokens = position_limit(model)
    truncated = Sequences(tuple(ids[:max_tokens] for ids in rows.ids), (1,) * len(rows))
    scores = score_answers(model, truncated, progress=progress)
    total = float(np.sum(np.maximum(scores.logprob, MIN_LOGPROB * scores.n_tokens)))
    # Guessing is the uniform distribution over all tokens.
    return GeneralText(total / int(scores.n_tokens.sum()), -float(np.log(len(tokenizer))))


def free_text(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[str], progress: Progress
) -> list[str]:
    """Sixteen greedy tokens after each prompt, to detect degenerate output."""
    return generate_greedy(model, tokenizer, prompts, 16, progress=progress)


def distinct_share(texts: Sequence[str]) -> float:
    """Mean share of distinct words in each text; near 0 for "and and and".

    Characters count as words in scripts without spaces.
    """
    words = [split_words(text) for text in texts]
    shares = [len(set(each)) / len(each) for each in words if each]
    return float(np.mean(shares)) if shares else 0.0


def _finite(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.nan_to_num(values, neginf=MIN_LOGPROB)]
