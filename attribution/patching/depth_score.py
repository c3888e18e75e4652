"""The Unlearning Depth Score and the loss over layers it is made of.

Patching a donor's states into the original at one layer lowers the log-probability of
an item's answer by some nats: the loss of that layer. A donor that never knew the fact
loses all that the layer holds of it, and an unlearned model as much of that as it has
erased.

Source: Unlearning Depth Score (arXiv 2605.24614). There, with d1 the loss of a model
retrained without the facts and d2 that of the unlearned one, over the layers of an item
where d1 is above 0.05 nats::

    UDS = sum(d1 * clip(d2 / d1, 0, 1)) / sum(d1)

0 is intact, 1 erased as in the retrained model; an item without such a layer has none.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evidence.errors import InputError

# A layer holds an item's fact where a model that never knew it loses more, in nats.
ENCODING_THRESHOLD = 0.05


@dataclass(frozen=True)
class DepthScore:
    """How much of what each layer holds an unlearned model has lost.

    Attributes:
        score: (item,) UDS; NaN where no layer holds the fact.
        mean: Mean of ``score`` over the items that have one; NaN if none has.
        loss_ratio: (layer,) mean loss over that of the donor that never knew, over the
            items that the layer holds, not clipped: below 0 the answer became
            likelier, above 1 more is lost than was never known. NaN where the layer
            holds none.
        min_ratio: Least of ``loss_ratio``: near 0 where any layer still carries the facts. A
            late edit leaves the layers before it at exactly 0.
        excess_share: Share of items and layers that lose more than the donor that never knew.
    """

    score: NDArray[np.float64]
    mean: float
    loss_ratio: NDArray[np.float64]
    min_ratio: float
    excess_share: float


def unlearning_depth(
    reference_loss: NDArray[np.float64],
    unlearned_loss: NDArray[np.float64],
    threshold: float = ENCODING_THRESHOLD,
) -> DepthScore:
    """UDS and losses by layer from two patching runs of the same items.

    Args:
        reference_loss: (item, layer) loss in nats with the states of a model or an item
            that never knew.
        unlearned_loss: (item, layer) loss in nats with the unlearned model's states.
        threshold: Least loss, in nats, at which a layer counts as holding an item.

    Raises:
        InputError: the tables differ in shape, or have no items or layers.
    """
    first = np.asarray(reference_loss, dtype=np.float64)
    second = np.asarray(unlearned_loss, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 2 or not first.size:
        raise InputError(
            "the two tables of losses do not fit each other",
            expected="the same items and layers in both, one at least",
            got=f"{first.shape} and {second.shape}",
        )
    holds = first > threshold
    whole = np.where(holds, first, 0.0)
    # Not the quotient: a first loss near 0 would blow it up before it is weighed.
    lost = np.where(holds, np.clip(second, 0.0, first), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = lost.sum(1) / whole.sum(1)
        share = np.where(holds, second, 0.0).sum(0) / whole.sum(0)
    some = holds.any()
    return DepthScore(
        score,
        float(np.nanmean(score)) if some else float("nan"),
        share,
        float(np.nanmin(share)) if some else float("nan"),
        float((second > first)[holds].mean()) if some else float("nan"),
    )
