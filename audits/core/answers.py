"""What each model says: one scoring pass over all questions, kept as plain lists."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.data.items import Item, ItemSet
from capture.data.questions import Questions
from capture.data.sequences import Sequences
from capture.data.tokenization import encode
from capture.network.discovery.position_limit import position_limit
from capture.scoring import contrast
from capture.scoring.answers import generate_greedy, score_answers, score_choices
from evidence.progress import Progress

# JSON has no infinity; below this a log-probability says no more.
MIN_LOGPROB = -1e4


@dataclass(frozen=True)
class QuestionScores:
    """Scores of one question set on one model.

    Attributes:
        greedy: (row,) 1.0 where greedy decoding gives the answer.
        mean_logprob: (row,) nats a token.
        contrast: (row,) see ``capture.scoring.contrast``.
    """

    greedy: np.ndarray
    mean_logprob: np.ndarray
    contrast: np.ndarray


def general_text() -> list[str]:
    """Plain English sentences, ours, for the utility of a language model."""
    text = files("audits.core").joinpath("general_text.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def score_question_sets(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Mapping[str, Questions],
    progress: Progress,
) -> dict[str, Any]:
    """Score named question sets; JSON-ready."""
    result = {}
    for name, each in questions.items():
        heard = contrast.score_questions(model, each, each.encoded(tokenizer), progress)
        result[name] = {
            "greedy": [int(hit) for hit in heard.exact_match],
            "mean_logprob": _finite(heard.mean_logprob),
            "contrast": heard.contrast.tolist(),
        }
    return result


def scores_from_json(saved: dict[str, Any]) -> QuestionScores:
    """Read back one set of ``score_question_sets``."""
    return QuestionScores(
        np.array(saved["greedy"], dtype=np.float64),
        np.array(saved["mean_logprob"], dtype=np.float64),
        np.array(saved["contrast"], dtype=np.float64),
    )


def truth_ratios(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: ItemSet | tuple[Item, ...],
    progress: Progress,
) -> dict[str, Any]:
    """Truth ratio and first rank of every item's own prompt; JSON-ready."""
    scores = score_choices(model, tokenizer, list(items), progress=progress)
    return {
        "ranked_first": float(scores.correct.mean()),
        "truth_ratio": _finite(np.minimum(scores.truth_ratio, 1e4)),
    }


def utility_of_text(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, progress: Progress
) -> dict[str, Any] | None:
    """Mean log-probability a token of general text, or None where it has no meaning.

    A model with a closed vocabulary (most words unknown to its tokenizer) cannot be
    judged on general English.
    """
    rows = encode(tokenizer, general_text())
    unknown = tokenizer.unk_token_id
    tokens = [token for row in rows.ids for token in row]
    strange = sum(token == unknown for token in tokens)
    if unknown is not None and strange > 0.2 * len(tokens):
        return None
    # The beginning of a text is text as well, and all that fits some models.
    most = position_limit(model)
    whole = Sequences(tuple(ids[:most] for ids in rows.ids), (1,) * len(rows))
    scores = score_answers(model, whole, progress=progress)
    total = float(np.sum(np.maximum(scores.logprob, MIN_LOGPROB * scores.n_tokens)))
    return {
        "logprob_per_token": total / int(scores.n_tokens.sum()),
        # What guessing evenly among all tokens would give.
        "logprob_of_guessing": -float(np.log(len(tokenizer))),
    }


def free_text(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    progress: Progress,
) -> list[str]:
    """Sixteen greedy tokens after each prompt, for a look at degenerate output."""
    return generate_greedy(model, tokenizer, prompts, 16, progress=progress)


def distinct_share(texts: list[str]) -> float:
    """Mean share of distinct words in each text; near 0 for "and and and"."""
    shares = [
        len(set(text.split())) / len(text.split()) for text in texts if text.split()
    ]
    return float(np.mean(shares)) if shares else 0.0


def _finite(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.nan_to_num(values, neginf=MIN_LOGPROB)]
