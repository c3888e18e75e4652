"""Sums of products as if computed in twice the working precision.

Source: Ogita, Rump and Oishi (2005), SIAM J. Sci. Comput. 26:1955, Dot2. Halves of a
sum are added to one another here, so that all rows are summed together.
"""

import torch
from torch import Tensor

SPLIT = 2.0**27 + 1
"""Dekker's factor: it cuts a float64 in two halves whose products are exact."""
BLOCK = 1 << 19
"""Numbers of a table handled at once, which bounds the scratch memory."""


def two_sum(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded sum and exactly what rounding took from it."""
    total = left + right
    back = total - left
    return total, (left - (total - back)) + (right - back)


def two_product(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded product and exactly what rounding took from it."""
    product = left * right
    (high, low), (top, tail) = _halves(left), _halves(right)
    rest = product - high * top
    rest = rest - low * top
    rest = rest - high * tail
    return product, low * tail - rest


def dot(table: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """``table`` @ ``vector``, the rounded value and what is to be added to it.

    Args:
        table: (row, term) float64.
        vector: (term,) float64.

    Returns:
        Two (row,) tensors. Their sum is within gamma_term^2 times the sum of the
        products' sizes, with gamma_k = k eps.
    """
    rows = max(1, BLOCK // max(1, table.shape[1]))
    parts = [_sum(*two_product(part, vector)) for part in table.split(rows)]
    value, rest = zip(*parts, strict=True)
    return torch.cat(value), torch.cat(rest)


def _halves(number: Tensor) -> tuple[Tensor, Tensor]:
    far = SPLIT * number
    high = far - (far - number)
    return high, number - high


def _sum(value: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the last axis of numbers in two parts."""
    rest = rest.sum(-1)
    while value.shape[-1] > 1:
        half = value.shape[-1] // 2
        total, lost = two_sum(value[..., :half], value[..., half : 2 * half])
        rest = rest + lost.sum(-1)
        value = torch.cat([total, value[..., 2 * half :]], -1)
    return value[..., 0], rest
