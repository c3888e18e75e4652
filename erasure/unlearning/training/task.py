"""The forget and the retain term of each method, ready to be trained on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.activations.hidden_states import module_output
from capture.data.sequences import Padded, Sequences, batches, pad
from erasure.unlearning.training.config import RETAIN_ONLY_METHODS, UnlearnConfig
from erasure.unlearning.training.loop import (
    backward_nll,
    chunk_tokens,
    device_of,
)
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
    """Each adds its weighted gradient for the given rows and returns the plain loss.

    ``forget`` is None where a method never reads the forget rows.
    """

    forget: Callable[[list[int]], float] | None
    retain: Callable[[list[int]], float]


def likelihood_losses(
    model: nn.Module, target: Sequences, retain: Sequences, config: UnlearnConfig
) -> Losses:
    """The terms of the methods that act on answer likelihoods."""
    loss_on = config.loss_on

    def keep(rows: list[int]) -> float:
        return backward_nll(model, retain[rows], loss_on, config.retain_weight)

    if config.method in RETAIN_ONLY_METHODS:
        return Losses(None, keep)
    if config.method in ("npo", "simnpo"):
        simple = config.method == "simnpo"
        reference = torch.zeros(len(target))
        if not simple:
            reference = frozen_logprobs(model, target, loss_on)

        def forget_npo(rows: list[int]) -> float:
            chosen, total = target[rows], 0.0
            before = reference[rows]
            for batch in _chunks(model, chosen):
                now = sequence_logprobs(model, batch, loss_on)
                if simple:
                    length = prediction_positions(batch, loss_on)[0].sum(1)
                    each = simnpo(now, length, config.beta, config.margin)
                else:
                    each = npo(now, before[batch.rows].to(now.device), config.beta)
                part = each.sum() / len(rows)
                (config.forget_weight * part).backward()
                total += float(part.detach())
            return total

        return Losses(forget_npo, keep)

    sign = -1.0 if config.method in ("grad_ascent", "grad_diff") else 1.0

    def forget(rows: list[int]) -> float:
        weight = sign * config.forget_weight
        return sign * backward_nll(model, target[rows], loss_on, weight)

    return Losses(forget, keep)


def preference_losses(
    model: nn.Module,
    target: Sequences,
    preferred: Sequences,
    retain: Sequences,
    config: UnlearnConfig,
) -> Losses:
    """Prefer another answer to the true one, row by row; keep the rest."""
    loss_on = config.loss_on
    before = [frozen_logprobs(model, rows, loss_on) for rows in (preferred, target)]

    def forget(rows: list[int]) -> float:
        total = 0.0
        for batch in _chunks(model, target[rows]):
            places = batch.rows.tolist()
            other = pad(preferred[rows], places, device=batch.input_ids.device)
            gains = [
                sequence_logprobs(model, one, loss_on)
                - frozen[rows][places].to(batch.input_ids.device)
                for one, frozen in zip((other, batch), before, strict=True)
            ]
            part = dpo(gains[0], gains[1], config.beta).sum() / len(rows)
            (config.forget_weight * part).backward()
            total += float(part.detach())
        return total

    def keep(rows: list[int]) -> float:
        return backward_nll(model, retain[rows], loss_on, config.retain_weight)

    return Losses(forget, keep)


def frozen_logprobs(model: nn.Module, data: Sequences, loss_on: str) -> Tensor:
    """Log-probability of every row under the model as it is now, (row,), nats."""
    found = torch.zeros(len(data))
    with torch.no_grad():
        for batch in _chunks(model, data):
            found[batch.rows] = sequence_logprobs(model, batch, loss_on).cpu()
    return found


def rmu_losses(
    model: nn.Module,
    block: nn.Module,
    target: Sequences,
    retain: Sequences,
    config: UnlearnConfig,
    seed: int,
) -> Losses:
    """Push forget states to the control vector, hold retain states where they were."""
    before: dict[int, Tensor] = {}
    with torch.no_grad():
        first = pad(target, [0], device=device_of(model))
        width = module_output(model, block, first).shape[-1]
        for batch in _chunks(model, retain) if config.retain_weight > 0 else ():
            states = module_output(model, block, batch).float()
            for place, row in enumerate(batch.rows.tolist()):
                before[row] = states[place, : len(retain.ids[row])].clone()
    control = control_vector(
        width, config.rmu_coefficient, torch_rng(seed, "control vector")
    ).to(device_of(model))

    def forget(rows: list[int]) -> float:
        total = 0.0
        for batch in _chunks(model, target[rows]):
            states = module_output(model, block, batch)
            part = state_distance(states, control, batch.attention_mask).sum()
            part = part / len(rows)
            (config.forget_weight * part).backward()
            total += float(part.detach())
        return total

    def keep(rows: list[int]) -> float:
        total = 0.0
        for batch in _chunks(model, retain[rows]):
            states = module_output(model, block, batch)
            frozen = nn.utils.rnn.pad_sequence(
                [before[rows[row]] for row in batch.rows.tolist()], batch_first=True
            )
            part = state_distance(states, frozen, batch.attention_mask).sum()
            part = part / len(rows)
            (config.retain_weight * part).backward()
            total += float(part.detach())
        return total

    return Losses(forget, keep)


def _chunks(model: nn.Module, data: Sequences) -> Iterator[Padded]:
    return batches(data, batch_tokens=chunk_tokens(model), device=device_of(model))
