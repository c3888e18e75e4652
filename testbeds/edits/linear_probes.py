"""Linear probes of answers at every block, as adversaries to train models against."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.data.sequences import Sequences, batches, pad
from capture.network.hooks import record_places
from capture.network.sites import Place
from capture.network.structure import find_blocks, model_device
from erasure.unlearning.training.loop import CHUNK_TOKENS
from testbeds.edits.late_layers import first_answer_tokens

# Ridge penalty of a probe, relative to the mean variance of the states.
RIDGE = 0.03


@dataclass(frozen=True)
class BlockProbes:
    """One ridge regression a block, from states to indicators of the answers.

    Attributes:
        answers: (answer,) token ids, ascending.
        means: For each block (width,), the mean state.
        weights: For each block (width, answer).
        priors: (answer,), share of the rows with each answer.
        variance: Mean square of the centered indicators: the loss of predicting the priors.
    """

    answers: Tensor
    means: Sequence[Tensor]
    weights: Sequence[Tensor]
    priors: Tensor
    variance: float

    def targets(self, rows: Sequences) -> Tensor:
        """Centered indicators of the rows' answers, (row, answer)."""
        return (first_answer_tokens(rows)[:, None] == self.answers).float() - self.priors


def fit_block_probes(model: nn.Module, rows: Sequences) -> BlockProbes:
    """Fit probes on the states of ``rows`` where their answers begin."""
    batch_states: list[list[Tensor]] = []
    row_order: list[int] = []
    with torch.no_grad():
        for batch in batches(rows, batch_tokens=CHUNK_TOKENS, device=model_device(model)):
            chosen = batch.rows.tolist()
            row_order += chosen
            batch_states.append(answer_states(model, rows[chosen]))
    answers = first_answer_tokens(rows).unique()
    labels = (first_answer_tokens(rows[row_order])[:, None] == answers).double()
    priors = labels.mean(0)
    means, all_weights = [], []
    for block in range(len(batch_states[0])):
        block_states = torch.cat([part[block] for part in batch_states]).double().cpu()
        mean = block_states.mean(0)
        block_states = block_states - mean
        covariance = block_states.T @ block_states / len(block_states)
        covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance))
        weights = torch.linalg.solve(
            covariance, block_states.T @ (labels - priors) / len(block_states)
        )
        means.append(mean.float())
        all_weights.append(weights.float())
    spread = float((labels - priors).square().mean())
    return BlockProbes(answers, means, all_weights, priors.float(), spread)


def probe_scores(probes: BlockProbes, block_states: Sequence[Tensor]) -> list[Tensor]:
    """Each block's predictions, (row, answer); 0 is the prior."""
    return [
        (state.float() - mean.to(state.device)) @ matrix.to(state.device)
        for state, mean, matrix in zip(block_states, probes.means, probes.weights, strict=True)
    ]


def probe_accuracy(probes: BlockProbes, model: nn.Module, rows: Sequences) -> list[float]:
    """Share of the rows whose answer scores highest, for each block."""
    with torch.no_grad():
        block_scores = probe_scores(probes, answer_states(model, rows))
    true_tokens = first_answer_tokens(rows)
    return [
        float((probes.answers[scores.argmax(1).cpu()] == true_tokens).float().mean())
        for scores in block_scores
    ]


def answer_states(model: nn.Module, rows: Sequences) -> list[Tensor]:
    """Each block's output where the rows' answers begin, (row, width)."""
    blocks = find_blocks(model)
    places = [Place(str(layer), block, "out") for layer, block in enumerate(blocks)]
    batch = pad(rows, device=model_device(model))
    with record_places(places) as captured:
        model(**batch.model_inputs, use_cache=False)
    last = torch.tensor(rows.answer_start, device=batch.input_ids.device) - 1
    row_idx = torch.arange(len(rows), device=last.device)
    return [captured[place.name][row_idx, last] for place in places]
