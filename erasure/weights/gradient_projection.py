"""Gradient-projected unlearning (GU): ascent steps orthogonal to recent retain gradients.

Source: after "GU" (Lemutisme/geo-unlearning), from its public description: the forget update is
projected onto the orthogonal complement of the span of recent retain gradients, and a step that
harms the retain loss is shortened.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.data.sequences import Sequences
from erasure.unlearning.training.loop import (
    TrainLog,
    backward_nll,
    mean_nll,
    only_training,
    shuffled_batches,
)
from erasure.unlearning.training.objectives import check_rows
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import numpy_rng


@dataclass(frozen=True)
class GradientProjectionConfig:
    """Settings of ``projected_ascent_``.

    Attributes:
        step_norm: Norm of a step over all weights, before projection. The forget gradient grows as
            the rows are forgotten, so steps of fixed rate would diverge.
        steps: Maximum number of steps.
        batch_size: Forget rows per step; None for all.
        retain_batch_size: Retain rows per gradient; None for all.
        history: Number of retain gradients that are projected out.
        tolerance: A retain gradient adds a direction if more than this share of it is orthogonal to
            the others.
        max_retain_rise: Rise of the retain loss, in nats, that one step may cause on the rows of
            the latest retain gradient.
        max_halvings: Number of times such a step is halved before it is skipped.
        loss_on: ``"answer"`` or ``"all"`` tokens.
    """

    step_norm: float = 0.1
    steps: int = 20
    batch_size: int | None = None
    retain_batch_size: int | None = None
    history: int = 8
    tolerance: float = 1e-6
    max_retain_rise: float = 1e-4
    max_halvings: int = 5
    loss_on: str = "answer"

    def __post_init__(self) -> None:
        good = (
            self.step_norm > 0
            and min(self.steps, self.history) >= 1
            and 0 <= self.tolerance < 1
            and min(self.max_retain_rise, self.max_halvings) >= 0
        )
        if not good:
            raise InputError(
                "a setting is out of range",
                expected="step_norm > 0, steps and history from 1, tolerance from 0 to 1, "
                "max_retain_rise and max_halvings from 0",
                got=repr(self),
            )


def orthonormal_span(gradients: Iterable[Tensor], tolerance: float) -> Tensor:
    """Orthonormal (direction, weight) basis of the gradients, by Gram-Schmidt.

    Args:
        gradients: (weight,) each.
        tolerance: Smallest relative remainder that adds a direction.
    """
    rows: list[Tensor] = []
    size = 0
    for gradient in gradients:
        size = len(gradient)
        residual = gradient.clone()
        norm = residual.norm()
        # Twice is enough: one pass leaves rounding errors relative to the gradient.
        for _ in range(2):
            for row in rows:
                residual = residual - (row @ residual) * row
        if residual.norm() > tolerance * norm and norm > 0:
            rows.append(residual / residual.norm())
    return torch.stack(rows) if rows else torch.zeros(0, size)


def project_out(gradient: Tensor, span: Tensor) -> Tensor:
    """The part of ``gradient`` (weight,) orthogonal to the rows of ``span``."""
    span = span.to(gradient)
    for _ in range(2):
        gradient = gradient - span.T @ (span @ gradient)
    return gradient


def projected_ascent_(
    model: nn.Module,
    forget: Sequences,
    retain: Sequences,
    config: GradientProjectionConfig,
    *,
    seed: int,
    progress: Progress = AUTO,
) -> TrainLog:
    """Gradient ascent on the forget loss that keeps the retain loss to first order, in place.

    Each step computes one more retain gradient, projects the forget gradient onto the orthogonal
    complement of the last ``config.history`` retain gradients, and moves along the result. A step
    that raises the retain loss too much is halved, and finally skipped.

    Args:
        model: A causal language model; changed in place.
        forget: Rows to forget, with their true answers.
        retain: Rows to keep.
        seed: Seed of the order of rows.

    Returns:
        One row per step: ``forget_loss`` and ``retain_loss`` before it, ``kept`` (share of the
            forget gradient's norm that remains after projection), ``scale`` of the step (0 if
            skipped), and ``rise`` of the retain loss.

    Raises:
        InputError: There are no rows to forget or to keep.
    """
    check_rows(config.loss_on, forget=forget, retain=retain)
    forget_batches = shuffled_batches(len(forget), config.batch_size, numpy_rng(seed, "forget"))
    retain_batches = shuffled_batches(
        len(retain), config.retain_batch_size, numpy_rng(seed, "retain")
    )
    log: list[dict[str, float]] = []
    history: deque[Tensor] = deque(maxlen=config.history)
    with only_training(model, model.parameters()) as weights:

        def loss_and_gradient(rows: Sequences) -> tuple[float, Tensor]:
            for weight in weights:
                weight.grad = None
            loss = backward_nll(model, rows, config.loss_on, 1.0)
            return loss, _flat_gradient(weights)

        with as_progress(progress).task("geometric ascent", config.steps) as advance:
            for step in range(config.steps):
                retain_rows = retain[next(retain_batches)]
                retain_loss, gradient = loss_and_gradient(retain_rows)
                # Newest first: of dependent gradients the first determines the span.
                history.appendleft(gradient)
                forget_loss, forget_gradient = loss_and_gradient(forget[next(forget_batches)])
                projected = project_out(
                    forget_gradient, orthonormal_span(history, config.tolerance)
                )
                size = float(forget_gradient.norm())
                step_vector = projected * (config.step_norm / size if size > 0 else 0.0)
                scale, rise = 1.0, float("inf")
                before = [weight.detach().clone() for weight in weights]
                for _ in range(config.max_halvings + 1):
                    _move_(weights, before, scale * step_vector)
                    rise = mean_nll(model, retain_rows, config.loss_on) - retain_loss
                    if rise <= config.max_retain_rise:
                        break
                    scale /= 2
                else:
                    _move_(weights, before, torch.zeros_like(step_vector))
                    scale, rise = 0.0, 0.0
                log.append(
                    {
                        "step": float(step + 1),
                        "forget_loss": forget_loss,
                        "retain_loss": retain_loss,
                        "kept": float(projected.norm()) / size if size > 0 else 0.0,
                        "scale": scale,
                        "rise": rise,
                    }
                )
                advance(1)
    return TrainLog(tuple(log))


def _flat_gradient(weights: list[nn.Parameter]) -> Tensor:
    parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    return torch.cat([part.detach().flatten() for part in parts])


def _move_(weights: list[nn.Parameter], start: list[Tensor], change: Tensor) -> None:
    parts = change.split([len(weight.view(-1)) for weight in weights])
    with torch.no_grad():
        for weight, before, part in zip(weights, start, parts, strict=True):
            weight.copy_(before + part.view_as(before))
