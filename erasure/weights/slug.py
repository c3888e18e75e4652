"""One gradient, one layer: a single step on one matrix, chosen and measured.

Source: SLUG (CSIPlab/SLUG), as its public code has it: importance of a layer is the
norm of its forget gradient over the norm of its weights, alignment the absolute cosine
of its forget and retain gradients; layers on the Pareto front of the two are tried,
with a step found by bisection.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.data.sequences import Sequences
from capture.network.structure import find_blocks
from erasure.unlearning.training.loop import (
    backward_nll,
    mean_nll,
    only_training,
)
from erasure.unlearning.training.objectives import count_scored
from evidence.errors import InputError


@dataclass(frozen=True)
class LayerScore:
    """How one matrix takes part.

    Attributes:
        name: The parameter's name.
        importance: Norm of the forget gradient over that of the weights.
        alignment: |cosine| of forget and retain gradient, 0 to 1.
    """

    name: str
    importance: float
    alignment: float


@dataclass(frozen=True)
class SlugEdit:
    """The edit that was made.

    Attributes:
        layer: The matrix that was moved.
        step: How far along its forget gradient.
        forget_loss: Mean loss on the forget rows afterwards, in nats a token.
        retain_loss: The same on the retain rows.
        retain_losses: Retain loss of each layer on the front that reached the goal.
        pareto_front: The layers that were tried.
    """

    layer: str
    step: float
    forget_loss: float
    retain_loss: float
    retain_losses: dict[str, float]
    pareto_front: tuple[LayerScore, ...]


def pareto_front(scores: list[LayerScore]) -> list[LayerScore]:
    """Those than which no other is at least as important and aligned as little.

    Of equals all are kept. In falling order of importance.
    """
    front = [
        one
        for one in scores
        if not any(
            other.importance >= one.importance
            and other.alignment <= one.alignment
            and (other.importance > one.importance or other.alignment < one.alignment)
            for other in scores
        )
    ]
    return sorted(front, key=lambda each: (-each.importance, each.name))


def slug_(
    model: nn.Module,
    forget: Sequences,
    retain: Sequences,
    *,
    target_loss: float,
    max_doublings: int = 20,
    n_bisections: int = 12,
    loss_on: str = "answer",
) -> SlugEdit:
    """Move one matrix along its forget gradient until the forget loss is ``target_loss``.

    Gradients are taken once. Of the layers on the Pareto front each is moved as little
    as brings the loss to the goal, found by doubling from a tenth of the ratio of
    norms and halving the last interval; the one with the lowest retain loss stays.

    Args:
        model: A causal language model; changed in place.
        forget: Rows to forget, with their true answers.
        retain: Rows to keep.
        target_loss: Mean loss on the forget rows to reach, in nats a token; the
            logarithm of the number of possible answers is that of a guess.
        max_doublings: How often the step is doubled before a layer is given up.
        n_bisections: How often the interval is halved.
        loss_on: ``"answer"`` or ``"all"`` tokens.

    Raises:
        InputError: no rows, a goal that is reached already, or no layer that reaches
            it; the model is then as it was.
    """
    for rows, name in ((forget, "forget"), (retain, "retain")):
        if len(rows) == 0:
            raise InputError(f"there are no {name} rows", expected="one or more")
        count_scored(rows, loss_on)
    matrices = _matrices(model)
    with only_training(model, matrices.values()) as weights:

        def slopes(rows: Sequences) -> tuple[float, list[Tensor]]:
            for weight in weights:
                weight.grad = None
            loss = backward_nll(model, rows, loss_on, 1.0)
            return loss, [
                torch.zeros_like(w) if w.grad is None else w.grad.clone()
                for w in weights
            ]

        def loss_of(rows: Sequences) -> float:
            return mean_nll(model, rows, loss_on)

        start, upward = slopes(forget)
        _, kept = slopes(retain)
        if not math.isfinite(target_loss) or start >= target_loss:
            raise InputError(
                "the forget loss is at the goal already",
                expected=f"a goal above {start:.3g}",
                got=str(target_loss),
            )
        front = pareto_front(
            [
                _score(name, weight, own, other)
                for (name, weight), own, other in zip(
                    matrices.items(), upward, kept, strict=True
                )
            ]
        )
        by_name = dict(zip(matrices, upward, strict=True))
        steps: dict[str, float] = {}
        tried: dict[str, float] = {}
        for each in front:
            weight, gradient = matrices[each.name], by_name[each.name]
            before = weight.detach().clone()
            try:
                step = _smallest_step(
                    weight,
                    before,
                    gradient,
                    lambda: loss_of(forget),
                    target_loss,
                    max_doublings,
                    n_bisections,
                )
                if step is not None:
                    steps[each.name] = step
                    tried[each.name] = loss_of(retain)
            finally:
                _set_weight(weight, before)
        if not tried:
            raise InputError(
                "no single layer brings the forget loss to the goal",
                expected="a lower goal, or more doublings",
                got=f"goal {target_loss}, {len(front)} layers tried",
            )
        best = min(tried, key=lambda name: (tried[name], name))
        weight = matrices[best]
        _set_weight(weight, weight.detach() + steps[best] * by_name[best])
        return SlugEdit(
            best, steps[best], loss_of(forget), loss_of(retain), tried, tuple(front)
        )


def _matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices inside the blocks, by name."""
    inside = {id(p) for block in find_blocks(model) for p in block.parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in inside and parameter.ndim == 2
    }


def _score(name: str, weight: Tensor, own: Tensor, other: Tensor) -> LayerScore:
    sizes = own.double().norm() * other.double().norm()
    dot = (own.double() * other.double()).sum().abs()
    cosine = float(dot / sizes) if sizes > 0 else 0.0
    norm = float(weight.detach().double().norm())
    importance = float(own.double().norm()) / norm if norm > 0 else 0.0
    return LayerScore(name, importance, min(cosine, 1.0))


def _set_weight(weight: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        weight.copy_(value)


def _smallest_step(
    weight: nn.Parameter,
    before: Tensor,
    gradient: Tensor,
    forget_loss: Callable[[], float],
    goal: float,
    doublings: int,
    bisections: int,
) -> float | None:
    """The least step that reaches the goal, taken; None if doubling does not."""

    def at(step: float) -> float:
        _set_weight(weight, before + step * gradient)
        return forget_loss()

    size = float(gradient.norm())
    if size == 0:
        return None
    low, high = 0.0, 0.1 * float(before.norm()) / size
    for _ in range(doublings + 1):
        if at(high) >= goal:
            break
        low, high = high, 2 * high
    else:
        return None
    for _ in range(bisections):
        middle = (low + high) / 2
        if at(middle) >= goal:
            high = middle
        else:
            low = middle
    at(high)
    return high
