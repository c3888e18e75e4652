"""Terms of the methods that follow, or flee, the logits of a frozen model."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from capture.data.sequences import Padded, Sequences, batches, pad
from capture.network.logits import answer_logits
from capture.network.structure import random_like
from erasure.unlearning.training.config import UnlearnConfig
from erasure.unlearning.training.loop import (
    backward_nll,
    chunk_tokens,
    device_of,
)
from erasure.unlearning.training.objectives import (
    count_scored,
    distillation,
    elm_target,
    prediction_positions,
    undial_target,
)
from erasure.unlearning.training.task import Losses

# Logits to follow, (token, vocabulary), for a batch of the rows it is made from.
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

    The teacher is a copy of ``model`` as it is now.

    Args:
        model: In training.
        forget: Rows to forget.
        retain: Rows to keep.
        novice: For ``elm``: as ``forget``, about somebody unknown, row by row.
        config: Method and settings.
        seed: Of the weights of the bad teacher.
    """
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    loss_on, weight = config.loss_on, config.forget_weight
    heat = config.temperature if config.method in ("scrub", "bad_teacher") else 1.0

    def follow(rows: Sequences, target: Target, weight: float) -> float:
        total, loss = count_scored(rows, loss_on), 0.0
        for batch in batches(
            rows, batch_tokens=chunk_tokens(model), device=device_of(model)
        ):
            with torch.no_grad():
                wanted = target(batch)
            logits = answer_logits(
                model, batch, prediction_positions(batch, loss_on)[0]
            )
            part = distillation(logits, wanted, heat).sum() / total
            (weight * part).backward()
            loss += float(part.detach())
        return loss

    def original(batch: Padded) -> Tensor:
        return answer_logits(
            teacher, batch, prediction_positions(batch, loss_on)[0]
        ).float()

    def keep_answers(rows: list[int]) -> float:
        return backward_nll(model, retain[rows], loss_on, config.retain_weight)

    def keep_distribution(rows: list[int]) -> float:
        return follow(retain[rows], original, config.retain_weight)

    if config.method == "undial":

        def without_answer(batch: Padded) -> Tensor:
            tokens = prediction_positions(batch, loss_on)[1]
            return undial_target(original(batch), tokens, config.lowered)

        return Losses(
            lambda rows: follow(forget[rows], without_answer, weight), keep_answers
        )
    if config.method == "scrub":

        def keep_both(rows: list[int]) -> float:
            kept = follow(retain[rows], original, config.distil_weight)
            return config.distil_weight * kept + keep_answers(rows)

        return Losses(lambda rows: -follow(forget[rows], original, -weight), keep_both)
    if config.method == "bad_teacher":
        ignorant = random_like(model, seed).requires_grad_(False)

        def nothing(batch: Padded) -> Tensor:
            return answer_logits(
                ignorant, batch, prediction_positions(batch, loss_on)[0]
            ).float()

        return Losses(
            lambda rows: follow(forget[rows], nothing, weight), keep_distribution
        )
    assert novice is not None  # checked by the caller

    def forget_elm(rows: list[int]) -> float:
        asked = novice[rows]

        def unknown(batch: Padded) -> Tensor:
            other = pad(asked, batch.rows.tolist(), device=batch.input_ids.device)
            return elm_target(original(batch), original(other), config.guidance)

        return follow(forget[rows], unknown, weight)

    return Losses(forget_elm, keep_distribution)
