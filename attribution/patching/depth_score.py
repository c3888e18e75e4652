"""Unlearning Depth Score (UDS) and the loss per layer it is computed from.

Patching a donor's activations into the original at one layer lowers the log-probability of an
item's answer: this fall, in nats, is the loss of the layer. A donor that never learned the fact
loses everything the layer encodes; an unlearned model loses as much of it as was erased.

Source: Unlearning Depth Score (arXiv 2605.24614). With d1 the loss of a model retrained without the
facts and d2 the loss of the unlearned model, over the layers of an item with d1 above 0.05 nats::

    UDS = sum(d1 * clip(d2 / d1, 0, 1)) / sum(d1)

0 is intact and 1 is erased as in the retrained model. Items without such a layer have no score.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evidence.errors import InputError

# A layer encodes a fact if a model that never learned it loses more than this, in nats.
ENCODING_THRESHOLD = 0.05


@dataclass(frozen=True, repr=False)
class DepthScore:
    """Share of the encoded facts that an unlearned model has lost, by item and by layer.

    Attributes:
        score: (item,) UDS; NaN if no layer encodes the fact.
        mean: Mean of ``score`` over the items that have one; NaN if none has.
        loss_ratio: (layer,) mean loss of the unlearned model over that of the reference, over the
            items that the layer encodes, not clipped. Below 0 the answer became more likely, above
            1 more is lost than in the reference. NaN if the layer encodes no item.
        min_ratio: Minimum of ``loss_ratio``; near 0 if any layer still encodes the facts. A late
            edit leaves the earlier layers at exactly 0.
        excess_share: Share of (item, layer) pairs that lose more than the reference.
    """

    score: NDArray[np.float64]
    mean: float
    loss_ratio: NDArray[np.float64]
    min_ratio: float
    excess_share: float

    def __repr__(self) -> str:
        return (
            f"DepthScore(mean {self.mean:.2f} over {int(np.isfinite(self.score).sum())} of "
            f"{len(self.score)} items, smallest ratio {self.min_ratio:.2f} of "
            f"{len(self.loss_ratio)} layers)"
        )


def unlearning_depth(
    reference_loss: NDArray[np.float64],
    unlearned_loss: NDArray[np.float64],
    threshold: float = ENCODING_THRESHOLD,
) -> DepthScore:
    """Compute UDS and the loss ratio per layer from two patching runs over the same items.

    Args:
        reference_loss: (item, layer) loss in nats with the states of a model, or an item, that
            never had the fact.
        unlearned_loss: (item, layer) loss in nats with the unlearned model's states.
        threshold: Loss in nats above which a layer counts as encoding an item.

    Raises:
        InputError: The tables differ in shape or are empty.

    Examples:
        >>> never_knew = np.array([[1.0, 2.0], [0.5, 1.0]])  # loss in nats, (item, layer)
        >>> exhume.unlearning_depth(never_knew, 0.5 * never_knew)
        DepthScore(mean 0.50 over 2 of 2 items, smallest ratio 0.50 of 2 layers)
    """
    reference = np.asarray(reference_loss, dtype=np.float64)
    unlearned = np.asarray(unlearned_loss, dtype=np.float64)
    if reference.shape != unlearned.shape or reference.ndim != 2 or not reference.size:
        raise InputError(
            "the two tables of losses differ in shape or are empty",
            expected="the same items and layers in both, at least one of each",
            got=f"{reference.shape} and {unlearned.shape}",
        )
    encodes = reference > threshold
    encoded = np.where(encodes, reference, 0.0)
    # Clip the loss, not the ratio: dividing by a loss near 0 would amplify noise.
    erased = np.where(encodes, np.clip(unlearned, 0.0, reference), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = erased.sum(1) / encoded.sum(1)
        loss_ratio = np.where(encodes, unlearned, 0.0).sum(0) / encoded.sum(0)
    any_encoded = encodes.any()
    return DepthScore(
        score,
        float(np.nanmean(score)) if any_encoded else float("nan"),
        loss_ratio,
        float(np.nanmin(loss_ratio)) if any_encoded else float("nan"),
        float((unlearned > reference)[encodes].mean()) if any_encoded else float("nan"),
    )
