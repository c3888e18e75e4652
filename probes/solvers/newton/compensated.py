"""Compensated dot products: sums as if computed in doubled precision.

Source: Ogita, Rump and Oishi (2005), SIAM J. Sci. Comput. 26:1955, algorithm Dot2. Here halves
of a sum are added pairwise, so that all rows are summed together.
"""

import torch
from torch import Tensor

SPLIT = 2.0**27 + 1
"""Dekker's factor: splits a float64 into two halves whose products are exact."""
BLOCK = 1 << 19
"""Numbers handled at once, which bounds the scratch memory."""


def two_sum(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded sum and its exact rounding error."""
    total = left + right
    part = total - left
    return total, (left - (total - part)) + (right - part)


def two_product(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded product and its exact rounding error."""
    product = left * right
    (high, low), (right_high, right_low) = _halves(left), _halves(right)
    error = product - high * right_high
    error = error - low * right_high
    error = error - high * right_low
    return product, low * right_low - error


def dot(table: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """``table @ vector``: the rounded value and its correction.

    Args:
        table: (row, term) float64.
        vector: (term,) float64.

    Returns:
        Two (row,) tensors. Their sum is within gamma_term^2 times the sum of the absolute
        products, with gamma_k = k eps.
    """
    rows = max(1, BLOCK // max(1, table.shape[1]))
    parts = [_sum(*two_product(block, vector)) for block in table.split(rows)]
    value, error = zip(*parts, strict=True)
    return torch.cat(value), torch.cat(error)


def _halves(value: Tensor) -> tuple[Tensor, Tensor]:
    scaled = SPLIT * value
    high = scaled - (scaled - value)
    return high, value - high


def _sum(value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the last axis of numbers in two parts."""
    error = error.sum(-1)
    while value.shape[-1] > 1:
        half = value.shape[-1] // 2
        total, rounding = two_sum(value[..., :half], value[..., half : 2 * half])
        error = error + rounding.sum(-1)
        value = torch.cat([total, value[..., 2 * half :]], -1)
    return value[..., 0], error
