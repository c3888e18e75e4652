"""Score answers while activations at the end of the prompt are edited."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capture.data.sequences import Sequences
from capture.network.hooks import patch
from capture.network.model_inputs import plain_inputs
from capture.network.sites import Sites, find_sites
from capture.scoring.answers import AnswerScores, score_answers

RowEdit = Callable[[Tensor, np.ndarray], Tensor]
"""Maps states (row, d) and the numbers of their rows to new states."""

Span = Literal["end", "prompt"]
"""The edited part of the prompt: its last token, or all (row, position, d)."""


@plain_inputs
def score_edited(
    model: nn.Module,
    sequences: Sequences,
    edits: Mapping[str, RowEdit],
    *,
    watch: Sequence[int] = (),
    span: Span = "end",
    known_sites: Sites | None = None,
    batch_tokens: int = 4096,
) -> AnswerScores:
    """Score answers as ``score_answers`` does, with some sites edited where the prompt ends.

    Answer positions are not edited, so every effect on them comes from the edited prompt.

    Args:
        model: A causal language model.
        sequences: Rows with answers.
        edits: Site name to a function of states (row, d) and the numbers of these rows in
            ``sequences`` that returns new states. Most edits ignore the row numbers.
        watch: As in ``score_answers``.
        span: "end" edits the last prompt token; "prompt" passes the states (row, position, d) of
            the whole prompt. All rows of one call have prompts of one length.
        known_sites: The model's sites, if already found.
        batch_tokens: Padded positions per batch.

    Raises:
        InputError: As ``patch`` and ``score_answers``.

    Examples:
        >>> vector = torch.zeros(32)
        >>> exhume.score_edited(model, rows, {"resid.0": exhume.add_vector(vector)})
        AnswerScores(76 answers, exact match 100%, mean log-probability -0.01 nats a token)
    """
    sites = known_sites if known_sites is not None else find_sites(model)
    starts = np.array(sequences.answer_start)
    lengths = np.array([len(ids) for ids in sequences.ids])
    parts: list[tuple[np.ndarray, AnswerScores]] = []
    # Rows are padded on the right, so one index serves all prompts of one length.
    for start in np.unique(starts):
        rows = np.flatnonzero(starts == start)
        # score_answers batches rows from the longest to the shortest.
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        last = int(start) - 1
        positions = last if span == "end" else slice(0, last + 1)
        hooks = {site: _row_hook(edit, rows, positions) for site, edit in edits.items()}
        with patch(model, hooks, known_sites=sites):
            scores = score_answers(
                model, sequences[rows.tolist()], watch=watch, batch_tokens=batch_tokens
            )
        parts.append((rows, scores))
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    merged = {
        field.name: np.concatenate([getattr(part, field.name) for _, part in parts])[order]
        for field in fields(AnswerScores)
    }
    return AnswerScores(**merged)


def add_vector(vector: Tensor | NDArray) -> RowEdit:
    """An edit that adds the same vector (d,), a tensor or an array, to every row.

    Examples:
        >>> edit = exhume.add_vector(torch.ones(3))
        >>> edit(torch.zeros(2, 3), np.arange(2)).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    added = torch.as_tensor(vector)

    def edit(states: Tensor, rows: np.ndarray) -> Tensor:
        return states + added.to(states)

    return edit


def _row_hook(edit: RowEdit, rows: np.ndarray, position: int | slice) -> Callable[[Tensor], Tensor]:
    """A hook that passes ``edit`` the row numbers of each batch, in batch order."""
    n_done = 0

    def hook(value: Tensor) -> Tensor:
        nonlocal n_done
        batch_rows = rows[n_done : n_done + len(value)]
        n_done += len(value)
        changed = value.clone()
        changed[:, position] = edit(value[:, position], batch_rows).to(value)
        return changed

    return hook
