"""Unlearning steps kept off the directions that would change what is to stay.

Source: gradient-projected unlearning after "GU" (Lemutisme/geo-unlearning), read as its
public description has it: the forget update keeps only what is orthogonal to the span
of recent retain gradients, and a step that harms the retain loss is shortened.
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
from erasure.unlearning.training.objectives import count_scored
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng


@dataclass(frozen=True)
class GradientProjectionConfig:
    """How steps are taken.

    Attributes:
        step_norm: Norm of a step before projection, over all weights. Steps on the bare
            gradient, which grows as the rows are forgotten, run away.
        steps: Most steps.
        batch_size: Forget rows a step; None for all.
        retain_batch_size: Retain rows a gradient; None for all.
        history: Retain gradients whose span is left alone.
        tolerance: A retain gradient adds a direction if more than this share of it
            lies off the others.
        max_retain_rise: Rise of the retain loss, in nats, that one step may cause on
            the rows of the latest retain gradient.
        max_halvings: How often a step over budget is halved before it is left out.
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
                expected="length > 0, steps and history from 1, tolerance from 0 to 1, "
                "budget and halvings from 0",
                got=repr(self),
            )


def orthonormal_span(gradients: Iterable[Tensor], tolerance: float) -> Tensor:
    """Orthonormal (direction, weight) rows that span the gradients.

    Args:
        gradients: (weight,) each.
        tolerance: Share of a gradient off the earlier ones below which it adds none.
    """
    rows: list[Tensor] = []
    size = 0
    for gradient in gradients:
        size = len(gradient)
        rest = gradient.clone()
        before = rest.norm()
        # Twice: after one pass a nearly dependent gradient is orthogonal to no more
        # than its own rounding.
        for _ in range(2):
            for row in rows:
                rest = rest - (row @ rest) * row
        if rest.norm() > tolerance * before and before > 0:
            rows.append(rest / rest.norm())
    return torch.stack(rows) if rows else torch.zeros(0, size)


def project_out(gradient: Tensor, span: Tensor) -> Tensor:
    """The part of ``gradient`` (weight,) at right angles to the rows of ``span``."""
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
    progress: Progress = SILENT,
) -> TrainLog:
    """Raise the forget loss in steps that leave the retain loss alone to first order.

    Each step takes one more retain gradient, projects the forget gradient off the span
    of the last ``config.history`` of them, and moves along what is left. A step after
    which the retain loss has risen beyond the budget is halved, and in the end left
    out.

    Args:
        model: A causal language model; changed in place.
        forget: Rows to forget, with their true answers.
        retain: Rows to keep.
        config: Settings.
        seed: Fixes the order of rows.
        progress: Where progress is shown.

    Returns:
        A row a step: ``forget_loss`` and ``retain_loss`` before it, ``kept`` (share of
        the forget gradient's norm that the projection leaves), ``scale`` of the step
        taken (0 where it was left out), and ``rise`` of the retain loss by it.

    Raises:
        InputError: there are no rows to forget or to keep.
    """
    for rows, name in ((forget, "forget"), (retain, "retain")):
        if len(rows) == 0:
            raise InputError(f"there are no {name} rows", expected="one or more")
        count_scored(rows, config.loss_on)
    order = shuffled_batches(len(forget), config.batch_size, numpy_rng(seed, "forget"))
    keep = shuffled_batches(
        len(retain), config.retain_batch_size, numpy_rng(seed, "retain")
    )
    found: list[dict[str, float]] = []
    history: deque[Tensor] = deque(maxlen=config.history)
    with only_training(model, model.parameters()) as weights:

        def slope(rows: Sequences) -> tuple[float, Tensor]:
            for weight in weights:
                weight.grad = None
            loss = backward_nll(model, rows, config.loss_on, 1.0)
            return loss, _flat_gradient(weights)

        with progress.task("geometric ascent", config.steps) as advance:
            for step in range(config.steps):
                kept_rows = retain[next(keep)]
                retain_loss, gradient = slope(kept_rows)
                # The newest first: where gradients depend on each other, it counts.
                history.appendleft(gradient)
                forget_loss, upward = slope(forget[next(order)])
                off = project_out(upward, orthonormal_span(history, config.tolerance))
                size = float(upward.norm())
                move = off * (config.step_norm / size if size > 0 else 0.0)
                scale, rise = 1.0, float("inf")
                before = [weight.detach().clone() for weight in weights]
                for _ in range(config.max_halvings + 1):
                    _move_(weights, before, scale * move)
                    rise = mean_nll(model, kept_rows, config.loss_on) - retain_loss
                    if rise <= config.max_retain_rise:
                        break
                    scale /= 2
                else:
                    _move_(weights, before, torch.zeros_like(move))
                    scale, rise = 0.0, 0.0
                found.append(
                    {
                        "step": float(step + 1),
                        "forget_loss": forget_loss,
                        "retain_loss": retain_loss,
                        "kept": float(off.norm()) / size if size > 0 else 0.0,
                        "scale": scale,
                        "rise": rise,
                    }
                )
                advance(1)
    return TrainLog(tuple(found))


def _flat_gradient(weights: list[nn.Parameter]) -> Tensor:
    parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    return torch.cat([part.detach().flatten() for part in parts])


def _move_(weights: list[nn.Parameter], start: list[Tensor], by: Tensor) -> None:
    parts = by.split([len(weight.view(-1)) for weight in weights])
    with torch.no_grad():
        for weight, before, part in zip(weights, start, parts, strict=True):
            weight.copy_(before + part.view_as(before))
