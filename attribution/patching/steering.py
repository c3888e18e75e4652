"""Scores of answers while the network is changed where the prompt ends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Literal

import numpy as np
from torch import Tensor, nn

from capture.data.sequences import Sequences
from capture.network.hooks import patch
from capture.network.sites import Sites, find_sites
from capture.scoring.answers import AnswerScores, score_answers

RowEdit = Callable[[Tensor, np.ndarray], Tensor]
"""From the states (row, d) of some rows, and their numbers, to new states."""

Span = Literal["end", "prompt"]
"""What an edit sees: the last prompt token alone, or (row, position, d) of them all."""


def score_edited(
    model: nn.Module,
    sequences: Sequences,
    edits: Mapping[str, RowEdit],
    *,
    watch: Sequence[int] = (),
    span: Span = "end",
    sites: Sites | None = None,
    tokens: int = 4096,
) -> AnswerScores:
    """As ``score_answers`` with sites edited where every row's prompt ends.

    Nothing is edited where the answer has begun, so what follows has to come from
    what was changed before.

    Args:
        model: A causal language model.
        sequences: Rows with answers.
        edits: Site name to a function from states (row, d), and the numbers of those
            rows in ``sequences``, to new states. Most ignore the numbers: the same
            change for every input.
        watch: As in ``score_answers``.
        span: "end" for the last prompt token; "prompt" hands an edit the states (row,
            position, d) of the whole prompt. The rows of one call share its length.
        sites: The model's sites, if already found.
        tokens: Padded positions a batch.

    Raises:
        InputError: as ``patch`` and ``score_answers``.
    """
    found = sites if sites is not None else find_sites(model)
    starts = np.array(sequences.answer_start)
    lengths = np.array([len(ids) for ids in sequences.ids])
    parts: list[tuple[np.ndarray, AnswerScores]] = []
    # Rows are padded on the right, so one index serves all prompts of one length.
    for start in np.unique(starts):
        rows = np.flatnonzero(starts == start)
        # Batches are taken from the longest row to the shortest, in order.
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        at = int(start) - 1
        place = at if span == "end" else slice(0, at + 1)
        hooks = {site: _row_hook(edit, rows, place) for site, edit in edits.items()}
        with patch(model, hooks, known_sites=found):
            scores = score_answers(
                model, sequences[rows.tolist()], watch=watch, batch_tokens=tokens
            )
        parts.append((rows, scores))
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    merged = {
        field.name: np.concatenate([getattr(part, field.name) for _, part in parts])[
            order
        ]
        for field in fields(AnswerScores)
    }
    return AnswerScores(**merged)


def add_vector(vector: Tensor) -> RowEdit:
    """The same vector (d,) for every row."""

    def edit(states: Tensor, rows: np.ndarray) -> Tensor:
        return states + vector.to(states)

    return edit


def _row_hook(
    edit: RowEdit, rows: np.ndarray, position: int | slice
) -> Callable[[Tensor], Tensor]:
    """A hook that deals ``rows`` out to batches as they come."""
    done = 0

    def hook(value: Tensor) -> Tensor:
        nonlocal done
        here = rows[done : done + len(value)]
        done += len(value)
        changed = value.clone()
        changed[:, position] = edit(value[:, position], here).to(value)
        return changed

    return hook
