"""Concepts as marks on rows: shown, not shown, or unknown."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evidence.arrays import RowsError, label_codes, label_values
from evidence.errors import InputError
from evidence.seeds import numpy_rng
from probes.splits.folds import Folds, group_codes, k_fold
from probes.splits.nulls import permuted_labels


@dataclass(frozen=True, repr=False)
class Concepts:
    """Rows marked for several concepts.

    Attributes:
        names: (concept,) unique names.
        marks: (concept, row) 1 if the row shows the concept, 0 if not, -1 if unknown.

    Examples:
        >>> concepts = exhume.concepts_of(cities)
        >>> len(concepts), concepts.n_rows, concepts.marks.sum(1).tolist()
        (8, 76, [10, 10, 10, 9, 9, 9, 9, 10])
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
                "marks have unknown values",
                expected="1 (shows it), 0 (does not), -1 (unknown)",
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

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.names[:3])) + ", ..." * (len(self) > 3)
        return f"Concepts({len(self)} concepts, {self.n_rows} rows: {shown})"

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.marks.shape[1]

    def __len__(self) -> int:
        return len(self.names)


def concepts_of(
    labels: ArrayLike | Mapping[str, ArrayLike], *, within: ArrayLike | None = None
) -> Concepts:
    """Concepts from one label a row, or from named marks.

    Args:
        labels: (row,) one label a row; each label becomes a concept, with all rows of other labels
            as negatives. Or a mapping from name to (row,) marks, of booleans or of 1, 0 and -1.
        within: (row,) kind of each row, such as its relation; the negatives of a label are then the
            rows of the same kind with other labels. A label belongs to one kind.

    Raises:
        InputError: a concept without positive or negative rows, or with two kinds.

    Examples:
        >>> exhume.concepts_of(cities)
        Concepts(8 concepts, 76 rows: 'Athens', 'Dublin', 'Lisbon', ...)
        >>> exhume.concepts_of({"Lisbon": cities == "Lisbon"}).names
        ('Lisbon',)
    """
    if isinstance(labels, Mapping):
        marks = [_marks(row) for row in labels.values()]
        if len({row.shape for row in marks}) > 1:
            raise InputError("concepts are marked on different numbers of rows")
        table = np.stack(marks) if marks else np.zeros((0, 0), np.int8)
        return Concepts(tuple(labels), table)
    values, codes = label_codes(labels)
    marks = (codes == np.arange(len(values))[:, None]).astype(np.int8)
    if within is not None:
        kinds = group_codes(within, len(codes))
        for i_label, row in enumerate(marks):
            label_kinds = np.unique(kinds[row == 1])
            if len(label_kinds) > 1:
                raise InputError(
                    f"label {str(values[i_label])!r} belongs to more than one kind",
                    expected="labels that name their kind",
                    fix="Put the kind into the label",
                )
            row[kinds != label_kinds[0]] = -1
    return Concepts(tuple(str(value) for value in values), marks)


def _marks(values: ArrayLike) -> NDArray[np.int8]:
    """(row,) marks from booleans or whole numbers."""
    marks = label_values(values)
    if marks.dtype.kind not in "biuf" or marks.ndim != 1 or not np.isin(marks, (-1, 0, 1)).all():
        raise RowsError(
            "marks have unknown values",
            expected="one a row: 1 or True (shows it), 0 or False (does not), -1 (unknown)",
            got=f"shape {marks.shape}" if marks.ndim != 1 else str(np.unique(marks)[:5].tolist()),
        )
    return marks.astype(np.int8)


def crossed_folds(
    subjects: ArrayLike, templates: ArrayLike, folds: tuple[int, int], seed: int = 0
) -> Folds:
    """Folds whose test rows share neither subject nor template with their training rows.

    Each pair of a subject part and a template part is tested once; rows that share only one of the
    two with the test rows are left out of training.

    Args:
        subjects: (row,) subject of each row.
        templates: (row,) template of each row.
        folds: Number of parts of the subjects and of the templates.
        seed: Seed of the parts.

    Raises:
        InputError: more parts than subjects or templates.

    Examples:
        >>> subjects, templates = np.repeat(np.arange(6), 3), np.tile(np.arange(3), 6)
        >>> folds = exhume.crossed_folds(subjects, templates, (3, 3))
        >>> len(folds), folds.name
        (9, '3 x 3 folds of subjects and templates')
    """
    n = len(label_values(subjects))
    no_labels = np.zeros(n, dtype=int)
    parts = [
        k_fold(group_codes(codes, n), no_labels, count, seed).test
        for codes, count in zip((subjects, templates), folds, strict=True)
    ]
    train, test = [], []
    for subject_part in parts[0]:
        for template_part in parts[1]:
            test.append(subject_part & template_part)
            train.append(~subject_part & ~template_part)
    nonempty = [fold for fold, rows in enumerate(test) if rows.any()]
    return Folds(
        np.stack([train[fold] for fold in nonempty]),
        np.stack([test[fold] for fold in nonempty]),
        f"{folds[0]} x {folds[1]} folds of subjects and templates",
    )


def random_concepts(
    concept: ArrayLike, groups: ArrayLike | None, count: int, seed: int = 0
) -> Concepts:
    """Uninformative concepts: permutations of a concept's marks.

    If every group (entity) has a single mark, marks are permuted among groups. Unknown rows stay
    unknown.

    Args:
        concept: (row,) marks to permute.
        groups: (row,) entity of each row, or None.
        count: Number of concepts.
        seed: Seed of the permutations.

    Examples:
        >>> exhume.random_concepts(cities == "Lisbon", people, count=5)
        Concepts(5 concepts, 76 rows: 'random 0', 'random 1', 'random 2', ...)
    """
    marks = _marks(concept)
    is_marked = marks >= 0
    codes = marks[is_marked].astype(np.int64)
    one_fold = Folds(
        np.ones((1, len(codes)), dtype=bool), np.zeros((1, len(codes)), dtype=bool), "all rows"
    )
    marked_groups = None if groups is None else label_values(groups, len(marks))[is_marked]
    permuted = permuted_labels(
        codes,
        group_codes(marked_groups, len(codes)),
        one_fold,
        count,
        numpy_rng(seed, "random concepts"),
    )
    table = np.full((count, len(marks)), -1, dtype=np.int8)
    table[:, is_marked] = permuted
    return Concepts(tuple(f"random {number}" for number in range(count)), table)
