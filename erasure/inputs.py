"""Validate activations and concepts and convert them to tensors."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence import moved
from evidence.arrays import RowsError


def site_tables(x: ArrayLike | Tensor) -> tuple[Tensor, bool]:
    """(site, item, d) floating-point tensor, and whether the input was (item, d).

    Floating-point input keeps its type, device and, where possible, its memory; other numbers
    become float64. Finite values are not checked here.

    Raises:
        RowsError: The input is neither (item, d) nor (site, item, d), is empty, or is not numeric.
    """
    tensor = x.detach() if isinstance(x, Tensor) else from_numpy(np.asarray(x))
    if tensor.ndim not in (2, 3) or 0 in tensor.shape:
        raise RowsError(
            "an eraser needs rows of activations",
            expected="(item, d) or (site, item, d), with at least one of each",
            got=f"shape {tuple(tensor.shape)}",
            fix="Reshape your data to one vector per item",
        )
    if not tensor.is_floating_point():
        tensor = tensor.double()
    return (tensor[None], True) if tensor.ndim == 2 else (tensor, False)


def from_numpy(array: NDArray) -> Tensor:
    """A tensor that shares the array's memory if that is writable.

    Raises:
        RowsError: The array does not hold real numbers.
    """
    if array.dtype.kind not in "fiub":
        raise RowsError(
            "activations must be real numbers",
            expected="an array of floating-point numbers",
            got=f"type {array.dtype}",
        )
    native = array.dtype.newbyteorder("=")
    contiguous = np.ascontiguousarray(array, dtype=native)
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())


def numeric_concept(z: ArrayLike | Tensor, items: int) -> Tensor | None:
    """(item, k) float64 values of a numeric concept; None for a concept of classes.

    Floating-point values are numeric; integers, booleans and text are classes.

    Raises:
        RowsError: The number of items differs, there are no columns, or values are not finite.
    """
    if isinstance(z, Tensor):
        given = z.detach()
    else:
        array = np.asarray(z)
        if array.dtype.kind != "f":
            return None
        given = from_numpy(array)
    if not given.is_floating_point():
        return None
    if given.ndim not in (1, 2) or len(given) != items or 0 in given.shape:
        raise RowsError(
            "the concept does not fit the activations",
            expected=f"({items},) or ({items}, k) numbers",
            got=f"shape {tuple(given.shape)}",
        )
    if not bool(torch.isfinite(given).all()):
        raise RowsError("Input y contains NaN or infinity")
    return given.double().reshape(items, -1)


def class_codes(
    z: ArrayLike | Tensor, items: int, classes: NDArray | None
) -> tuple[NDArray, Tensor]:
    """Sorted classes and (item,) codes of a concept of classes.

    Args:
        z: (item,) labels.
        items: Expected number of items.
        classes: All possible classes, sorted; by default those in ``z``.

    Raises:
        RowsError: The shape differs, there are fewer than two classes, or a label is not in
            ``classes``.
    """
    labels = z.detach().cpu().numpy() if isinstance(z, Tensor) else np.asarray(z)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (items,):
        raise RowsError(
            "the concept does not fit the activations",
            expected=f"({items},) labels, or floating-point numbers",
            got=f"shape {labels.shape}",
        )
    try:
        present, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise RowsError(
            "the labels have several types", expected="all text, or all integers"
        ) from error
    if present.dtype.kind == "f" and not np.isfinite(present).all():
        raise RowsError("Input y contains NaN or infinity")
    if classes is None:
        classes = present
    unknown = sorted(set(present.tolist()) - set(classes.tolist()))
    if unknown:
        raise RowsError(
            "a label is not one of the known classes",
            expected=f"one of {classes.tolist()}",
            got=repr(unknown[0]),
            fix="Fit on all classes; for chunks, Moments(classes=[...])",
        )
    if len(classes) < 2:
        raise RowsError(
            "the concept has only one class",
            expected="labels of two or more classes",
            got=f"{present.tolist()[0]!r} in every row",
        )
    positions = np.searchsorted(classes, present)
    return classes, torch.from_numpy(positions[codes.reshape(-1)].astype(np.int64))


__getattr__ = moved.names_of("erasure.inputs")
