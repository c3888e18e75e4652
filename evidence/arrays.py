"""Validate rows, labels and sample weights and convert them to float64 tensors."""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, column_or_1d, validate_data
from torch import Tensor

from evidence.errors import InputError


class RowsError(InputError, ValueError):
    """Rows or labels that cannot be used for fitting; a ``ValueError``, as sklearn requires."""


def as_tensor(array: NDArray) -> Tensor:
    """Convert ``array`` to a float64 tensor, sharing its memory if possible.

    Read-only, half-precision and non-contiguous arrays are copied.
    """
    array = np.asarray(array)
    contiguous = np.ascontiguousarray(array, dtype=np.float64)
    if not contiguous.flags.writeable:
        contiguous = contiguous.copy()
    return torch.from_numpy(contiguous)


def validate_rows(estimator, x, *, reset: bool) -> Tensor:
    """Convert ``x`` to a (row, d) float64 tensor on its own device.

    Raises:
        RowsError: a tensor is not 2-D, not finite, empty, or differs in width from the
            fitted one. NumPy input raises scikit-learn's own errors.
    """
    if not isinstance(x, Tensor):
        numeric = validate_data(
            estimator, x, reset=reset, dtype=[np.float64, np.float32, np.float16]
        )
        return as_tensor(np.asarray(numeric))
    name = type(estimator).__name__
    if x.ndim != 2 or 0 in x.shape:
        raise RowsError(
            f"{name} needs rows of features",
            expected="a (row, d) tensor with at least one of each",
            got=f"shape {tuple(x.shape)}",
        )
    x = x.detach().to(torch.float64)
    if not bool(torch.isfinite(x).all()):
        raise RowsError(
            f"{name} received NaN or infinite activations",
            fix="Find the rows with torch.isfinite(x).all(1) and drop them",
        )
    if reset:
        estimator.n_features_in_ = x.shape[1]
    elif x.shape[1] != estimator.n_features_in_:
        raise RowsError(
            f"X has {x.shape[1]} features, but {name} is expecting "
            f"{estimator.n_features_in_} features as input"
        )
    return x


def validate_labels(y, rows: int) -> tuple[NDArray, NDArray[np.int64]]:
    """Sorted class names and (row,) class codes.

    Raises:
        RowsError: the number of labels differs from ``rows``, or there are fewer than two
            classes.
    """
    if isinstance(y, Tensor):
        y = y.detach().cpu().numpy()
    if y is None:
        raise RowsError("requires y to be passed, but the target y is None")
    y = column_or_1d(y, warn=True)
    if np.asarray(y).dtype.kind == "f" and not np.isfinite(y).all():
        raise RowsError("Input y contains NaN or infinity")
    check_classification_targets(y)
    if len(y) != rows:
        raise RowsError("rows and labels differ in number", expected=str(rows), got=str(len(y)))
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise RowsError(
            "there is only one class",
            expected="labels of two or more classes",
            got=f"{str(classes[0])!r} in every row" if len(classes) else "no rows",
        )
    return classes, codes.astype(np.int64)


def validate_sample_weight(sample_weight, x: Tensor) -> Tensor | None:
    """(row,) float64 sample weights, or None.

    Raises:
        RowsError: a weight is negative.
    """
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Tensor):
        sample_weight = sample_weight.detach().cpu().numpy()
    placeholder = np.empty((len(x), 1))
    checked = _check_sample_weight(sample_weight, placeholder, dtype=np.float64)
    if (checked < 0).any():
        raise RowsError("sample weights must not be negative", got=f"{checked.min()}")
    return as_tensor(checked).to(x.device)
