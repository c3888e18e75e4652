"""Token sequences with a marked answer: what scoring, training and capture share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from evidence.errors import InputError

# What a pass on a CPU costs beside its positions, in positions: the weights are read
# once, and in training their gradients are added up once.
PASS_COST = 48


@dataclass(frozen=True)
class Sequences:
    """Tokenised prompts, each with the answer that follows it.

    Attributes:
        ids: One tuple of token ids a row: prompt tokens, then answer tokens.
        answer_start: Index of the first answer token of each row; the length of the
            row where there is no answer.
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

    def __getitem__(self, rows: Sequence[int]) -> "Sequences":
        """The rows asked for, in the order asked for."""
        return Sequences(
            tuple(self.ids[row] for row in rows),
            tuple(self.answer_start[row] for row in rows),
        )

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

        Position ids are explicit: models with learned positions do not derive them
        from the mask.
        """
        positions = (self.attention_mask.cumsum(1) - 1).clamp(min=0)
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": positions,
        }


def pad(
    sequences: Sequences,
    rows: Sequence[int] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Padded:
    """Right-pad ``rows`` of ``sequences`` into one batch.

    The pad id is 0: padded positions are masked, so its value is never read.
    """
    rows = range(len(sequences)) if rows is None else rows
    if len(rows) == 0:
        raise InputError("there are no rows to pad", expected="one or more")
    chosen = [sequences.ids[row] for row in rows]
    lengths = np.fromiter(map(len, chosen), np.int64, len(chosen))
    places = np.arange(lengths.max())
    real = places < lengths[:, None]
    ids = np.zeros(real.shape, np.int64)
    # All at once: row by row this is slower than a GPU's pass over the batch.
    ids[real] = np.fromiter(chain.from_iterable(chosen), np.int64, lengths.sum())
    starts = np.array([sequences.answer_start[row] for row in rows])
    return Padded(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(real.astype(np.int64)).to(device),
        torch.from_numpy(real & (places >= starts[:, None])).to(device),
        torch.tensor(list(rows), dtype=torch.long),
    )


def batches(
    sequences: Sequences,
    *,
    batch_tokens: int = 4096,
    device: torch.device | str = "cpu",
) -> Iterator[Padded]:
    """Batches of similar length, at most ``batch_tokens`` padded positions each.

    Rows are sorted by length, longest first, so that memory peaks at once;
    ``Padded.rows`` says where each row belongs. They are cut where the least is
    computed in all, padding and the passes themselves counted.
    """
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences.ids[row]))
    lengths = [max(1, len(sequences.ids[row])) for row in order]
    # Elsewhere a small pass is as slow as a full one, and only the budget cuts.
    cost = PASS_COST if torch.device(device).type == "cpu" else batch_tokens
    if cost == batch_tokens and lengths and lengths[0] * len(lengths) <= batch_tokens:
        yield pad(sequences, order, device=device)
        return
    for start, stop in _cuts(lengths, batch_tokens, cost):
        yield pad(sequences, order[start:stop], device=device)


def _cuts(lengths: list[int], tokens: int, cost: int) -> list[tuple[int, int]]:
    """Slices of falling ``lengths`` with the least positions and ``cost`` a slice."""
    count = len(lengths)
    total = np.zeros(count + 1)
    stops = np.zeros(count, dtype=int)
    for start in reversed(range(count)):
        most = min(count - start, max(1, tokens // lengths[start]))
        after = total[start + 1 : start + most + 1]
        costs = lengths[start] * np.arange(1, most + 1) + after
        stops[start] = start + 1 + costs.argmin()
        total[start] = cost + costs.min()
    found, start = [], 0
    while start < count:
        found.append((start, int(stops[start])))
        start = found[-1][1]
    return found
