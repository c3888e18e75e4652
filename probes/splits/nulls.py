"""Uninformative label vectors: permutations and control tasks."""

import numpy as np
from numpy.typing import NDArray

from evidence.errors import InputError
from probes.splits.folds import Folds, missing_class


def permuted_labels(
    codes: NDArray[np.int64],
    groups: NDArray[np.int64],
    folds: Folds,
    n_permutations: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """(permutation, row) labels, permuted as the null hypothesis allows.

    If every group has a single label, labels are permuted among groups, else among rows. Draws that
    leave a fold without a class are repeated.

    Raises:
        InputError: nearly every draw leaves a fold without a class.
    """
    by_group = _group_labels(codes, groups)
    rows = np.empty((n_permutations, len(codes)), dtype=np.int64)
    classes = int(codes.max()) + 1
    for draw in range(n_permutations):
        for _ in range(200):
            if by_group is None:
                permuted = rng.permutation(codes)
            else:
                permuted = rng.permutation(by_group)[groups]
            all_present = len(np.unique(permuted)) == classes
            if all_present and missing_class(folds, permuted) is None:
                break
        else:
            raise InputError(
                "permuted labels leave a fold without one of the classes",
                fix="Use fewer folds or merge rare classes",
            )
        rows[draw] = permuted
    return rows


def _group_labels(codes: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """(group,) label of each group; None if a group has several, or all groups have one row."""
    count = int(groups.max()) + 1
    low = np.full(count, codes.max())
    high = np.zeros(count, dtype=np.int64)
    np.minimum.at(low, groups, codes)
    np.maximum.at(high, groups, codes)
    return low if (low == high).all() and count < len(codes) else None


def control_labels(
    codes: NDArray[np.int64], kinds: NDArray, folds: Folds, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(row,) a control task: each kind of row gets a fixed random label.

    A probe can learn it only by memorizing kinds (tokens, templates, relations), so the real skill
    minus the control skill excludes memorization.

    Args:
        codes: (row,) real labels, whose frequencies the control keeps.
        kinds: (row,) the property a probe could memorize.
        folds: Every fold's training rows must contain every class.
        rng: Draws the labels.

    Source: Hewitt and Liang (2019), arXiv 1909.03368.
    """
    kind_codes = np.unique(kinds, return_inverse=True)[1]
    classes = int(codes.max()) + 1
    if kind_codes.max() + 1 < classes:
        raise InputError(
            "the control task needs at least as many kinds as classes",
            expected=f"{classes} or more",
            got=str(kind_codes.max() + 1),
        )
    for _ in range(200):
        labels = rng.choice(codes, size=kind_codes.max() + 1)[kind_codes]
        if len(np.unique(labels)) == classes and missing_class(folds, labels) is None:
            return labels
    raise InputError(
        "every random control task leaves a fold without a class",
        fix="Give a finer control=, such as the token of each row",
    )
