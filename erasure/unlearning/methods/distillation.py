"""Terms of the methods that move towards or away from the logits of a frozen model."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from capture.data.sequences import Padded, Sequences, batches, pad
from capture.network.logits import answer_logits
from capture.network.structure import model_device, random_like
from erasure.unlearning.config import UnlearnConfig
from erasure.unlearning.training.loop import backward_mean, backward_nll, chunk_tokens
from erasure.unlearning.training.objectives import (
    count_scored,
    distillation,
    elm_target,
    prediction_positions,
    undial_target,
)
from erasure.unlearning.training.task import Losses

# Maps a batch to the target logits (token, vocabulary) of its scored tokens.
Target = Callable[[Padded], Tensor]


def distillation_losses(
    model: nn.Module,
    forget: Sequences,
    retain: Sequences,
    novice: Sequences | None,
    config: UnlearnConfig,
    seed: int,
) -> Losses:
    """Both terms of ``config.method``, one of ``DISTILLATION_METHODS``.

    The teacher is a copy of the current ``model``.

    Args:
        model: The model in training.
        forget: Rows to forget.
        retain: Rows to keep.
        novice: For ``elm``: the forget rows about an unknown entity, row by row.
        seed: Seed of the bad teacher's weights.
    """
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    loss_on, weight = config.loss_on, config.forget_weight
    temperature = config.temperature if config.method in ("scrub", "bad_teacher") else 1.0

    def scored_logits(model: nn.Module, batch: Padded) -> Tensor:
        return answer_logits(model, batch, prediction_positions(batch, loss_on)[0])

    def distill(rows: Sequences, target: Target, weight: float) -> float:
        def losses(batch: Padded) -> Tensor:
            with torch.no_grad():
                target_logits = target(batch)
            logits = scored_logits(model, batch)
            return distillation(logits, target_logits, temperature)

        tokens, device = chunk_tokens(model), model_device(model)
        chunks = batches(rows, batch_tokens=tokens, device=device)
        return backward_mean(chunks, losses, count_scored(rows, loss_on), weight)

    def original(batch: Padded) -> Tensor:
        return scored_logits(teacher, batch).float()

    def keep_answers(rows: list[int]) -> float:
        return backward_nll(model, retain[rows], loss_on, config.retain_weight)

    def keep_distribution(rows: list[int]) -> float:
        return distill(retain[rows], original, config.retain_weight)

    if config.method == "undial":

        def without_answer(batch: Padded) -> Tensor:
            tokens = prediction_positions(batch, loss_on)[1]
            return undial_target(original(batch), tokens, config.lowered)

        return Losses(lambda rows: distill(forget[rows], without_answer, weight), keep_answers)
    if config.method == "scrub":

        def keep_both(rows: list[int]) -> float:
            distilled = distill(retain[rows], original, config.distil_weight)
            return config.distil_weight * distilled + keep_answers(rows)

        return Losses(lambda rows: -distill(forget[rows], original, -weight), keep_both)
    if config.method == "bad_teacher":
        bad_teacher = random_like(model, seed).requires_grad_(False)

        def untrained(batch: Padded) -> Tensor:
            return scored_logits(bad_teacher, batch).float()

        return Losses(lambda rows: distill(forget[rows], untrained, weight), keep_distribution)
    assert novice is not None  # checked by the caller

    def forget_elm(rows: list[int]) -> float:
        novice_rows = novice[rows]

        def guided_target(batch: Padded) -> Tensor:
            novice_batch = pad(novice_rows, batch.rows.tolist(), device=batch.input_ids.device)
            return elm_target(original(batch), original(novice_batch), config.guidance)

        return distill(forget[rows], guided_target, weight)

    return Losses(forget_elm, keep_distribution)
