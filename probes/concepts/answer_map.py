"""A fixed linear map that reads a class from a state and adds it back."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence.arrays import as_tensor, check_finite, label_codes, label_values
from evidence.errors import InputError
from probes.splits.folds import group_codes

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class AnswerMap:
    """The map h -> h + strength (h - center) B.

    It is the same for every input: its output depends on the state, never on a label.

    Attributes:
        matrix: (d, d) B, float64.
        center: (d,) mean of the training rows.
        penalty: The chosen penalty.
    """

    matrix: Tensor
    center: Tensor
    penalty: float

    def apply(self, states: Tensor) -> Tensor:
        """(row, d) added to each state at strength 1."""
        centered = states - self.center.to(states)
        return centered @ self.matrix.to(states)

    def randomly_rotated(self, rng: np.random.Generator) -> "AnswerMap":
        """The control: outputs of the same norm, rotated at random."""
        d = len(self.center)
        rotation, _ = np.linalg.qr(rng.standard_normal((d, d)))
        matrix = self.matrix @ torch.from_numpy(rotation).to(self.matrix)
        return AnswerMap(matrix, self.center, self.penalty)


def fit_answer_map(
    states: ArrayLike | Tensor,
    classes: ArrayLike,
    kinds: ArrayLike,
    val_states: ArrayLike | Tensor,
    val_classes: ArrayLike,
) -> AnswerMap:
    """Ridge regression from a state to the offset of its class mean from its kind's mean.

    A row's target is the mean state of its class minus that of its kind (relation), so that kinds,
    which every probe detects, do not count. The penalty is the one for which validation rows are
    most often closest to their own class.

    Args:
        states: (row, d) of the training entities.
        classes: (row,) class of each row; a class belongs to one kind.
        kinds: (row,) kind of each row.
        val_states: (validation row, d) of other entities.
        val_classes: (validation row,) their classes; rows of unknown classes are ignored.

    Raises:
        InputError: rows that do not match, or a kind with a single class.
    """
    x = as_tensor(states)
    check_finite(x, "the states")
    names, codes = label_codes(classes)
    row_kind = group_codes(kinds, len(x))
    if len(codes) != len(x):
        raise InputError(
            "states and classes differ in rows", expected=str(len(x)), got=str(len(codes))
        )
    kind_of_class = np.zeros(len(names), dtype=np.int64)
    kind_of_class[codes] = row_kind
    if (kind_of_class[codes] != row_kind).any() or (np.bincount(kind_of_class) < 2).any():
        raise InputError(
            "classes and kinds do not match",
            expected="each class in one kind, and two or more classes in every kind",
        )
    offsets = _means(x, codes) - _means(x, row_kind)[kind_of_class]
    center = x.mean(0)
    left, singular_values, axes = torch.linalg.svd(x - center, full_matrices=False)
    projected_targets = left.T @ offsets[codes]
    val_rows, val_codes = _known_rows(val_states, val_classes, names)
    best_accuracy, best_penalty = -1.0, PENALTIES[0]
    for penalty in PENALTIES:
        matrix = _solve(singular_values, axes, projected_targets, penalty)
        outputs = (val_rows - center) @ matrix
        # The closest offset among the classes of the row's own kind.
        distances = offsets.square().sum(1) - 2 * outputs @ offsets.T
        other_kind = torch.from_numpy(kind_of_class[val_codes][:, None] != kind_of_class[None])
        correct = distances.masked_fill(other_kind, torch.inf).argmin(1).numpy() == val_codes
        if len(correct) and correct.mean() > best_accuracy:
            best_accuracy, best_penalty = float(correct.mean()), penalty
    return AnswerMap(
        _solve(singular_values, axes, projected_targets, best_penalty), center, best_penalty
    )


def _means(x: Tensor, codes: NDArray[np.int64]) -> Tensor:
    member = torch.nn.functional.one_hot(torch.from_numpy(codes)).to(x)
    return member.T @ x / member.sum(0)[:, None]


def _solve(
    singular_values: Tensor, axes: Tensor, projected_targets: Tensor, penalty: float
) -> Tensor:
    """(d, d) ridge solution; the penalty is relative to the mean squared singular value."""
    ridge = penalty * singular_values.square().mean()
    return axes.T @ (
        (singular_values / (singular_values.square() + ridge).clamp(min=1e-300))[:, None]
        * projected_targets
    )


def _known_rows(
    states: ArrayLike | Tensor, classes: ArrayLike, names: NDArray
) -> tuple[Tensor, NDArray[np.int64]]:
    """Rows whose class was fitted on, and its code."""
    rows = as_tensor(states)
    check_finite(rows, "the validation states")
    values = label_values(classes, len(rows))
    known = np.isin(values, names)
    rows = rows[torch.from_numpy(known)]
    return rows, np.searchsorted(names, values[known])
