"""Label vectors that carry nothing: permutations and control tasks."""

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
    """(count, row) labels exchanged as the null hypothesis allows.

    Where every group has one label, groups exchange theirs whole, among groups of
    the same size if every size has company; otherwise rows exchange labels freely.
    Draws that leave a fold without a class are drawn again.

    Raises:
        InputError: nearly no draw leaves every fold with every class.
    """
    by_group = _group_labels(codes, groups)
    out = np.empty((n_permutations, len(codes)), dtype=np.int64)
    classes = int(codes.max()) + 1
    for draw in range(n_permutations):
        for _ in range(200):
            if by_group is None:
                trial = rng.permutation(codes)
            else:
                trial = rng.permutation(by_group)[groups]
            enough = len(np.unique(trial)) == classes
            if enough and missing_class(folds, trial) is None:
                break
        else:
            raise InputError(
                "permuted labels leave a fold without one of the classes",
                fix="Use fewer folds or merge rare classes",
            )
        out[draw] = trial
    return out


def _group_labels(
    codes: NDArray[np.int64], groups: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """(group,) the label of each group, None where some group has several."""
    count = int(groups.max()) + 1
    low = np.full(count, codes.max())
    high = np.zeros(count, dtype=np.int64)
    np.minimum.at(low, groups, codes)
    np.maximum.at(high, groups, codes)
    return low if (low == high).all() and count < len(codes) else None


def control_labels(
    codes: NDArray[np.int64],
    kinds: NDArray,
    folds: Folds,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """(row,) a control task: each kind of row gets a random label, kept throughout.

    A probe can only learn it by memorising kinds (tokens, templates, relations), so
    real skill less control skill is what is not memory.

    Args:
        codes: (row,) real labels, whose shares the control keeps.
        kinds: (row,) what a probe could memorise.
        folds: Every fold's training rows must hold every class.
        rng: Draws the labels.

    Source: Hewitt and Liang (2019), arXiv 1909.03368.
    """
    index = np.unique(kinds, return_inverse=True)[1]
    classes = int(codes.max()) + 1
    if index.max() + 1 < classes:
        raise InputError(
            "the control task needs at least as many kinds as classes",
            expected=f"{classes} or more",
            got=str(index.max() + 1),
        )
    for _ in range(200):
        trial = rng.choice(codes, size=index.max() + 1)[index]
        if len(np.unique(trial)) == classes and missing_class(folds, trial) is None:
            return trial
    raise InputError(
        "no control task leaves every fold with every class",
        fix="Give a finer control=, such as the token of each row",
    )
