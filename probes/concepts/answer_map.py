"""One fixed linear map that reads a class in a state and writes it back, louder."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence.arrays import as_tensor
from evidence.errors import InputError
from probes.splits.folds import group_codes

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class AnswerMap:
    """The map h -> h + strength (h - centre) B.

    It is the same for every input: what it writes depends on what a state already
    holds, never on a label.

    Attributes:
        matrix: (d, d) B, float64.
        center: (d,) mean of the rows fitted on.
        penalty: The penalty chosen.
    """

    matrix: Tensor
    center: Tensor
    penalty: float

    def apply(self, states: Tensor) -> Tensor:
        """(row, d) what is added to each state at strength 1."""
        centred = states - self.center.to(states)
        return centred @ self.matrix.to(states)

    def randomly_rotated(self, rng: np.random.Generator) -> "AnswerMap":
        """The control: as much is written, in directions turned at random."""
        d = len(self.center)
        turn, _ = np.linalg.qr(rng.standard_normal((d, d)))
        matrix = self.matrix @ torch.from_numpy(turn).to(self.matrix)
        return AnswerMap(matrix, self.center, self.penalty)


def fit_answer_map(
    states: ArrayLike | Tensor,
    classes: ArrayLike,
    kinds: ArrayLike,
    val_states: ArrayLike | Tensor,
    val_classes: ArrayLike,
) -> AnswerMap:
    """Ridge regression from states to where their class lies within its kind.

    A row's target is the mean state of its class less that of its kind (relation), so
    that kinds, which every reader finds at once, count for nothing. The penalty is the
    one that places held-out rows nearest to their own class most often.

    Args:
        states: (row, d) of the entities fitted on.
        classes: (row,) class of each row; a class belongs to one kind.
        kinds: (row,) kind of each row.
        val_states: (other row, d) of other entities.
        val_classes: (other row,) their classes; those not fitted on are left out.

    Raises:
        InputError: rows that do not fit together, or a kind of one class alone.
    """
    x = as_tensor(np.asarray(states))
    names, codes = np.unique(np.asarray(classes), return_inverse=True)
    kind = group_codes(kinds, len(x))
    if len(codes) != len(x):
        raise InputError(
            "states and classes differ in rows",
            expected=str(len(x)),
            got=str(len(codes)),
        )
    own_kind = np.zeros(len(names), dtype=np.int64)
    own_kind[codes] = kind
    if (own_kind[codes] != kind).any() or (np.bincount(own_kind) < 2).any():
        raise InputError(
            "classes and kinds do not fit together",
            expected="each class in one kind, and two or more classes in every kind",
        )
    offsets = _means(x, codes) - _means(x, kind)[own_kind]
    centre = x.mean(0)
    left, sizes, axes = torch.linalg.svd(x - centre, full_matrices=False)
    pulled = left.T @ offsets[codes]
    y, known = _known_rows(val_states, val_classes, names)
    best, chosen = -1.0, PENALTIES[0]
    for penalty in PENALTIES:
        matrix = _solve(sizes, axes, pulled, penalty)
        written = (y - centre) @ matrix
        # Nearest offset among the classes of the row's own kind.
        distance = offsets.square().sum(1) - 2 * written @ offsets.T
        other = torch.from_numpy(own_kind[known][:, None] != own_kind[None])
        right = distance.masked_fill(other, torch.inf).argmin(1).numpy() == known
        if len(right) and right.mean() > best:
            best, chosen = float(right.mean()), penalty
    return AnswerMap(_solve(sizes, axes, pulled, chosen), centre, chosen)


def _means(x: Tensor, codes: NDArray[np.int64]) -> Tensor:
    member = torch.nn.functional.one_hot(torch.from_numpy(codes)).to(x)
    return member.T @ x / member.sum(0)[:, None]


def _solve(sizes: Tensor, axes: Tensor, pulled: Tensor, penalty: float) -> Tensor:
    """(d, d) ridge solution; the penalty is in mean squared singular values."""
    ridge = penalty * sizes.square().mean()
    return axes.T @ (
        (sizes / (sizes.square() + ridge).clamp(min=1e-300))[:, None] * pulled
    )


def _known_rows(
    states: ArrayLike | Tensor, classes: ArrayLike, names: NDArray
) -> tuple[Tensor, NDArray[np.int64]]:
    """Rows whose class was fitted on, and its number."""
    values = np.asarray(classes)
    kept = np.isin(values, names)
    rows = as_tensor(np.asarray(states)[kept])
    return rows, np.searchsorted(names, values[kept])
