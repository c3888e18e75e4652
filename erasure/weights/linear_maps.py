"""Single maps that take up an eraser of what they are given or of what they give."""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from erasure.concept.affine import AffineEraser
from evidence.errors import InputError


def fold_output_(module: nn.Module, eraser: AffineEraser, name: str) -> None:
    """Erase what a linear map gives: W becomes P W, the bias P b + offset.

    Args:
        module: A linear layer, or GPT-2's.
        eraser: Of one site, of the map's output width.
        name: What to call it in errors.

    Raises:
        InputError: the widths differ, or there is no bias and a constant part.
    """
    weight = _weight(module, name)
    _check_width(eraser, weight.shape[0], name)
    offset, matrix = eraser.offset.to(weight), eraser.matrix.to(weight)
    bias = _bias(module, offset, name)
    _set_weight(module, matrix @ weight)
    if bias is not None:
        bias.data.copy_(matrix @ bias.detach().double() + offset)


def fold_input_(
    module: nn.Module, eraser: AffineEraser, name: str, part: slice = slice(None)
) -> None:
    """Erase what a linear map is given: W becomes W P, the bias b + W offset.

    Args:
        module: A linear layer, or GPT-2's.
        eraser: Of one site, as wide as ``part`` of the map's input.
        name: What to call it in errors.
        part: Which of the input features.

    Raises:
        InputError: the widths differ, or there is no bias and a constant part.
    """
    weight = _weight(module, name)
    taken = weight[:, part]
    _check_width(eraser, taken.shape[1], name)
    shift = taken @ eraser.offset.to(weight)
    bias = _bias(module, shift, name)
    weight[:, part] = taken @ eraser.matrix.to(weight)
    _set_weight(module, weight)
    if bias is not None:
        bias.data.add_(shift.to(bias))


def fold_embeddings_(tables: Sequence[nn.Embedding], eraser: AffineEraser) -> None:
    """Erase the sum of embeddings.

    Args:
        tables: Every embedding in the sum, the tokens' first: each position takes one
            row of it, so the constant part goes in there.
        eraser: Of one site, of their width.
    """
    for place, table in enumerate(tables):
        rows = table.weight.detach().double()
        new = rows @ eraser.matrix.to(rows).T
        if place == 0:
            new = new + eraser.offset.to(rows)
        table.weight.data.copy_(new)


def _weight(module: nn.Module, name: str) -> Tensor:
    """(out, in) float64 copy of a linear map's matrix."""
    if not isinstance(module, nn.Linear | Conv1D):
        raise InputError(
            f"{name} cannot be folded into {type(module).__name__}",
            expected="a linear layer",
            got=type(module).__name__,
        )
    weight = module.weight.detach().double()
    return weight.T.clone() if isinstance(module, Conv1D) else weight.clone()


def _set_weight(module: nn.Module, weight: Tensor) -> None:
    whole = weight.T if isinstance(module, Conv1D) else weight
    module.get_parameter("weight").data.copy_(whole)


def _bias(module: nn.Module, constant: Tensor, name: str) -> nn.Parameter | None:
    """The map's bias; None where there is none and none is needed."""
    bias = getattr(module, "bias", None)
    if bias is None and bool((constant != 0).any()):
        raise InputError(
            f"{name} cannot be folded: its map has no bias for the constant part",
            expected="a bias, or an eraser without a constant part",
            fix="Fold eraser.linear(), or use the eraser as a hook",
        )
    return bias


def _check_width(eraser: AffineEraser, width: int, name: str) -> None:
    if eraser.width != width:
        raise InputError(
            f"the eraser does not fit {name}",
            expected=f"width {width}",
            got=str(eraser.width),
        )
