"""Selection of token positions, by name or by index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from capture.data.sequences import Sequences
from evidence.errors import InputError

PositionName = Literal["last_prompt", "last", "last_subject", "answer", "all", "mean"]
Positions = PositionName | int | Sequence[int]


@dataclass(frozen=True)
class PositionSelection:
    """Selected positions of each row.

    Attributes:
        index: (row, k) positions in the unpadded row; None for the mean over the row.
        mask: (row, k) bool, False where a row has fewer positions; there ``index`` is 0.
        squeeze: Whether results have no position axis.
    """

    index: np.ndarray | None
    mask: np.ndarray | None
    squeeze: bool

    def rows(self, chosen: slice | Sequence[int]) -> "PositionSelection":
        """The selection for some of the rows."""
        return PositionSelection(
            None if self.index is None else self.index[chosen],
            None if self.mask is None else self.mask[chosen],
            self.squeeze,
        )


def select_positions(
    sequences: Sequences, positions: Positions, subject_end: Sequence[int] | None = None
) -> PositionSelection:
    """Resolve a name or indices to positions of each row.

    Args:
        positions: "last_prompt", the token before the answer (the last token if there is no
            answer); "last", the last token; "last_subject", the token at ``subject_end``;
            "answer", all answer tokens; "all", all tokens of the row; "mean", the mean over all
            tokens of the row; or one or several indices valid in every row, negative ones
            counting from the row's end.
        subject_end: Index of the last subject token of each row.

    Raises:
        InputError: a row lacks a requested position.
    """
    lengths = np.array([len(ids) for ids in sequences.ids], dtype=np.int64)
    starts = np.array(sequences.answer_start, dtype=np.int64)
    if len(lengths) == 0 or lengths.min() == 0:
        raise InputError(
            "there is nothing to capture",
            expected="one or more rows of one or more tokens",
            got="an empty row" if len(lengths) else "no rows",
        )
    if isinstance(positions, np.integer):
        positions = int(positions)
    if isinstance(positions, str) and positions == "mean":
        return PositionSelection(None, None, True)
    if isinstance(positions, str) and positions == "answer":
        return _answer_positions(lengths, starts)
    if isinstance(positions, str) and positions == "all":
        return _answer_positions(lengths, np.zeros_like(lengths))
    if isinstance(positions, str) and positions == "last_prompt":
        index = starts - 1
    elif isinstance(positions, str) and positions == "last":
        index = lengths - 1
    elif isinstance(positions, str) and positions == "last_subject":
        index = _subject_positions(subject_end, len(lengths))
    elif isinstance(positions, str):
        raise InputError(
            "the positions have an unknown name",
            expected="last_prompt, last, last_subject, answer, all, mean or indices",
            got=repr(positions),
        )
    else:
        requested = np.atleast_1d(np.asarray(positions))
        if not np.issubdtype(requested.dtype, np.integer) or requested.ndim > 1:
            raise InputError(
                "the positions are no indices",
                expected="whole numbers that hold for every row, or a name",
                got=repr(positions)[:80],
            )
        requested = requested.astype(np.int64)
        index = np.where(requested < 0, requested + lengths[:, None], requested)
    squeeze = isinstance(positions, str | int)
    index = index.reshape(len(lengths), -1)
    short = ((index < 0) | (index >= lengths[:, None])).any(1)
    if short.any():
        row = int(np.flatnonzero(short)[0])
        raise InputError(
            f"{int(short.sum())} rows lack the requested positions",
            expected=f"positions inside every row ({positions!r})",
            got=f"row {row} with {lengths[row]} tokens, {starts[row]} in its prompt",
        )
    return PositionSelection(index, None if squeeze else np.ones_like(index, dtype=bool), squeeze)


def _subject_positions(ends: Sequence[int] | None, rows: int) -> np.ndarray:
    if ends is None or len(ends) != rows:
        raise InputError(
            "the last subject token is unknown",
            expected=f"subject_end, one index for each of the {rows} rows",
            got="none" if ends is None else f"{len(ends)}",
        )
    return np.asarray(ends, dtype=np.int64)


def _answer_positions(lengths: np.ndarray, starts: np.ndarray) -> PositionSelection:
    """All positions from ``starts``."""
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
