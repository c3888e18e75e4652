"""Validate activations and concepts and convert them to tensors."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence import moved
from evidence.arrays import ConceptKind, RowsError, float_tensor, label_values, read_as


def site_tables(x: ArrayLike | Tensor) -> tuple[Tensor, bool]:
    """(site, item, d) floating-point tensor, and whether the input was (item, d).

    Floating-point input keeps its type, device and, where possible, its memory; other numbers
    become float64. Finite values are not checked here.

    Raises:
        RowsError: The input is neither (item, d) nor (site, item, d), is empty, or is not numeric.
    """
    tensor = float_tensor(x)
    if tensor.ndim not in (2, 3) or 0 in tensor.shape:
        raise RowsError(
            "an eraser needs rows of activations",
            expected="(item, d) or (site, item, d), with at least one of each",
            got=f"shape {tuple(tensor.shape)}",
            fix="Reshape your data to one vector per item",
        )
    return (tensor[None], True) if tensor.ndim == 2 else (tensor, False)


def concept_columns(
    z: ArrayLike | Tensor, items: int, classes: NDArray | None, kind: ConceptKind | None
) -> tuple[Tensor, NDArray | None]:
    """(item, k) float64 columns of a concept, and its sorted classes or None for numbers.

    The columns are one-hot classes or the numbers given. ``evidence.arrays`` has the rule.

    Args:
        z: (item,) labels, or (item, k) numbers.
        items: Expected number of items.
        classes: All possible classes, sorted; by default those in ``z``.
        kind: How to read ``z``; None for the rule.

    Raises:
        RowsError: The number of items differs, values are missing or not finite, there are fewer
            than two classes, or a label is not in ``classes``.
    """
    labels = label_values(z, items)
    kind = "classes" if classes is not None else kind
    if read_as(labels, kind) == "classes":
        codes, classes = _codes(labels, classes)
        return torch.nn.functional.one_hot(codes, len(classes)).double(), classes
    if labels.ndim not in (1, 2) or 0 in labels.shape:
        raise RowsError(
            "the concept does not fit the activations",
            expected=f"({items},) or ({items}, k) numbers",
            got=f"shape {labels.shape}",
        )
    return float_tensor(labels).double().reshape(items, -1), None


def class_codes(
    z: ArrayLike | Tensor, items: int, classes: NDArray | None
) -> tuple[NDArray, Tensor]:
    """Sorted classes and (item,) codes of a concept that must be of classes.

    Arguments and errors as in ``concept_columns``; numbers are refused.
    """
    labels = label_values(z, items)
    if classes is None and read_as(labels, None) == "numbers":
        raise RowsError(
            "Unknown label type: this eraser needs classes, and the concept is numbers",
            expected=f"({items},) text, booleans, integers, or whole numbers",
            got=f"shape {labels.shape}",
            fix="Form classes first, for example z > numpy.median(z)",
        )
    codes, classes = _codes(labels, classes)
    return classes, codes


def _codes(labels: NDArray, classes: NDArray | None) -> tuple[Tensor, NDArray]:
    """(item,) codes, and the sorted classes."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise RowsError(
            "the concept does not fit the activations",
            expected="one label an item, or floating-point numbers",
            got=f"shape {labels.shape}",
        )
    present, codes = np.unique(labels, return_inverse=True)
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
            "there is only one class",
            expected="labels of two or more classes",
            got=f"{str(present[0])!r} in every row" if len(present) else "no rows",
        )
    positions = np.searchsorted(classes, present)
    return torch.from_numpy(positions[codes.reshape(-1)].astype(np.int64)), classes


__getattr__ = moved.names_of("erasure.inputs")
