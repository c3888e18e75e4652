"""Entity-answer contrast: rank of each entity's answer among the answers of others."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from torch import nn

from capture.data.questions import Questions
from capture.data.sequences import Sequences
from capture.scoring.answers import score_answers
from evidence.progress import AUTO, Progress


def first_tokens(rows: Sequences) -> list[int]:
    """(row,) first token of each answer."""
    return [ids[start] for ids, start in zip(rows.ids, rows.answer_start, strict=True)]


def discriminating_tokens(rows: Sequences) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Tokens that discriminate between the answers, by answer position.

    Answers of equal length, such as codes, are compared at all positions, because the first of
    ten digits carries little information. Answers of different lengths are compared at their
    first token.

    Returns:
        Pairs (position, token), and (row, position) index of the pair of the row's own answer.
    """
    pairs = zip(rows.ids, rows.answer_start, strict=True)
    answers = [ids[start:] for ids, start in pairs]
    sizes = set(map(len, answers))
    positions = range(min(sizes) if len(sizes) == 1 else 1)
    watch = [
        (position, token)
        for position in positions
        for token in sorted({answer[position] for answer in answers})
    ]
    column = {pair: index for index, pair in enumerate(watch)}
    own_columns = [
        [column[position, answer[position]] for position in positions] for answer in answers
    ]
    return watch, np.array(own_columns, dtype=int)


@dataclass(frozen=True)
class QuestionScores:
    """Scores of questions.

    Attributes:
        exact_match: (row,) 1.0 if greedy decoding yields the answer, else 0.0.
        contrast: (row,) as ``entity_contrast``.
        mean_logprob: (row,) mean log-probability per answer token, in nats.
    """

    exact_match: np.ndarray
    contrast: np.ndarray
    mean_logprob: np.ndarray


def score_questions(
    model: nn.Module, questions: Questions, rows: Sequences, progress: Progress = AUTO
) -> QuestionScores:
    """Exact match, entity-answer contrast and log-probability of each question."""
    watch, answer_columns = discriminating_tokens(rows)
    scores = score_answers(model, rows, watch=watch, progress=progress)
    return QuestionScores(
        scores.greedy.astype(float),
        entity_contrast(questions, scores.watched, answer_columns),
        scores.mean_logprob,
    )


def entity_contrast(
    questions: Questions, logits: np.ndarray, answer_columns: np.ndarray
) -> np.ndarray:
    """Entity-answer contrast: share of the other answers that the own answer outranks (AUC).

    Rows of one relation and paraphrase form a table of logits, entity by answer. The mean of each
    answer over entities is subtracted, which removes answer-frequency bias and general
    suppression; the rest is the association of answers with entities. Ties count one half, and
    chance is 0.5. If answers are compared at several positions, the contrast is the mean over
    positions.

    Args:
        logits: (row, answer token).
        answer_columns: (row,) column of the row's own answer, or (row, position).

    Returns:
        (row,) in [0, 1]; 0.5 in tables with fewer than two different answers.
    """
    answer_columns = answer_columns.reshape(len(questions), -1)
    tables = defaultdict(list)
    for row, (index, wording) in enumerate(
        zip(questions.item_index, questions.wording, strict=True)
    ):
        tables[questions.items[index].relation, wording].append(row)
    result = np.full(len(questions), 0.5)
    for rows in tables.values():
        table_rows = np.array(rows)
        ranks = [
            _outranked_share(logits[table_rows], columns)
            for columns in answer_columns[table_rows].T
        ]
        known_ranks = [rank for rank in ranks if rank is not None]
        if known_ranks:
            result[table_rows] = np.mean(known_ranks, axis=0)
    return result


def _outranked_share(logits: np.ndarray, answer_columns: np.ndarray) -> np.ndarray | None:
    """(row,) share of the table's other answers outranked; None if there are none."""
    offered = np.unique(answer_columns)
    if len(offered) < 2:
        return None
    table = np.nan_to_num(logits[:, offered], posinf=1e9, neginf=-1e9)
    table = table - table.mean(0)
    own_logits = table[np.arange(len(table)), np.searchsorted(offered, answer_columns)]
    below = (table < own_logits[:, None]).sum(1)
    ties = (table == own_logits[:, None]).sum(1) - 1
    return (below + 0.5 * ties) / (len(offered) - 1)
