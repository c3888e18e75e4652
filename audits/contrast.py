"""How well a model tells each entity's answer from the others', said or not."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from torch import nn

from audits.data import Questions
from capture.scoring import score_answers
from evidence.progress import SILENT, Progress
from evidence.sequences import Sequences


def first_tokens(rows: Sequences) -> list[int]:
    """(row,) first token of each answer."""
    return [ids[start] for ids, start in zip(rows.ids, rows.answer_start, strict=True)]


@dataclass(frozen=True)
class Heard:
    """One pass over questions.

    Attributes:
        said: (row,) 1.0 where greedy decoding gives the answer.
        contrast: (row,) as ``contrast_of``.
        mean_logprob: (row,) nats a token.
    """

    said: np.ndarray
    contrast: np.ndarray
    mean_logprob: np.ndarray


def hear(
    model: nn.Module,
    questions: Questions,
    rows: Sequences,
    progress: Progress = SILENT,
) -> Heard:
    """Is the answer said, and how does it rank among the other entities'?"""
    own = first_tokens(rows)
    tokens = sorted(set(own))
    scores = score_answers(model, rows, watch=tokens, progress=progress)
    place = {token: index for index, token in enumerate(tokens)}
    right = np.array([place[token] for token in own])
    return Heard(
        scores.greedy.astype(float),
        contrast_of(questions, scores.watched, right),
        scores.mean_logprob,
    )


def contrast_of(
    questions: Questions, logits: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Share of the other answers that an entity's own answer outranks.

    Rows of one relation and wording form a table, entity by answer, of first-token
    logits. Each answer's mean over the table is taken off, so that a general liking
    for an answer, or its general suppression, cannot count; what is left is which
    answer goes with which entity. Ties count one half; chance is 0.5.

    Args:
        questions: The rows.
        logits: (row, answer token).
        right: (row,) column of the row's own answer.

    Returns:
        (row,) in [0, 1]; 0.5 where a table has fewer than two different answers.
    """
    tables = defaultdict(list)
    for row, (index, wording) in enumerate(
        zip(questions.item_index, questions.wording, strict=True)
    ):
        tables[questions.items[index].relation, wording].append(row)
    result = np.full(len(questions), 0.5)
    for rows in tables.values():
        here = np.array(rows)
        offered = np.unique(right[here])
        if len(offered) < 2:
            continue
        table = np.nan_to_num(logits[np.ix_(here, offered)], posinf=1e9, neginf=-1e9)
        table = table - table.mean(0)
        own = table[np.arange(len(here)), np.searchsorted(offered, right[here])]
        below = (table < own[:, None]).sum(1)
        ties = (table == own[:, None]).sum(1) - 1
        result[here] = (below + 0.5 * ties) / (len(offered) - 1)
    return result
