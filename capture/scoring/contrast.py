"""How well a model tells each entity's answer from the others', said or not."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from torch import nn

from capture.data.questions import Questions
from capture.data.sequences import Sequences
from capture.scoring.answers import score_answers
from evidence.progress import SILENT, Progress


def first_tokens(rows: Sequences) -> list[int]:
    """(row,) first token of each answer."""
    return [ids[start] for ids, start in zip(rows.ids, rows.answer_start, strict=True)]


def discriminating_tokens(rows: Sequences) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Tokens to watch that tell the answers from each other, place by place.

    Answers of one length, such as codes, are told from each other at every token: to
    know one of ten first digits says little, to know five digits much. Of answers of
    several lengths only the first token stands at the same place in all.

    Returns:
        (place, token) pairs, and (row, place) which of them the row's own answer is.
    """
    pairs = zip(rows.ids, rows.answer_start, strict=True)
    answers = [ids[start:] for ids, start in pairs]
    sizes = set(map(len, answers))
    places = range(min(sizes) if len(sizes) == 1 else 1)
    watch = [
        (place, token)
        for place in places
        for token in sorted({answer[place] for answer in answers})
    ]
    column = {pair: index for index, pair in enumerate(watch)}
    own = [[column[place, answer[place]] for place in places] for answer in answers]
    return watch, np.array(own, dtype=int)


@dataclass(frozen=True)
class QuestionScores:
    """One pass over questions.

    Attributes:
        exact_match: (row,) 1.0 where greedy decoding gives the answer.
        contrast: (row,) as ``entity_contrast``.
        mean_logprob: (row,) nats a token.
    """

    exact_match: np.ndarray
    contrast: np.ndarray
    mean_logprob: np.ndarray


def score_questions(
    model: nn.Module,
    questions: Questions,
    rows: Sequences,
    progress: Progress = SILENT,
) -> QuestionScores:
    """Is the answer said, and how does it rank among the other entities'?"""
    watch, right = discriminating_tokens(rows)
    scores = score_answers(model, rows, watch=watch, progress=progress)
    return QuestionScores(
        scores.greedy.astype(float),
        entity_contrast(questions, scores.watched, right),
        scores.mean_logprob,
    )


def entity_contrast(
    questions: Questions, logits: np.ndarray, answer_columns: np.ndarray
) -> np.ndarray:
    """Share of the other answers that an entity's own answer outranks.

    Rows of one relation and wording form a table, entity by answer, of first-token
    logits. Each answer's mean over the table is taken off, so that a general liking
    for an answer, or its general suppression, cannot count; what is left is which
    answer goes with which entity. Ties count one half; chance is 0.5. Where answers
    are told apart at several places, there is a table for each, and the mean over them
    counts.

    Args:
        questions: The rows.
        logits: (row, answer token).
        answer_columns: (row,) column of the row's own answer, or (row, place).

    Returns:
        (row,) in [0, 1]; 0.5 where a table has fewer than two different answers.
    """
    answer_columns = answer_columns.reshape(len(questions), -1)
    tables = defaultdict(list)
    for row, (index, wording) in enumerate(
        zip(questions.item_index, questions.wording, strict=True)
    ):
        tables[questions.items[index].relation, wording].append(row)
    result = np.full(len(questions), 0.5)
    for rows in tables.values():
        here = np.array(rows)
        ranks = [_ranks(logits[here], own) for own in answer_columns[here].T]
        told = [each for each in ranks if each is not None]
        if told:
            result[here] = np.mean(told, axis=0)
    return result


def _ranks(logits: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    """(row,) share of the table's other answers outranked; None without any other."""
    offered = np.unique(right)
    if len(offered) < 2:
        return None
    table = np.nan_to_num(logits[:, offered], posinf=1e9, neginf=-1e9)
    table = table - table.mean(0)
    own = table[np.arange(len(table)), np.searchsorted(offered, right)]
    below = (table < own[:, None]).sum(1)
    ties = (table == own[:, None]).sum(1) - 1
    return (below + 0.5 * ties) / (len(offered) - 1)
