"""Which positions of each row are asked for, by name or by index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from capture.data.sequences import Sequences
from evidence.errors import InputError

PositionName = Literal["last_prompt", "last", "last_subject", "answer", "mean"]
Positions = PositionName | int | Sequence[int]


@dataclass(frozen=True)
class PositionSelection:
    """Which positions of each row are kept.

    Attributes:
        index: (row, k) position in the unpadded row; None for the mean over the row.
        mask: (row, k), False where a row has fewer; there ``index`` is 0.
        squeeze: Whether results have no position axis.
    """

    index: np.ndarray | None
    mask: np.ndarray | None
    squeeze: bool

    def rows(self, chosen: slice | Sequence[int]) -> "PositionSelection":
        """The part that concerns some of the rows."""
        return PositionSelection(
            None if self.index is None else self.index[chosen],
            None if self.mask is None else self.mask[chosen],
            self.squeeze,
        )


def select_positions(
    sequences: Sequences,
    positions: Positions,
    subject_end: Sequence[int] | None = None,
) -> PositionSelection:
    """Turn a name or indices into positions of each row.

    Args:
        sequences: The rows.
        positions: "last_prompt", the token before the answer (the last one where there
            is no answer); "last", the last token; "last_subject", the token given by
            ``subject_end``; "answer", every answer token; "mean", the mean over all
            tokens of the row; an index or several, valid in every row, negative ones
            counting from its own end.
        subject_end: Index of the last subject token of each row.

    Raises:
        InputError: a row lacks a position that was asked for.
    """
    lengths = np.array([len(ids) for ids in sequences.ids], dtype=np.int64)
    starts = np.array(sequences.answer_start, dtype=np.int64)
    if len(lengths) == 0 or lengths.min() == 0:
        raise InputError(
            "there is nothing to capture",
            expected="one or more rows of one or more tokens",
            got="an empty row" if len(lengths) else "no rows",
        )
    if positions == "mean":
        return PositionSelection(None, None, True)
    if positions == "answer":
        return _answers(lengths, starts)
    if positions == "last_prompt":
        index = starts - 1
    elif positions == "last":
        index = lengths - 1
    elif positions == "last_subject":
        index = _subject(subject_end, len(lengths))
    elif isinstance(positions, str):
        raise InputError(
            "the positions have an unknown name",
            expected="last_prompt, last, last_subject, answer, mean or indices",
            got=repr(positions),
        )
    else:
        asked = np.atleast_1d(np.asarray(positions, dtype=np.int64))
        index = np.where(asked < 0, asked + lengths[:, None], asked)
    squeeze = isinstance(positions, str | int)
    index = index.reshape(len(lengths), -1)
    short = ((index < 0) | (index >= lengths[:, None])).any(1)
    if short.any():
        row = int(np.flatnonzero(short)[0])
        raise InputError(
            f"{int(short.sum())} rows have no token at the positions asked for",
            expected=f"positions inside every row ({positions!r})",
            got=f"row {row} with {lengths[row]} tokens, {starts[row]} in its prompt",
        )
    return PositionSelection(
        index, None if squeeze else np.ones_like(index, dtype=bool), squeeze
    )


def _subject(ends: Sequence[int] | None, rows: int) -> np.ndarray:
    if ends is None or len(ends) != rows:
        raise InputError(
            "the last subject token is not known",
            expected=f"subject_end, one index for each of the {rows} rows",
            got="none" if ends is None else f"{len(ends)}",
        )
    return np.asarray(ends, dtype=np.int64)


def _answers(lengths: np.ndarray, starts: np.ndarray) -> PositionSelection:
    counts = lengths - starts
    if counts.min() < 1:
        raise InputError(
            "some rows have no answer",
            expected="answer tokens in every row",
            got=f"{int((counts < 1).sum())} rows without",
        )
    steps = np.arange(counts.max())
    mask = steps < counts[:, None]
    return PositionSelection(np.where(mask, starts[:, None] + steps, 0), mask, False)
