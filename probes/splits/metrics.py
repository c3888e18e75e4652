"""Classification metrics of decision values, for many label vectors at once, and intervals."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 along the last axis; ties share their mean rank."""
    ordered, order = values.sort(-1)
    n = values.shape[-1]
    position = torch.arange(n, dtype=torch.float64, device=values.device)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    # First and last position of each run of equal values.
    positions = torch.arange(n, device=values.device).expand_as(order)
    first = torch.where(is_first, positions, 0).cummax(-1).values
    is_last = torch.ones_like(is_first)
    is_last[..., :-1] = is_first[..., 1:]
    last = torch.where(is_last, positions, n).flip(-1).cummin(-1).values.flip(-1)
    mean = (position[first] + position[last]) / 2 + 1
    return torch.empty_like(mean).scatter_(-1, order, mean)


def auc(scores: Tensor, codes: Tensor, classes: int) -> Tensor:
    """(label,) area under the ROC curve; ties count one half.

    Args:
        scores: (label, class or 1, row) without NaN.
        codes: (label, row).
        classes: For more than two, the mean of one-vs-rest AUCs.

    Returns:
        NaN where a class has no row.
    """
    onehot = codes[:, None] == torch.arange(classes, device=codes.device)[:, None]
    onehot = onehot[:, 1:] if classes == 2 else onehot
    rank = ranks(scores.double())
    member = onehot.double()
    n_members = member.sum(-1)
    n_others = codes.shape[-1] - n_members
    n_wins = (rank * member).sum(-1) - n_members * (n_members + 1) / 2
    return (n_wins / (n_members * n_others)).mean(1)


def accuracy(scores: Tensor, codes: Tensor) -> Tensor:
    """(label, row) whether the predicted class is correct."""
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0).long() == codes
    return scores.argmax(1) == codes


def log_loss(scores: Tensor, codes: Tensor) -> Tensor:
    """(label, row) negative log-likelihood in nats, with scores as log-odds."""
    if scores.shape[1] == 1:
        sign = 2 * codes - 1
        return torch.nn.functional.softplus(-sign * scores[:, 0])
    return torch.nn.functional.cross_entropy(scores, codes, reduction="none")


def cluster_bootstrap_weights(
    groups: NDArray[np.int64], n_draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(draw, row) count of each row in bootstrap draws of whole groups."""
    count = int(groups.max()) + 1
    taken = rng.multinomial(count, np.full(count, 1 / count), size=n_draws)
    return taken[:, groups].astype(np.float64)


def weighted_auc(
    scores: NDArray[np.float64],
    codes: NDArray[np.int64],
    classes: int,
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(draw,) AUC of one label vector under row weights; NaN without both classes.

    Args:
        scores: (class or 1, row).
        codes: (row,).
        classes: Number of classes.
        weights: (draw, row).
    """
    total = np.zeros(len(weights))
    for column, values in enumerate(scores):
        code = 1 if classes == 2 else column
        order = np.argsort(values, kind="stable")
        is_member = codes[order] == code
        w = weights[:, order]
        negative = np.where(is_member, 0.0, w)
        positive = np.where(is_member, w, 0.0)
        # Negatives strictly below, and half of those tied.
        below = np.cumsum(negative, 1)
        ordered = values[order]
        first = np.searchsorted(ordered, ordered, side="left")
        last = np.searchsorted(ordered, ordered, side="right") - 1
        below_first = np.where(first > 0, below[:, first - 1], 0.0)
        wins = (positive * (below_first + below[:, last]) / 2).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            total += wins / (positive.sum(1) * negative.sum(1))
    return total / len(scores)


def percentile_interval(draws: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws, without NaN draws."""
    usable = draws[np.isfinite(draws)]
    if len(usable) == 0:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(usable, [tail, 1 - tail])
    return float(low), float(high)
