"""From logits at answer tokens to what they say of each answer."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Watched = int | tuple[int, int]
"""A token watched where the answer begins, or so many tokens further on."""


def reduce_logits(
    logits: Tensor,
    target: Tensor,
    owner: Tensor,
    size: int,
    watch: Sequence[Watched] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the logits at answer tokens say of each row's answer.

    Args:
        logits: (answer token, vocabulary), rows one after the other.
        target: (answer token,) id that should come.
        owner: (answer token,) row it belongs to, ascending; every row has one or more.
        size: Number of rows.
        watch: As in ``score_answers``.

    Returns:
        (row,) log-probability, (row,) whether greedy, (row, token) watched logits, as
        in ``AnswerScores``.
    """
    logits = logits.float()
    chosen = logits.gather(1, target[:, None])[:, 0]
    total = torch.cat([part.logsumexp(1) for part in logits.split(128)])
    logprob = (chosen - total).double()
    broken = logprob.isnan()
    hit = (logits.argmax(1) == target) & ~broken
    logprob = logprob.masked_fill(broken, -torch.inf)
    sums = logprob.new_zeros(size).index_add_(0, owner, logprob)
    misses = torch.zeros(size, device=owner.device).index_add_(0, owner, (~hit).float())
    first = torch.ones_like(owner, dtype=torch.bool)
    first[1:] = owner[1:] != owner[:-1]
    pairs = [(0, each) if isinstance(each, int) else each for each in watch]
    place, token = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T.to(owner)
    seen = logits[first.nonzero() + place, token].double()
    return sums.cpu().numpy(), (misses == 0).cpu().numpy(), seen.cpu().numpy()
