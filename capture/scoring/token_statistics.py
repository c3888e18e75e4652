"""From logits at answer tokens to what they say of each answer."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WatchedToken = int | tuple[int, int]
"""A token watched where the answer begins, or so many tokens further on."""


def reduce_logits(
    logits: Tensor,
    target_ids: Tensor,
    row_idx: Tensor,
    n_rows: int,
    watch: Sequence[WatchedToken] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the logits at answer tokens say of each row's answer.

    Args:
        logits: (answer token, vocabulary), rows one after the other.
        target_ids: (answer token,) id that should come.
        row_idx: (answer token,) row it belongs to, ascending; every row has one or more.
        n_rows: Number of rows.
        watch: As in ``score_answers``.

    Returns:
        (row,) log-probability, (row,) whether greedy, (row, token) watched logits, as
        in ``AnswerScores``.
    """
    logits = logits.float()
    chosen = logits.gather(1, target_ids[:, None])[:, 0]
    total = torch.cat([part.logsumexp(1) for part in logits.split(128)])
    logprob = (chosen - total).double()
    broken = logprob.isnan()
    hit = (logits.argmax(1) == target_ids) & ~broken
    logprob = logprob.masked_fill(broken, -torch.inf)
    sums = logprob.new_zeros(n_rows).index_add_(0, row_idx, logprob)
    misses = torch.zeros(n_rows, device=row_idx.device).index_add_(
        0, row_idx, (~hit).float()
    )
    first = torch.ones_like(row_idx, dtype=torch.bool)
    first[1:] = row_idx[1:] != row_idx[:-1]
    pairs = [(0, each) if isinstance(each, int) else each for each in watch]
    place, token = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T.to(row_idx)
    seen = logits[first.nonzero() + place, token].double()
    return sums.cpu().numpy(), (misses == 0).cpu().numpy(), seen.cpu().numpy()
