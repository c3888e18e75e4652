"""Forget and retain terms of each method."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.activations.hidden_states import module_output
from capture.data.sequences import Padded, Sequences, batches, pad
from capture.network.structure import model_device
from erasure.unlearning.config import RETAIN_ONLY_METHODS, UnlearnConfig
from erasure.unlearning.training.loop import backward_mean, backward_nll, chunk_tokens
from erasure.unlearning.training.objectives import (
    control_vector,
    dpo,
    npo,
    prediction_positions,
    sequence_logprobs,
    simnpo,
    state_distance,
)
from evidence.seeds import torch_rng


@dataclass(frozen=True)
class Losses:
    """Forget and retain terms of a method.

    Each adds its weighted gradient for some rows and returns the unweighted loss. ``forget`` is
    None if the method never reads the forget rows.
    """

    forget: Callable[[list[int]], float] | None
    retain: Callable[[list[int]], float]


def likelihood_losses(
    model: nn.Module, target: Sequences, retain: Sequences, config: UnlearnConfig
) -> Losses:
    """Terms of the methods that act on answer likelihoods."""
    loss_on = config.loss_on

    def retain_term(rows: list[int]) -> float:
        return backward_nll(model, retain[rows], loss_on, config.retain_weight)

    if config.method in RETAIN_ONLY_METHODS:
        return Losses(None, retain_term)
    if config.method in ("npo", "simnpo"):
        is_simnpo = config.method == "simnpo"
        reference = torch.zeros(len(target))
        if not is_simnpo:
            reference = frozen_logprobs(model, target, loss_on)

        def forget_npo(rows: list[int]) -> float:
            frozen = reference[rows]

            def losses(batch: Padded) -> Tensor:
                logprobs = sequence_logprobs(model, batch, loss_on)
                if is_simnpo:
                    length = prediction_positions(batch, loss_on)[0].sum(1)
                    return simnpo(logprobs, length, config.beta, config.margin)
                before = frozen[batch.rows].to(logprobs.device)
                return npo(logprobs, before, config.beta)

            chunks = _chunks(model, target[rows])
            return backward_mean(chunks, losses, len(rows), config.forget_weight)

        return Losses(forget_npo, retain_term)

    sign = -1.0 if config.method in ("grad_ascent", "grad_diff") else 1.0

    def forget_term(rows: list[int]) -> float:
        weight = sign * config.forget_weight
        return sign * backward_nll(model, target[rows], loss_on, weight)

    return Losses(forget_term, retain_term)


def preference_losses(
    model: nn.Module,
    target: Sequences,
    preferred: Sequences,
    retain: Sequences,
    config: UnlearnConfig,
) -> Losses:
    """DPO: prefer another answer to the true one, row by row; keep the retain rows."""
    loss_on = config.loss_on
    reference = [frozen_logprobs(model, rows, loss_on) for rows in (preferred, target)]

    def forget_term(rows: list[int]) -> float:
        def losses(batch: Padded) -> Tensor:
            device, in_batch = batch.input_ids.device, batch.rows.tolist()
            pair = pad(preferred[rows], in_batch, device=device), batch
            gains = [
                sequence_logprobs(model, one, loss_on) - frozen[rows][in_batch].to(device)
                for one, frozen in zip(pair, reference, strict=True)
            ]
            return dpo(gains[0], gains[1], config.beta)

        chunks = _chunks(model, target[rows])
        return backward_mean(chunks, losses, len(rows), config.forget_weight)

    def retain_term(rows: list[int]) -> float:
        return backward_nll(model, retain[rows], loss_on, config.retain_weight)

    return Losses(forget_term, retain_term)


def frozen_logprobs(model: nn.Module, data: Sequences, loss_on: str) -> Tensor:
    """(row,) log-probability of every row under the current model, nats."""
    logprobs = torch.zeros(len(data))
    with torch.no_grad():
        for batch in _chunks(model, data):
            logprobs[batch.rows] = sequence_logprobs(model, batch, loss_on).cpu()
    return logprobs


def rmu_losses(
    model: nn.Module,
    block: nn.Module,
    target: Sequences,
    retain: Sequences,
    config: UnlearnConfig,
    seed: int,
) -> Losses:
    """RMU: move forget states to the control vector and keep retain states."""
    frozen_states: dict[int, Tensor] = {}
    with torch.no_grad():
        first = pad(target, [0], device=model_device(model))
        width = module_output(model, block, first).shape[-1]
        for batch in _chunks(model, retain) if config.retain_weight > 0 else ():
            states = module_output(model, block, batch).float()
            for state, row in zip(states, batch.rows.tolist(), strict=True):
                frozen_states[row] = state[: len(retain.ids[row])].clone()
    control = control_vector(width, config.rmu_coefficient, torch_rng(seed, "control vector")).to(
        model_device(model)
    )

    def forget_term(rows: list[int]) -> float:
        def losses(batch: Padded) -> Tensor:
            states = module_output(model, block, batch)
            return state_distance(states, control, batch.attention_mask)

        chunks = _chunks(model, target[rows])
        return backward_mean(chunks, losses, len(rows), config.forget_weight)

    def retain_term(rows: list[int]) -> float:
        def losses(batch: Padded) -> Tensor:
            states = module_output(model, block, batch)
            frozen = nn.utils.rnn.pad_sequence(
                [frozen_states[rows[row]] for row in batch.rows.tolist()], batch_first=True
            )
            return state_distance(states, frozen, batch.attention_mask)

        chunks = _chunks(model, retain[rows])
        return backward_mean(chunks, losses, len(rows), config.retain_weight)

    return Losses(forget_term, retain_term)


def _chunks(model: nn.Module, data: Sequences) -> Iterator[Padded]:
    return batches(data, batch_tokens=chunk_tokens(model), device=model_device(model))
