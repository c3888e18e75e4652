"""MANSU: unlearn by moving a few weights of a circuit by more than their quantization bin.

Published (MANSU, arXiv 2605.15138): edits are restricted to the parameters of a circuit found by
EAP-IG, about 0.5 % of all; updates are projected into the null space of the retain set's Fisher
matrix; every changed weight moves by more than the width of its NF4 bin, so that quantization does
not revert the edit. Four properties are required: the model forgets, it keeps the rest, 4-bit
quantization restores nothing, and the circuit's edges changed.

Code, constants and the order of steps are not public. Ours: the weights of largest forget gradient
within the circuit, capped ascent on the forget answers with a retain term, the span of retain
gradients of small batches at the start for the Fisher matrix, and the floor applied at every step:
the model always carries the floored edit while a latent edit is trained (straight-through), so that
the trained model is the deployed one. The floor is 1.05 local bins; latent edits below half of that
are zero.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.data.sequences import Sequences, batches
from capture.network.structure import model_device
from erasure.unlearning.training.loop import (
    CHUNK_TOKENS,
    Evaluate,
    TrainLog,
    backward_nll,
    only_training,
    shuffled_batches,
)
from erasure.unlearning.training.objectives import check_rows, count_scored, token_logprobs
from erasure.weights.quantization import linear_weights, quantize
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import numpy_rng


@dataclass(frozen=True)
class MansuConfig:
    """Settings of ``mansu_``.

    Attributes:
        share: Share of all parameters that may move.
        steps: Maximum number of steps.
        step: Root mean square of a step, in mean local bins.
        floor: Smallest move of a changed weight, in its own bins; above 1.
        cap: Forget tokens contribute up to this loss, in nats.
        retain_weight: Weight of the retain term.
        batch_size: Retain rows per step and per retain gradient.
        directions: Number of retain gradients whose span is projected out.
        loss_on: ``"answer"`` or ``"all"`` tokens.
        stop_below: Stop once ``evaluate(model)["forget"]`` is at most this.
        every: Steps between evaluations.

    Raises:
        InputError: A setting is out of range.
    """

    share: float = 0.005
    steps: int = 100
    step: float = 0.1
    floor: float = 1.05
    cap: float = 6.0
    retain_weight: float = 1.0
    batch_size: int = 64
    directions: int = 32
    loss_on: str = "answer"
    stop_below: float | None = None
    every: int = 5

    def __post_init__(self) -> None:
        good = (
            0 < self.share <= 1
            and min(self.steps, self.batch_size, self.every) >= 1
            and self.directions >= 0
            and min(self.step, self.cap) > 0
            and self.floor > 1
            and self.retain_weight >= 0
        )
        if not good:
            raise InputError(
                "a setting is out of range",
                expected="a share up to 1, steps, batch and every from 1, step and cap "
                "above 0, a floor above 1, directions and retain weight from 0",
                got=repr(self),
            )


@dataclass(frozen=True, repr=False)
class MansuLog(TrainLog):
    """Training log and statistics of the edit.

    Attributes:
        n_selected: Number of weights that may move.
        n_moved: Number of weights that moved.
        n_parameters: Number of parameters of the model.
        same_codes: Share of the moved weights whose NF4 code is unchanged.
    """

    n_selected: int = 0
    n_moved: int = 0
    n_parameters: int = 0
    same_codes: float = 0.0


def mansu_(
    model: nn.Module,
    forget: Sequences,
    retain: Sequences,
    masks: Mapping[str, Tensor],
    config: MansuConfig,
    *,
    evaluate: Evaluate | None = None,
    seed: int,
    progress: Progress = AUTO,
) -> MansuLog:
    """Unlearn by moving a few weights of a circuit beyond their NF4 bins, in place.

    Args:
        model: A causal language model.
        forget: Rows to forget, with their true answers.
        retain: Rows to keep.
        masks: Name of a linear map's weight to a bool mask of its shape: the circuit.
        evaluate: Maps the model to named numbers; ``stop_below`` reads ``"forget"``.
        seed: Seed of the order of retain rows.

    Raises:
        InputError: There are no rows, or the masks do not fit the model's linear maps.
    """
    check_rows(config.loss_on, forget=forget, retain=retain)
    matrices = _check_masks(model, masks)
    weights = [weight for weight, _ in matrices.values()]
    total = sum(p.numel() for p in model.parameters())
    rng = numpy_rng(seed, "mansu")
    with only_training(model, weights), torch.enable_grad():
        order = shuffled_batches(len(retain), config.batch_size, rng)
        gradient = _gradient(weights, lambda: _backward_capped_ascent(model, forget, config))
        count = max(1, round(config.share * total))
        selected = _largest_masks(gradient, [masks[name] for name in matrices], count)
        edit = _FlooredEdit(matrices, selected, config.floor)
        retain_gradients = [
            edit.select(_gradient(weights, lambda: _backward_retain(model, retain, order, config)))
            for _ in range(config.directions)
        ]
        span = (
            _gradient_span(retain_gradients)
            if retain_gradients
            else edit.latent.new_zeros(0, edit.n_selected)
        )
        history: list[dict[str, float]] = []
        stopped = "steps"
        with as_progress(progress).task("mansu", config.steps) as advance:
            for step in range(1, config.steps + 1):
                forget_gradients = _gradient(
                    weights, lambda: _backward_capped_ascent(model, forget, config)
                )
                forget_gradient = edit.select(forget_gradients)
                update = forget_gradient - span.T @ (span @ forget_gradient)
                if config.retain_weight:
                    retain_update = _gradient(
                        weights, lambda: _backward_retain(model, retain, order, config)
                    )
                    update = update + config.retain_weight * edit.select(retain_update)
                size = float(update.square().mean().sqrt())
                if not math.isfinite(size):
                    stopped = "diverged"
                    break
                if size > 0:
                    edit.move(-config.step / size * update)
                row = {"step": float(step), "moved": float(edit.n_moved)}
                if evaluate is not None and step % config.every == 0:
                    with torch.no_grad():
                        row |= evaluate(model)
                    model.eval()
                history.append(row)
                advance(1)
                below = config.stop_below
                if below is not None and row.get("forget", math.inf) <= below:
                    stopped = "criterion"
                    break
    return MansuLog(
        tuple(history), stopped, edit.n_selected, edit.n_moved, total, edit.same_codes()
    )


class _FlooredEdit:
    """The movable weights as one vector, in units of their own bins.

    ``latent`` is trained; the model carries the floored ``latent``.
    """

    def __init__(
        self, matrices: Mapping[str, tuple[nn.Parameter, bool]], masks: list[Tensor], floor: float
    ):
        self.matrices, self.masks, self.floor = matrices, masks, floor
        self.start = [w.detach().clone() for w, _ in matrices.values()]
        widths = [
            _oriented(quantize(_oriented(start, transposed)).bin_widths, transposed)
            for start, (_, transposed) in zip(self.start, matrices.values(), strict=True)
        ]
        self.widths = self.select(widths)
        self.latent = torch.zeros_like(self.widths)

    @property
    def n_selected(self) -> int:
        """Number of weights that may move."""
        return len(self.latent)

    @property
    def n_moved(self) -> int:
        """Number of weights that moved."""
        return int((self._floored() != 0).sum())

    def select(self, values: list[Tensor]) -> Tensor:
        """The movable entries of tensors of the weights' shapes, as one vector."""
        return torch.cat([v[m] for v, m in zip(values, self.masks, strict=True)])

    def move(self, change: Tensor) -> None:
        """Add to the latent edit, in bins, and write the floored edit into the model."""
        self.latent += change
        change_by_weight = self._floored() * self.widths
        parts = change_by_weight.split([int(mask.sum()) for mask in self.masks])
        with torch.no_grad():
            for (weight, _), start, mask, part in zip(
                self.matrices.values(), self.start, self.masks, parts, strict=True
            ):
                weight.copy_(start)
                weight[mask] += part

    def _floored(self) -> Tensor:
        size = self.latent.abs()
        raised = self.latent.sign() * size.clamp(min=self.floor)
        return torch.where(size >= self.floor / 2, raised, 0.0)

    def same_codes(self) -> float:
        """Share of the moved weights that quantize to their old code."""
        same = moved = 0
        for (weight, transposed), start in zip(self.matrices.values(), self.start, strict=True):
            now = weight.detach()
            before, after = (quantize(_oriented(w, transposed)).codes for w in (start, now))
            changed = _oriented(now != start, transposed)
            same += int((before == after)[changed].sum())
            moved += int(changed.sum())
        return same / moved if moved else 0.0


def _oriented(matrix: Tensor, transposed: bool) -> Tensor:
    """The matrix as (out, in), or back."""
    return matrix.T if transposed else matrix


def _check_masks(
    model: nn.Module, masks: Mapping[str, Tensor]
) -> dict[str, tuple[nn.Parameter, bool]]:
    linear = linear_weights(model)
    fits = {
        name: name in linear and mask.dtype == torch.bool and mask.shape == linear[name][0].shape
        for name, mask in masks.items()
    }
    if not all(fits.values()) or not any(bool(mask.any()) for mask in masks.values()):
        wrong = [name for name, good in fits.items() if not good]
        raise InputError(
            "the circuit's weights do not fit the model",
            expected="bool masks of its linear maps' shapes, one weight or more",
            got=", ".join(wrong[:3]) or "no weight",
        )
    return {name: linear[name] for name, mask in masks.items() if mask.any()}


def _largest_masks(gradient: list[Tensor], masks: list[Tensor], count: int) -> list[Tensor]:
    """Masks of the ``count`` masked weights with the largest absolute gradient."""
    nonempty = [mask for mask in masks if mask.any()]
    sizes = [g.abs().where(m, -1.0) for g, m in zip(gradient, nonempty, strict=True)]
    flat = torch.cat([size.flatten() for size in sizes])
    count = min(count, int(sum(int(mask.sum()) for mask in nonempty)))
    chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    chosen[flat.topk(count).indices] = True
    parts = chosen.split([size.numel() for size in sizes])
    return [part.view_as(size) for part, size in zip(parts, sizes, strict=True)]


def _gradient(weights: list[nn.Parameter], backward) -> list[Tensor]:
    with _cleared_gradients(weights):
        backward()
        return [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]


@contextmanager
def _cleared_gradients(weights: list[nn.Parameter]) -> Iterator[None]:
    for weight in weights:
        weight.grad = None
    try:
        yield
    finally:
        for weight in weights:
            weight.grad = None


def _backward_capped_ascent(model: nn.Module, rows: Sequences, config: MansuConfig) -> None:
    """Add the gradient of minus the forget loss, with each token's loss capped."""
    total = count_scored(rows, config.loss_on)
    device = model_device(model)
    for batch in batches(rows, batch_tokens=CHUNK_TOKENS, device=device):
        logprob, _ = token_logprobs(model, batch, config.loss_on)
        (-(-logprob).clamp(max=config.cap).sum() / total).backward()


def _backward_retain(
    model: nn.Module, rows: Sequences, order: Iterator[list[int]], config: MansuConfig
) -> None:
    backward_nll(model, rows[next(order)], config.loss_on, 1.0)


def _gradient_span(gradients: list[Tensor]) -> Tensor:
    """(direction, weight) orthonormal basis of the gradients, by SVD."""
    _, sizes, rows = torch.linalg.svd(torch.stack(gradients), full_matrices=False)
    return rows[sizes > 1e-6 * sizes.max()]
