"""Validate activations, labels and sample weights, and convert them to tensors.

Every estimator and eraser reads its input here, so all of them accept the same things: NumPy
arrays, lists, pandas and torch, of any floating-point type and on any device.

Labels
    Text, booleans, integers and categories are classes. Floating-point labels are classes if all
    are whole and at most ``MAX_FLOAT_CLASSES`` differ: 0.0, 1.0 and 2.0 mean 0, 1 and 2. With a
    fractional value, or with several columns, they are numbers. Whole floating-point labels with
    more values could be either and are refused unless the caller says which. A function that can
    use classes only refuses numbers.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import _check_sample_weight, column_or_1d, validate_data
from torch import Tensor

from evidence.errors import InputError

ConceptKind = Literal["classes", "numbers"]
"""How labels are read: as classes, or as numeric values."""

MAX_FLOAT_CLASSES = 20
"""Most different whole floating-point labels that are read as classes without being told."""


class RowsError(InputError, ValueError):
    """Rows or labels that cannot be used for fitting; a ``ValueError``, as sklearn requires."""


class NotFinite(RowsError):
    """Rows with NaN or infinite values."""


def as_array(values: Any) -> NDArray:
    """A NumPy array of anything array-like: tensors on any device, lists of tensors, frames.

    Half precision that NumPy lacks becomes float32.
    """
    if isinstance(values, Sequence) and len(values) and isinstance(values[0], Tensor):
        values = torch.stack([*values])
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def float_tensor(values: ArrayLike | Tensor) -> Tensor:
    """A floating-point tensor without gradient, sharing memory if possible.

    Floating-point input keeps its type and tensors their device; other numbers become float64.

    Raises:
        RowsError: The input does not hold real numbers, or its rows differ in length.
    """
    if isinstance(values, Tensor):
        tensor = values.detach()
    else:
        try:
            array = as_array(values)
            if array.dtype.kind == "O":  # pandas: columns of several numeric types
                array = array.astype(np.float64)
        except (ValueError, TypeError, RuntimeError) as error:
            raise RowsError("activations must be a table of numbers", got=str(error)) from error
        if array.dtype.kind not in "fiub":
            raise RowsError(
                "activations must be real numbers",
                expected="an array of floating-point numbers",
                got=f"type {array.dtype}",
            )
        contiguous = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        writeable = contiguous if contiguous.flags.writeable else contiguous.copy()
        tensor = torch.from_numpy(writeable.reshape(array.shape))
    if tensor.is_complex():
        raise RowsError("activations must be real numbers", got=f"type {tensor.dtype}")
    return tensor if tensor.is_floating_point() else tensor.double()


def as_tensor(array: ArrayLike | Tensor) -> Tensor:
    """Convert to a float64 tensor, sharing memory if possible.

    Read-only, half-precision and non-contiguous arrays are copied.
    """
    return float_tensor(array).double()


def check_finite(x: Tensor, what: str = "the activations") -> None:
    """Check that (..., row, d) values are finite.

    Raises:
        NotFinite: with the number of rows that are not, and the first.
    """
    # One sum is cheaper than testing every value, and finite if all values are.
    if x.ndim == 0 or bool(torch.isfinite(x.sum())):
        return
    is_bad = ~torch.isfinite(x)
    if x.ndim > 1:
        is_bad = is_bad.any(-1).reshape(-1, x.shape[-2]).any(0)
    bad_rows = is_bad.nonzero()[:, 0].tolist()
    if bad_rows:
        count = "1 row" if len(bad_rows) == 1 else f"{len(bad_rows)} rows"
        raise NotFinite(
            f"{what} have NaN or infinite values in {count} of {len(is_bad)}",
            got=f"the first is row {bad_rows[0]}",
            fix="Find these rows with isfinite(x).all(-1) and drop them; half precision overflows "
            "in large models, so capture in float32",
        )


def validate_rows(estimator, x, *, reset: bool) -> Tensor:
    """Convert ``x`` to a (row, d) float64 tensor on its own device.

    Raises:
        RowsError: not 2-D, not finite, empty, or a width that differs from the fitted one. Shapes
            of NumPy input raise scikit-learn's own errors.
    """
    name = type(estimator).__name__
    if not isinstance(x, Tensor):
        if isinstance(x, Sequence):
            x = as_array(x)
        dtypes = [np.float64, np.float32, np.float16]
        given: Any = x
        numeric = validate_data(
            estimator, given, reset=reset, dtype=dtypes, ensure_all_finite=False
        )
        rows = as_tensor(np.asarray(numeric))
        check_finite(rows, f"{name}: the activations")
        return rows
    if x.ndim != 2 or 0 in x.shape:
        raise RowsError(
            f"{name} needs rows of features",
            expected="a (row, d) tensor with at least one of each",
            got=f"shape {tuple(x.shape)}",
        )
    x = as_tensor(x)
    check_finite(x, f"{name}: the activations")
    if reset:
        estimator.n_features_in_ = x.shape[1]
    elif x.shape[1] != estimator.n_features_in_:
        raise RowsError(
            f"X has {x.shape[1]} features, but {name} is expecting "
            f"{estimator.n_features_in_} features as input"
        )
    return x


def label_values(labels: Any, n_rows: int | None = None) -> NDArray:
    """Labels as an array of one plain type: text, booleans, integers or floating-point numbers.

    Raises:
        RowsError: A label is missing (None, NaN, NA) or infinite, the labels have several types or
            are no labels, or their number differs from ``n_rows``.
    """
    if labels is None:
        raise RowsError("requires y to be passed, but the target y is None")
    values = labels
    if isinstance(labels, list | tuple):
        values = as_array(labels) if len(labels) and isinstance(labels[0], Tensor) else None
        if values is None:
            # NumPy would write numbers among texts as text.
            is_text = [isinstance(label, str) for label in labels]
            values = np.array(labels, object if any(is_text) else None)
    array = as_array(values)
    if n_rows is not None and (array.ndim == 0 or len(array) != n_rows):
        raise RowsError(
            "rows and labels differ in number",
            expected=str(n_rows),
            got=str(len(array) if array.ndim else 1),
        )
    kind = array.dtype.kind
    if kind == "O":
        import pandas as pd

        _refuse_missing(pd.isna(array))
        # One NumPy type each for Python's text, bool, int and float.
        kinds = {_plain_type(value) for value in array.ravel()}
        if len(kinds) > 1 and not kinds <= {bool, int, float}:
            shown = ", ".join(sorted(each.__name__ for each in kinds))
            raise RowsError(
                "the labels have several types", expected="all text, or all integers", got=shown
            )
        if kinds <= {bool, int, float, str}:
            array = np.array(array.tolist()).reshape(array.shape)
            kind = array.dtype.kind
    if kind in "fc":
        _refuse_missing(~np.isfinite(array))
    elif kind in "mM":
        _refuse_missing(np.isnat(array))
    if kind == "c":
        raise RowsError("Unknown label type: complex numbers cannot be labels")
    return array


def label_codes(labels: Any, n_rows: int | None = None) -> tuple[NDArray, NDArray[np.int64]]:
    """Sorted class names and (row,) class codes of labels that must be classes; one class will do.

    Raises:
        RowsError: as ``label_values``, or the labels are numbers.
    """
    array = label_values(labels, n_rows)
    if read_as(array, None) == "numbers":
        several = array.ndim == 2 and array.shape[1] != 1
        raise RowsError(
            "Unknown label type: the labels are " + ("several columns" if several else "numbers"),
            expected="one class a row: text, booleans, integers, or whole numbers",
            got=f"shape {array.shape}" if several else f"{array[array % 1 != 0].ravel()[0]}",
            fix="Form classes first, for example y > numpy.median(y)",
        )
    array = column_or_1d(array, warn=True)
    classes, codes = np.unique(array, return_inverse=True)
    return classes, codes.reshape(-1).astype(np.int64)


def validate_labels(labels: Any, n_rows: int) -> tuple[NDArray, NDArray[np.int64]]:
    """Sorted class names and (row,) class codes of two or more classes.

    Raises:
        RowsError: as ``label_codes``, or fewer than two classes.
    """
    classes, codes = label_codes(labels, n_rows)
    if len(classes) < 2:
        raise RowsError(
            "there is only one class",
            expected="labels of two or more classes",
            got=f"{str(classes[0])!r} in every row" if len(classes) else "no rows",
        )
    return classes, codes


def member_labels(labels: Any, n_rows: int) -> NDArray[np.int64]:
    """(row,) 1 for members and 0 for others, of labels that say which: 1 and 0, or booleans.

    Raises:
        RowsError: as ``label_values``, or other values, of which none is known to mean a member.
    """
    classes, codes = label_codes(labels, n_rows)
    if classes.dtype.kind not in "biuf" or not np.isin(classes, (0, 1)).all():
        raise RowsError(
            "labels must say which rows are members",
            expected="1 or True for members, 0 or False for others",
            got=str(classes[:5].tolist()),
            fix='Compare first, for example labels == "seen"',
        )
    return classes[codes].astype(np.int64)


def read_as(labels: NDArray, kind: ConceptKind | None) -> ConceptKind:
    """Whether labels from ``label_values`` are classes or numbers, by the rule of this module.

    Args:
        labels: (row,) or (row, k).
        kind: The caller's choice, or None for the rule.

    Raises:
        RowsError: The labels could be either, ``kind`` is unknown, or text is to be numbers.
    """
    if kind not in (None, "classes", "numbers"):
        raise RowsError("unknown kind", expected='"classes", "numbers" or None', got=repr(kind))
    if kind == "numbers" and labels.dtype.kind not in "fiub":
        raise RowsError("the labels are not numbers", got=f"type {labels.dtype}")
    if kind is not None:
        return kind
    if labels.dtype.kind != "f":
        return "classes"
    if (labels.ndim == 2 and labels.shape[1] != 1) or (labels % 1 != 0).any():
        return "numbers"
    n_values = len(np.unique(labels))
    if n_values > MAX_FLOAT_CLASSES:
        raise RowsError(
            f"the labels are whole floating-point numbers with {n_values} values, which could be "
            "classes or numbers",
            expected=f"integers for classes, or at most {MAX_FLOAT_CLASSES} values",
            fix='For classes give integers, y.astype(int); for numbers, kind="numbers" where the '
            "function has it",
        )
    return "classes"


def _plain_type(value: Any) -> type:
    for plain, numpy_type in ((bool, np.bool_), (int, np.integer), (float, np.floating)):
        if isinstance(value, plain | numpy_type):
            return plain
    return str if isinstance(value, str) else type(value)


def _refuse_missing(is_missing: Any) -> None:
    is_missing = np.asarray(is_missing)
    rows = np.flatnonzero(is_missing.reshape(len(is_missing), -1).any(1))
    if len(rows):
        count = "1 row" if len(rows) == 1 else f"{len(rows)} rows"
        raise RowsError(
            f"Input y contains NaN, infinity or missing labels in {count} of {len(is_missing)}",
            got=f"the first is row {rows[0]}",
            fix="Drop these rows",
        )


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
