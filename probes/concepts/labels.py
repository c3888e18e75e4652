"""Which rows show a concept, which do not, and which say nothing of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evidence.errors import InputError
from evidence.seeds import numpy_rng
from probes.splits.folds import Folds, group_codes, k_fold
from probes.splits.nulls import permuted_labels


@dataclass(frozen=True)
class Concepts:
    """Rows marked for several concepts at once.

    Attributes:
        names: (concept,) unique names.
        marks: (concept, row) 1 where a row shows the concept, 0 where it does not, -1
            where it says nothing of it.
    """

    names: tuple[str, ...]
    marks: NDArray[np.int8]

    def __post_init__(self) -> None:
        if self.marks.ndim != 2 or len(self.marks) != len(self.names):
            raise InputError(
                "marks must be (concept, row), one row of marks a name",
                expected=f"{len(self.names)} concepts",
                got=f"shape {self.marks.shape}",
            )
        if len(set(self.names)) != len(self.names) or not self.names:
            raise InputError("concepts need names, each once", got=str(self.names[:5]))
        if not np.isin(self.marks, (-1, 0, 1)).all():
            raise InputError(
                "marks hold something else",
                expected="1 (shows it), 0 (does not), -1 (says nothing)",
                got=str(np.unique(self.marks)[:5].tolist()),
            )
        for name, row in zip(self.names, self.marks, strict=True):
            for value, what in ((1, "positive"), (0, "negative")):
                if not (row == value).any():
                    raise InputError(
                        f"concept {name!r} has no {what} rows",
                        expected="one or more that show it and one or more that do not",
                        got=f"{int((row == 1).sum())} and {int((row == 0).sum())}",
                        fix="Give other items, or leave the concept out",
                    )

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.marks.shape[1]

    def __len__(self) -> int:
        return len(self.names)

    def restrict_to(self, rows: NDArray[np.bool_]) -> "Concepts":
        """The same concepts with every other row's mark taken away.

        Raises:
            InputError: a concept is left without positive or negative rows.
        """
        return Concepts(self.names, np.where(rows, self.marks, -1).astype(np.int8))


def concepts_of(
    labels: ArrayLike | Mapping[str, ArrayLike],
    *,
    within: ArrayLike | None = None,
) -> Concepts:
    """Concepts from one label a row, or from named marks.

    Args:
        labels: (row,) one label a row: each label becomes a concept, whose negatives
            are all rows of other labels. Or a mapping from name to (row,) marks, of
            booleans or of 1, 0 and -1.
        within: (row,) kind of each row, such as its relation: a label's negatives are
            then rows of the same kind alone, its siblings. A label belongs to one
            kind.

    Raises:
        InputError: a concept without positive or negative rows, or one of two kinds.
    """
    if isinstance(labels, Mapping):
        marks = [np.asarray(row).astype(np.int8) for row in labels.values()]
        if len({row.shape for row in marks}) > 1:
            raise InputError("concepts are marked on different numbers of rows")
        table = np.stack(marks) if marks else np.zeros((0, 0), np.int8)
        return Concepts(tuple(labels), table)
    own = np.asarray(labels)
    if own.ndim != 1:
        raise InputError("labels must be one a row", got=f"shape {own.shape}")
    values = np.unique(own)
    marks = (own == values[:, None]).astype(np.int8)
    if within is not None:
        kinds = group_codes(within, len(own))
        for place, row in enumerate(marks):
            mine = np.unique(kinds[row == 1])
            if len(mine) > 1:
                raise InputError(
                    f"label {str(values[place])!r} belongs to more than one kind",
                    expected="labels that name their kind",
                    fix="Put the kind into the label",
                )
            row[kinds != mine[0]] = -1
    return Concepts(tuple(str(value) for value in values), marks)


def crossed_folds(
    subjects: ArrayLike, templates: ArrayLike, folds: tuple[int, int], seed: int = 0
) -> Folds:
    """Folds whose test rows share neither subject nor template with their own fit.

    Each pair of a subject part and a template part is tested once; rows that share
    one of the two with the test rows are left out of that fold's fit.

    Args:
        subjects: (row,) who each row is about.
        templates: (row,) in which words.
        folds: Parts the subjects and the templates are dealt into.
        seed: Of the deal.

    Raises:
        InputError: more parts than subjects or templates.
    """
    n = len(np.asarray(subjects))
    even = np.zeros(n, dtype=int)
    parts = [
        k_fold(group_codes(each, n), even, count, seed).test
        for each, count in zip((subjects, templates), folds, strict=True)
    ]
    train, test = [], []
    for one in parts[0]:
        for other in parts[1]:
            test.append(one & other)
            train.append(~one & ~other)
    kept = [place for place, rows in enumerate(test) if rows.any()]
    return Folds(
        np.stack([train[place] for place in kept]),
        np.stack([test[place] for place in kept]),
        f"{folds[0]} x {folds[1]} folds of subjects and templates",
    )


def random_concepts(
    concept: Sequence[int] | NDArray[np.int8],
    groups: ArrayLike | None,
    count: int,
    seed: int = 0,
) -> Concepts:
    """Concepts that mean nothing: a concept's marks dealt anew.

    Where every group (entity) has one mark, groups exchange theirs whole. Rows that
    say nothing of the concept go on saying nothing.

    Args:
        concept: (row,) marks to imitate.
        groups: (row,) entity of each row, or None.
        count: How many.
        seed: Of the deals.
    """
    marks = np.asarray(concept, dtype=np.int8)
    used = marks >= 0
    codes = marks[used].astype(np.int64)
    whole = Folds(
        np.ones((1, len(codes)), dtype=bool),
        np.zeros((1, len(codes)), dtype=bool),
        "all rows",
    )
    own = None if groups is None else np.asarray(groups)[used]
    dealt = permuted_labels(
        codes,
        group_codes(own, len(codes)),
        whole,
        count,
        numpy_rng(seed, "random concepts"),
    )
    table = np.full((count, len(marks)), -1, dtype=np.int8)
    table[:, used] = dealt
    return Concepts(tuple(f"random {number}" for number in range(count)), table)
