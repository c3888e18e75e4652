"""Linear readers of answers at every block, to train models against."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.data.sequences import Sequences, batches, pad
from capture.network.hooks import record_places
from capture.network.sites import Place
from capture.network.structure import find_blocks, model_device
from erasure.unlearning.training.loop import CHUNK_TOKENS

# Penalty of a reader, relative to the mean variance of the states.
RIDGE = 0.03


@dataclass(frozen=True)
class BlockProbes:
    """One ridge regression a block from states to indicators of the answers.

    Attributes:
        answers: (answer,) token ids, rising.
        means: Per block (width,), the mean state.
        weights: Per block (width, answer).
        priors: (answer,), share of the rows with each answer.
        variance: Mean square of the centred indicators: the score of finding nothing.
    """

    answers: Tensor
    means: Sequence[Tensor]
    weights: Sequence[Tensor]
    priors: Tensor
    variance: float

    def targets(self, rows: Sequences) -> Tensor:
        """Centred indicators of the rows' answers, (row, answer)."""
        return (
            _first_answer_tokens(rows)[:, None] == self.answers
        ).float() - self.priors


def fit_block_probes(model: nn.Module, rows: Sequences) -> BlockProbes:
    """Readers fitted on the states of ``rows`` where their answers begin."""
    found: list[list[Tensor]] = []
    places: list[int] = []
    with torch.no_grad():
        for batch in batches(
            rows, batch_tokens=CHUNK_TOKENS, device=model_device(model)
        ):
            chosen = batch.rows.tolist()
            places += chosen
            found.append(answer_states(model, rows[chosen]))
    answers = _first_answer_tokens(rows).unique()
    labels = (_first_answer_tokens(rows[places])[:, None] == answers).double()
    priors = labels.mean(0)
    means, maps = [], []
    for block in range(len(found[0])):
        seen = torch.cat([part[block] for part in found]).double().cpu()
        mean = seen.mean(0)
        seen = seen - mean
        second = seen.T @ seen / len(seen)
        second += RIDGE * second.diagonal().mean() * torch.eye(len(second))
        solved = torch.linalg.solve(second, seen.T @ (labels - priors) / len(seen))
        means.append(mean.float())
        maps.append(solved.float())
    spread = float((labels - priors).square().mean())
    return BlockProbes(answers, means, maps, priors.float(), spread)


def probe_scores(readers: BlockProbes, seen: Sequence[Tensor]) -> list[Tensor]:
    """What each block's reader makes of its states, (row, answer); 0 is the average."""
    return [
        (state.float() - mean.to(state.device)) @ matrix.to(state.device)
        for state, mean, matrix in zip(
            seen, readers.means, readers.weights, strict=True
        )
    ]


def probe_accuracy(
    readers: BlockProbes, model: nn.Module, rows: Sequences
) -> list[float]:
    """Share of the rows whose answer scores highest, by block."""
    with torch.no_grad():
        every = probe_scores(readers, answer_states(model, rows))
    truth = _first_answer_tokens(rows)
    return [
        float((readers.answers[each.argmax(1).cpu()] == truth).float().mean())
        for each in every
    ]


def answer_states(model: nn.Module, rows: Sequences) -> list[Tensor]:
    """Each block's output where the rows' answers begin, (row, width)."""
    blocks = find_blocks(model)
    places = [Place(str(layer), block, "out") for layer, block in enumerate(blocks)]
    batch = pad(rows, device=model_device(model))
    with record_places(places) as seen:
        model(**batch.model_inputs, use_cache=False)
    last = torch.tensor(rows.answer_start, device=batch.input_ids.device) - 1
    each = torch.arange(len(rows), device=last.device)
    return [seen[place.name][each, last] for place in places]


def _first_answer_tokens(rows: Sequences) -> Tensor:
    return torch.tensor(
        [ids[start] for ids, start in zip(rows.ids, rows.answer_start, strict=True)]
    )
