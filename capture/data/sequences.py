"""Token sequences with a marked answer, padding and batching."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evidence.errors import InputError

# Fixed cost of a pass on a CPU, in positions: reading the weights and, in training,
# accumulating their gradients.
PASS_COST = 48


@dataclass(frozen=True, repr=False)
class Sequences:
    """Tokenized prompts with their answers.

    Attributes:
        ids: One tuple of token ids per row: prompt tokens, then answer tokens.
        answer_start: Index of the first answer token of each row; the length of the row if there
            is no answer.

    Examples:
        >>> rows = exhume.Sequences(ids=((5, 6, 7), (5, 8)), answer_start=(2, 1))
        >>> rows
        Sequences(2 rows of 2 to 3 tokens, with answers)
        >>> rows[[1]].ids
        ((5, 8),)
    """

    ids: tuple[tuple[int, ...], ...]
    answer_start: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.answer_start):
            raise InputError(
                "ids and answer_start differ in length",
                expected=str(len(self.ids)),
                got=str(len(self.answer_start)),
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        lengths = [len(ids) for ids in self.ids] or [0]
        pairs = zip(self.ids, self.answer_start, strict=True)
        answers = any(len(ids) > start for ids, start in pairs)
        return (
            f"Sequences({len(self)} rows of {min(lengths)} to {max(lengths)} tokens, "
            f"{'with' if answers else 'without'} answers)"
        )

    def __getitem__(self, rows: Any) -> "Sequences":
        """The given rows, in the given order.

        Args:
            rows: A slice, an index, indices, or a bool for each row; lists, arrays or tensors.

        Raises:
            InputError: a row does not exist, or the rows are given in another way.
        """
        rows = self._row_numbers(rows)
        return Sequences(
            tuple(self.ids[row] for row in rows), tuple(self.answer_start[row] for row in rows)
        )

    def _row_numbers(self, rows: Any) -> list[int]:
        if isinstance(rows, slice):
            return list(range(len(self))[rows])
        chosen = np.asarray(rows)
        if chosen.size == 0:
            return []
        if chosen.dtype == bool and chosen.shape == (len(self),):
            return np.flatnonzero(chosen).tolist()
        whole = np.issubdtype(chosen.dtype, np.integer)
        if (
            not whole
            or chosen.ndim > 1
            or not -len(self) <= chosen.min() <= chosen.max() < len(self)
        ):
            raise InputError(
                "the sequences have no such rows",
                expected=f"a slice, indices under {len(self)}, or {len(self)} bools",
                got=repr(rows)[:80],
            )
        return (np.atleast_1d(chosen) % len(self)).tolist()

    def __add__(self, other: "Sequences") -> "Sequences":
        return Sequences(self.ids + other.ids, self.answer_start + other.answer_start)


@dataclass(frozen=True)
class Padded:
    """A right-padded batch.

    Attributes:
        input_ids: (row, position) token ids, padding included.
        attention_mask: (row, position), 1 on real tokens.
        answer_mask: (row, position), True on answer tokens.
        rows: (row,) index of each row in the ``Sequences`` it came from.
    """

    input_ids: Tensor
    attention_mask: Tensor
    answer_mask: Tensor
    rows: Tensor

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments for a Hugging Face model.

        Position ids are explicit, because models with learned positions do not derive them from
        the mask.
        """
        positions = (self.attention_mask.cumsum(1) - 1).clamp(min=0)
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": positions,
        }


def pad(
    sequences: Sequences, rows: Sequence[int] | None = None, *, device: torch.device | str = "cpu"
) -> Padded:
    """Right-pad ``rows`` of ``sequences`` into one batch.

    The pad id is 0; padded positions are masked, so its value has no effect.
    """
    rows = range(len(sequences)) if rows is None else rows
    if len(rows) == 0:
        raise InputError("there are no rows to pad", expected="one or more")
    chosen = [sequences.ids[row] for row in rows]
    lengths = np.fromiter(map(len, chosen), np.int64, len(chosen))
    positions = np.arange(lengths.max())
    mask = positions < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    # Vectorized: a loop over rows is slower than a GPU's pass over the batch.
    ids[mask] = np.fromiter(chain.from_iterable(chosen), np.int64, lengths.sum())
    starts = np.array([sequences.answer_start[row] for row in rows])
    return Padded(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(mask.astype(np.int64)).to(device),
        torch.from_numpy(mask & (positions >= starts[:, None])).to(device),
        torch.tensor(list(rows), dtype=torch.long),
    )


@dataclass(frozen=True)
class Run:
    """A batch that is run, of ``count`` sequences."""

    batch: Padded
    count: int


RUNNING: ContextVar[Run | None] = ContextVar("running", default=None)
"""What is run, for edits that were opened around the runs of all batches."""


@contextmanager
def running(batch: Padded, sequences: Sequences) -> Iterator[None]:
    """Say which rows of ``sequences`` are run, since batches may hold them in another order."""
    before = RUNNING.set(Run(batch, len(sequences)))
    try:
        yield
    finally:
        RUNNING.reset(before)


def batches(
    sequences: Sequences, *, batch_tokens: int = 4096, device: torch.device | str = "cpu"
) -> Iterator[Padded]:
    """Batches of rows of similar length, with at most ``batch_tokens`` padded positions each.

    Rows are sorted by length, longest first, so that memory peaks at the start; ``Padded.rows``
    holds their original indices. On a CPU, the cuts minimize the total cost of padding and
    passes.
    """
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences.ids[row]))
    lengths = [max(1, len(sequences.ids[row])) for row in order]
    # On other devices, small passes cost as much as full ones: fill every batch.
    cost = PASS_COST if torch.device(device).type == "cpu" else batch_tokens
    if cost == batch_tokens and lengths and lengths[0] * len(lengths) <= batch_tokens:
        yield pad(sequences, order, device=device)
        return
    for start, stop in _cuts(lengths, batch_tokens, cost):
        yield pad(sequences, order[start:stop], device=device)


def _cuts(lengths: list[int], batch_tokens: int, cost: int) -> list[tuple[int, int]]:
    """Optimal slices of descending ``lengths``: positions plus ``cost`` per slice (DP)."""
    count = len(lengths)
    total = np.zeros(count + 1)
    stops = np.zeros(count, dtype=int)
    for start in reversed(range(count)):
        max_rows = min(count - start, max(1, batch_tokens // lengths[start]))
        after = total[start + 1 : start + max_rows + 1]
        costs = lengths[start] * np.arange(1, max_rows + 1) + after
        stops[start] = start + 1 + costs.argmin()
        total[start] = cost + costs.min()
    slices, start = [], 0
    while start < count:
        slices.append((start, int(stops[start])))
        start = slices[-1][1]
    return slices
