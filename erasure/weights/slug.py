"""SLUG: unlearning with one gradient step on a single layer.

Source: SLUG (CSIPlab/SLUG), from its public code: the importance of a layer is the norm of its
forget gradient over the norm of its weights, its alignment the absolute cosine of its forget and
retain gradients. The layers on the Pareto front of the two are tried, with a step size found by
bisection.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.data.sequences import Sequences
from capture.network.structure import find_blocks
from erasure.unlearning.training.loop import backward_nll, mean_nll, only_training
from erasure.unlearning.training.objectives import check_rows
from evidence.errors import InputError


@dataclass(frozen=True)
class LayerScore:
    """Importance and alignment of one matrix.

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
        layer: The matrix that was changed.
        step: Step size along its forget gradient.
        forget_loss: Mean loss on the forget rows afterwards, in nats per token.
        retain_loss: The same on the retain rows.
        retain_losses: Retain loss of each tried layer that reached the target loss.
        pareto_front: The layers that were tried.
    """

    layer: str
    step: float
    forget_loss: float
    retain_loss: float
    retain_losses: dict[str, float]
    pareto_front: tuple[LayerScore, ...]


def pareto_front(scores: list[LayerScore]) -> list[LayerScore]:
    """Layers that no other layer dominates in importance (high) and alignment (low).

    Equal layers are all kept. Sorted by falling importance.
    """
    front = [
        layer
        for layer in scores
        if not any(
            other.importance >= layer.importance
            and other.alignment <= layer.alignment
            and (other.importance > layer.importance or other.alignment < layer.alignment)
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

    Gradients are computed once. Each layer on the Pareto front is moved by the smallest step that
    reaches the target, found by doubling from a tenth of the ratio of norms and bisection; the
    layer with the lowest retain loss is kept.

    Args:
        model: A causal language model; changed in place.
        forget: Rows to forget, with their true answers.
        retain: Rows to keep.
        target_loss: Mean loss on the forget rows to reach, in nats per token; guessing has the
            logarithm of the number of possible answers.
        max_doublings: Doublings of the step before a layer is given up.
        n_bisections: Number of bisections.
        loss_on: ``"answer"`` or ``"all"`` tokens.

    Raises:
        InputError: There are no rows, the loss is above the target already, or no layer reaches it;
            the model is unchanged then.
    """
    check_rows(loss_on, forget=forget, retain=retain)
    matrices = _matrices(model)
    with only_training(model, matrices.values()) as weights:

        def loss_and_gradients(rows: Sequences) -> tuple[float, list[Tensor]]:
            for weight in weights:
                weight.grad = None
            loss = backward_nll(model, rows, loss_on, 1.0)
            return loss, [
                torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights
            ]

        def loss_of(rows: Sequences) -> float:
            return mean_nll(model, rows, loss_on)

        start, forget_gradients = loss_and_gradients(forget)
        _, retain_gradients = loss_and_gradients(retain)
        if not math.isfinite(target_loss) or start >= target_loss:
            raise InputError(
                "the forget loss has reached the target already",
                expected=f"a target above {start:.3g}",
                got=str(target_loss),
            )
        front = pareto_front(
            [
                _score(name, weight, forget_gradient, retain_gradient)
                for (name, weight), forget_gradient, retain_gradient in zip(
                    matrices.items(), forget_gradients, retain_gradients, strict=True
                )
            ]
        )
        by_name = dict(zip(matrices, forget_gradients, strict=True))
        steps: dict[str, float] = {}
        retain_losses: dict[str, float] = {}
        for layer in front:
            weight, gradient = matrices[layer.name], by_name[layer.name]
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
                    steps[layer.name] = step
                    retain_losses[layer.name] = loss_of(retain)
            finally:
                _set_weight(weight, before)
        if not retain_losses:
            raise InputError(
                "no single layer reaches the target forget loss",
                expected="a lower target, or more doublings",
                got=f"goal {target_loss}, {len(front)} layers tried",
            )
        best = min(retain_losses, key=lambda name: (retain_losses[name], name))
        weight = matrices[best]
        _set_weight(weight, weight.detach() + steps[best] * by_name[best])
        return SlugEdit(
            best, steps[best], loss_of(forget), loss_of(retain), retain_losses, tuple(front)
        )


def _matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Matrices within the blocks, by name."""
    inside = {id(p) for block in find_blocks(model) for p in block.parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in inside and parameter.ndim == 2
    }


def _score(
    name: str, weight: Tensor, forget_gradient: Tensor, retain_gradient: Tensor
) -> LayerScore:
    norms = forget_gradient.double().norm() * retain_gradient.double().norm()
    dot = (forget_gradient.double() * retain_gradient.double()).sum().abs()
    cosine = float(dot / norms) if norms > 0 else 0.0
    norm = float(weight.detach().double().norm())
    importance = float(forget_gradient.double().norm()) / norm if norm > 0 else 0.0
    return LayerScore(name, importance, min(cosine, 1.0))


def _set_weight(weight: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        weight.copy_(value)


def _smallest_step(
    weight: nn.Parameter,
    before: Tensor,
    gradient: Tensor,
    forget_loss: Callable[[], float],
    target_loss: float,
    max_doublings: int,
    n_bisections: int,
) -> float | None:
    """Apply the smallest step that reaches the target; None if doubling does not reach it."""

    def loss_at(step: float) -> float:
        _set_weight(weight, before + step * gradient)
        return forget_loss()

    size = float(gradient.norm())
    if size == 0:
        return None
    low, high = 0.0, 0.1 * float(before.norm()) / size
    for _ in range(max_doublings + 1):
        if loss_at(high) >= target_loss:
            break
        low, high = high, 2 * high
    else:
        return None
    for _ in range(n_bisections):
        middle = (low + high) / 2
        if loss_at(middle) >= target_loss:
            high = middle
        else:
            low = middle
    loss_at(high)
    return high
