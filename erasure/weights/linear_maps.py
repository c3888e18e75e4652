"""Fold an eraser into a single linear map or into embeddings."""

from collections.abc import Sequence

from torch import Tensor, nn

from capture.network.structure import is_linear_map, matrix_view
from erasure.concept.affine import AffineEraser
from evidence.errors import InputError


def fold_output_(module: nn.Module, eraser: AffineEraser, name: str) -> None:
    """Erase the output of a linear map: W becomes P W, the bias P b + offset.

    Args:
        module: A linear layer or Conv1D.
        eraser: Of one site, of the map's output width.
        name: Name of the site in errors.

    Raises:
        InputError: The widths differ, or the eraser has a constant part and the map no bias.
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
    """Erase the input of a linear map: W becomes W P, the bias b + W offset.

    Args:
        module: A linear layer or Conv1D.
        eraser: Of one site, as wide as ``part`` of the map's input.
        name: Name of the site in errors.
        part: The input features of the site.

    Raises:
        InputError: The widths differ, or the eraser has a constant part and the map no bias.
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
        tables: All embeddings of the sum. The first gets the constant part, as each position uses
            exactly one of its rows.
        eraser: Of one site, of their width.
    """
    for index, table in enumerate(tables):
        rows = table.weight.detach().double()
        new = rows @ eraser.matrix.to(rows).T
        if index == 0:
            new = new + eraser.offset.to(rows)
        table.weight.data.copy_(new)


def _weight(module: nn.Module, name: str) -> Tensor:
    """(out, in) float64 copy of a linear map's weight."""
    if not is_linear_map(module):
        raise InputError(
            f"{name} cannot be folded into {type(module).__name__}",
            expected="a linear layer",
            got=type(module).__name__,
        )
    return matrix_view(module).detach().double().clone()


def _set_weight(module: nn.Module, weight: Tensor) -> None:
    matrix_view(module).data.copy_(weight)


def _bias(module: nn.Module, constant: Tensor, name: str) -> nn.Parameter | None:
    """The map's bias; None if it has none and needs none."""
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
            f"the eraser does not fit {name}", expected=f"width {width}", got=str(eraser.width)
        )
