"""Reduction of logits at answer tokens to scores by row."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WatchedToken = int | tuple[int, int]
"""A token id at the first answer position, or a pair (offset, token id)."""


def reduce_logits(
    logits: Tensor,
    target_ids: Tensor,
    row_idx: Tensor,
    n_rows: int,
    watch: Sequence[WatchedToken] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reduce the logits at answer tokens to the scores of ``AnswerScores``.

    Args:
        logits: (answer token, vocabulary), row by row.
        target_ids: (answer token,) correct token id.
        row_idx: (answer token,) row of the token, ascending; every row has at least one.
        watch: As in ``score_answers``.

    Returns:
        (row,) log-probability, (row,) bool exact match, (row, token) watched logits.
    """
    logits = logits.float()
    chosen = logits.gather(1, target_ids[:, None])[:, 0]
    total = torch.cat([part.logsumexp(1) for part in logits.split(128)])
    logprob = (chosen - total).double()
    broken = logprob.isnan()
    is_top = (logits.argmax(1) == target_ids) & ~broken
    logprob = logprob.masked_fill(broken, -torch.inf)
    sums = logprob.new_zeros(n_rows).index_add_(0, row_idx, logprob)
    misses = torch.zeros(n_rows, device=row_idx.device).index_add_(0, row_idx, (~is_top).float())
    first = torch.ones_like(row_idx, dtype=torch.bool)
    first[1:] = row_idx[1:] != row_idx[:-1]
    pairs = [(0, item) if isinstance(item, int) else item for item in watch]
    offset, token = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T.to(row_idx)
    watched = logits[first.nonzero() + offset, token].double()
    return sums.cpu().numpy(), (misses == 0).cpu().numpy(), watched.cpu().numpy()
