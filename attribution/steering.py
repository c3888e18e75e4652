"""Scores of answers while the network is changed where the prompt ends."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
from torch import Tensor, nn

from capture.hooks import Edit, patch
from capture.scoring import AnswerScores, score_answers
from capture.sites import Sites, find_sites
from evidence.sequences import Sequences


def score_edited(
    model: nn.Module,
    sequences: Sequences,
    edits: Mapping[str, Tensor | Edit],
    *,
    watch: Sequence[int] = (),
    where: Sites | None = None,
    tokens: int = 4096,
) -> AnswerScores:
    """As ``score_answers`` with sites edited at every row's last prompt token.

    The same edit acts on every row, whatever its answer. Nothing is edited where the
    answer has begun, so what follows has to come from what was changed before.

    Args:
        model: A causal language model.
        sequences: Rows with answers.
        edits: Site name to a value or to a function of the site's value.
        watch: As in ``score_answers``.
        where: The model's sites, if already found.
        tokens: Padded positions a batch.

    Raises:
        InputError: as ``patch`` and ``score_answers``.
    """
    found = where if where is not None else find_sites(model)
    starts = np.array(sequences.answer_start)
    parts: list[tuple[np.ndarray, AnswerScores]] = []
    # Rows are padded on the right, so one index serves all prompts of one length.
    for start in np.unique(starts):
        rows = np.flatnonzero(starts == start)
        with patch(model, edits, [int(start) - 1], where=found):
            scores = score_answers(
                model, sequences[rows.tolist()], watch=watch, tokens=tokens
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
