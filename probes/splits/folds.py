"""Cross-validation folds as masks, by group, checked against the labels."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evidence.arrays import as_array, label_codes, label_values
from evidence.errors import InputError, quoted
from evidence.seeds import numpy_rng


@dataclass(frozen=True)
class Folds:
    """A cross-validation scheme.

    Attributes:
        train: (fold, row) True where the fold trains on the row.
        test: (fold, row) True where the fold scores the row; each row at most once.
        name: E.g. "leave one group out (40 groups)".
    """

    train: NDArray[np.bool_]
    test: NDArray[np.bool_]
    name: str

    def __post_init__(self) -> None:
        if self.train.shape != self.test.shape or self.train.ndim != 2:
            raise InputError(
                "train and test masks must share one (fold, row) shape",
                got=f"{self.train.shape} and {self.test.shape}",
            )
        if (self.train & self.test).any():
            raise InputError("a fold scores rows that it trains on")
        if (self.test.sum(0) > 1).any():
            raise InputError(
                "a row is scored by more than one fold",
                fix="Give repeated splits as separate Folds",
            )

    def __len__(self) -> int:
        return len(self.train)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.train.shape[1]

    @cached_property
    def left_out(self) -> NDArray[np.int64]:
        """(fold, g) rows that a fold does not train on, padded with -1."""
        sizes = (~self.train).sum(1)
        rows = np.full((len(self), int(sizes.max(initial=0))), -1)
        rows[np.arange(rows.shape[1]) < sizes[:, None]] = (~self.train).nonzero()[1]
        return rows

    @cached_property
    def scored(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of a fold and a row that it scores, as two arrays."""
        fold, row = self.test.nonzero()
        return fold, row


def group_codes(groups: ArrayLike | None, n: int) -> NDArray[np.int64]:
    """(n,) integer code of each row's group; every row is its own group if None."""
    if groups is None:
        return np.arange(n)
    values = label_values(groups)
    if values.shape != (n,):
        raise InputError(
            "groups must name one group a row",
            expected=f"shape ({n},)",
            got=f"shape {values.shape}",
        )
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def leave_one_group_out(groups: ArrayLike | None, n: int) -> Folds:
    """One fold a group; leave-one-out where ``groups`` is None."""
    codes = group_codes(groups, n)
    n_groups = int(codes.max()) + 1 if n else 0
    if n_groups < 2:
        raise InputError("leaving one group out needs two groups", got=f"{n_groups} group(s)")
    test = codes == np.arange(n_groups)[:, None]
    kind = "leave one out" if groups is None else "leave one group out"
    return Folds(~test, test, f"{kind} ({n_groups} folds)")


def k_fold(groups: ArrayLike | None, labels: ArrayLike, n_folds: int, seed: int = 0) -> Folds:
    """Folds of whole groups, with labels spread as evenly as groups allow.

    Groups are assigned largest first, in seeded order, each to the fold where its labels are
    rarest.

    Examples:
        >>> folds = exhume.k_fold(["a", "a", "b", "b"], np.array([0, 1, 0, 1]), 2)
        >>> folds.test.sum(1).tolist()
        [2, 2]
    """
    _, row_codes = label_codes(labels)
    n = len(row_codes)
    codes = group_codes(groups, n)
    n_groups = int(codes.max()) + 1 if n else 0
    if not 2 <= n_folds <= n_groups:
        raise InputError(
            "there are too few groups for this many folds",
            expected=f"2 to {n_groups} folds for {n_groups} groups",
            got=str(n_folds),
        )
    label_counts = np.zeros((n_groups, int(row_codes.max()) + 1))
    np.add.at(label_counts, (codes, row_codes), 1)
    order = numpy_rng(seed, "k_fold").permutation(n_groups)
    order = order[np.argsort(-label_counts[order].sum(1), kind="stable")]
    fold_counts = np.zeros((n_folds, label_counts.shape[1]))
    equal_share = label_counts.sum(0) / n_folds
    fold_of_group = np.empty(n_groups, dtype=np.int64)
    for group in order:
        # The fold whose label counts end closest to an equal share.
        cost = (
            (fold_counts + label_counts[group] - equal_share) ** 2
            - (fold_counts - equal_share) ** 2
        ).sum(1)
        fold = np.lexsort((fold_counts.sum(1), cost.round(9)))[0]
        fold_of_group[group] = fold
        fold_counts[fold] += label_counts[group]
    test = fold_of_group[codes] == np.arange(n_folds)[:, None]
    return Folds(~test, test, f"{n_folds}-fold by group ({n_groups} groups)")


def rebalanced(folds: Folds, labels: ArrayLike, seed: int = 0) -> Folds:
    """Drop training rows so that every fold keeps the class frequencies of all rows.

    Leaving out a row makes its class rarer in training, which shifts its score in the wrong
    direction and pooled AUC below 0.5 on noise. Dropping the same share of each other class, at
    random, removes that bias. The training sets become slightly smaller.

    Source: Austin et al. (2025), Science Advances, "distributional bias".
    """
    _, codes = label_codes(labels)
    shares = np.bincount(codes) / len(codes)
    rng = numpy_rng(seed, "rebalanced")
    train = folds.train.copy()
    for fold in range(len(folds)):
        counts = np.bincount(codes[train[fold]], minlength=len(shares))
        size = np.floor((counts / np.maximum(shares, 1e-12)).min() + 1e-9)
        keep = np.floor(size * shares + 1e-9).astype(int)
        for code in range(len(shares)):
            rows = np.flatnonzero(train[fold] & (codes == code))
            drop = rng.permutation(rows)[: max(0, len(rows) - keep[code])]
            train[fold, drop] = False
    return Folds(train, folds.test, f"{folds.name}, rebalanced")


def from_splits(splits: Iterable[Any], n: int, name: str = "") -> Folds:
    """Folds from (train indices, test indices) pairs, as scikit-learn splitters give.

    Raises:
        InputError: a row is scored twice, or the pairs are no indices of rows.
    """
    train, test = [], []
    try:
        for fit, score in splits:
            for masks, rows in ((train, fit), (test, score)):
                mask = np.zeros(n, dtype=bool)
                mask[as_array(rows)] = True
                masks.append(mask)
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(
            "the splits are no pairs of training rows and test rows",
            expected=f"pairs of indices below {n}",
            got=str(error),
        ) from error
    if not train:
        raise InputError("there are no splits")
    return Folds(np.stack(train), np.stack(test), name or f"{len(train)} given splits")


def as_folds(
    cv: Any, codes: NDArray[np.int64], groups: NDArray[np.int64] | None, seed: int = 0
) -> Folds:
    """Folds from any value of a ``cv`` argument.

    Args:
        cv: "leave-one-group-out", a number of folds by group, ``Folds``, a splitter of scikit-learn
            that scores each row at most once, or pairs of training rows and test rows.
        codes: (row,) class codes.
        groups: (row,) codes of the groups; None if every row is its own.
        seed: Seed of a number of folds; splitters have their own.

    Raises:
        InputError: none of these, or the splitter cannot split these rows.
    """
    n = len(codes)
    if isinstance(cv, Folds):
        return cv
    if isinstance(cv, str) and cv == "leave-one-group-out":
        return leave_one_group_out(groups, n)
    if isinstance(cv, Integral) and not isinstance(cv, bool):
        return k_fold(groups, codes, int(cv), seed)
    if callable(getattr(cv, "split", None)) and not isinstance(cv, str | type):
        name = type(cv).__name__
        try:
            with warnings.catch_warnings():
                # The caller checks that no fold splits a group.
                warnings.filterwarnings("ignore", "The groups parameter is ignored")
                splits = [*cv.split(np.zeros((n, 1)), codes, groups)]
        except (TypeError, ValueError) as error:
            fix = "Give groups=" if groups is None and "groups" in str(error) else None
            raise InputError(f"{name} cannot split these rows: {error}", fix=fix) from error
        times = np.bincount(np.concatenate([score for _, score in splits]), minlength=n)
        if times.max() > 1:
            raise InputError(
                f"{name} scores some rows in several folds",
                expected="a splitter that scores each row at most once, such as KFold",
                fix="Repeat the call with other seeds instead",
            )
        return from_splits(splits, n, f"{name} ({len(splits)} folds)")
    if isinstance(cv, Iterable) and not isinstance(cv, str):
        return from_splits(cv, n)
    raise InputError(
        "unknown cv",
        expected="'leave-one-group-out', a number of folds, Folds, a splitter of scikit-learn, or "
        "(train, test) pairs",
        got=quoted(cv),
        fix=f"Write {cv.__name__}()" if isinstance(cv, type) else None,
    )


def missing_class(folds: Folds, codes: NDArray[np.int64]) -> tuple[int, int] | None:
    """The first (fold, class) without a training row of the class, if any."""
    classes = int(codes.max()) + 1
    onehot = np.eye(classes)[codes]
    empty = np.argwhere(folds.train.astype(float) @ onehot == 0)
    return (int(empty[0, 0]), int(empty[0, 1])) if len(empty) else None


def check_folds(folds: Folds, codes: NDArray[np.int64], names) -> None:
    """Check that every fold trains on every class.

    Raises:
        InputError: with the fold and the class.
    """
    if folds.n_rows != len(codes):
        raise InputError(
            "folds and labels differ in rows", expected=str(folds.n_rows), got=str(len(codes))
        )
    if codes.max(initial=0) < 1:
        raise InputError(
            "there is only one class",
            expected="labels of two or more classes",
            got=f"{str(names[0])!r} in every row" if len(names) else "no rows",
        )
    missing = missing_class(folds, codes)
    if missing is not None:
        fold, code = missing
        raise InputError(
            f"fold {fold} of {len(folds)} has no training row of class {str(names[code])!r}",
            fix="All rows of that class are in one group or fold: use fewer folds, "
            "coarser labels or finer groups",
        )
