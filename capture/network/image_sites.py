"""Named places in image models, blocks as the units.

A transformer's sites are ``capture.network.sites``'. In a residual network without
attention a block is one residual unit, such as a ResNet's layer of two convolutions:
what leaves it is all that the rest of the network sees, which does not hold of a single
convolution beside a shortcut.
"""

from typing import Any

from torch import Tensor, nn

from capture.network.discovery.chains import find_chain
from capture.network.discovery.outline import find_outline
from capture.network.sites import Sites, chain_sites, find_sites


def find_image_sites(model: nn.Module, example: Any = None) -> Sites:
    """The sites of an image model: ``embed``, ``resid.L``, ``final`` and ``logits``.

    Args:
        model: The model.
        example: As ``find_sites``.

    Raises:
        InputError: as ``find_sites``.
    """
    if find_outline(model) is not None:
        return find_sites(model, example)
    return chain_sites(find_chain(model, example, units_first=True))


def as_positions(value: Tensor) -> Tensor:
    """(image, place, d) from the same, from feature maps or from (image, d).

    Feature maps (image, d, height, width) are read row by row.
    """
    if value.dim() == 4:
        return value.flatten(2).transpose(1, 2)
    return value[:, None] if value.dim() == 2 else value


def restore_shape(positions: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``as_positions``: ``positions`` in the shape of ``like``."""
    if like.dim() == 4:
        return positions.transpose(1, 2).reshape(like.shape)
    return positions[:, 0] if like.dim() == 2 else positions
