"""One training loop for everything that changes weights."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from capture.data.sequences import Padded, Sequences, batches, pad
from erasure.unlearning.training.objectives import count_scored, token_logprobs
from evidence.errors import InputError
from evidence.fields import check_fields
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng

Evaluate = Callable[[nn.Module], dict[str, float]]
CHUNK_TOKENS = 4096
SMALL_MODEL_PARAMETERS = 2_000_000  # parameters


@dataclass(frozen=True)
class TrainLog:
    """What happened in training.

    Attributes:
        rows: One a step: ``step``, the losses, ``grad_norm`` before clipping, and at
            evaluated steps what ``evaluate`` returned. Step 0 is the model as given.
        stopped: ``"steps"`` when all were done, ``"criterion"`` when the caller's
            criterion was met, ``"diverged"`` when a gradient was not finite (the
            weights are those before that step).
    """

    rows: tuple[dict[str, float], ...]
    stopped: str = "steps"

    def to_frame(self) -> pd.DataFrame:
        """One row a step; evaluations that were not made are missing values."""
        return pd.DataFrame(list(self.rows))

    @property
    def last(self) -> dict[str, float]:
        """The latest value of every quantity."""
        return {key: value for row in self.rows for key, value in row.items()}


@dataclass(frozen=True)
class Schedule:
    """How the steps are taken.

    Attributes:
        lr: AdamW's learning rate at its highest.
        steps: Most steps to take.
        weight_decay: AdamW's decoupled decay.
        clip: Largest gradient norm; None leaves gradients alone.
        warmup: Steps of linear rise.
        decay: ``"constant"`` or ``"cosine"`` (to zero at the last step) after it.
        every: Evaluate after each so many steps.
    """

    lr: float
    steps: int
    weight_decay: float = 0.0
    clip: float | None = 1.0
    warmup: int = 0
    decay: str = "constant"
    every: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        checks = {
            "lr": (self.lr > 0, "a number > 0", self.lr),
            "steps": (self.steps >= 1, "1 or more", self.steps),
            "every": (self.every >= 1, "1 or more", self.every),
            "clip": (self.clip is None or self.clip > 0, "None or > 0", self.clip),
            "decay": (
                self.decay in ("constant", "cosine"),
                "'constant' or 'cosine'",
                self.decay,
            ),
        }
        for name, (good, expected, got) in checks.items():
            if not good:
                raise InputError(
                    f"{name} cannot be used", expected=expected, got=str(got)
                )

    def factor(self, step: int) -> float:
        """Share of ``lr`` used in step ``step``, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.decay == "constant":
            return 1.0
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * done))


def shuffled_batches(
    count: int, size: int | None, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Endless batches of row numbers: every row once an epoch, in a new order each.

    ``size`` None, or as large as ``count``, gives all rows in their own order. A
    batch that would cross an epoch's end is filled from the next epoch.
    """
    if size is None or size >= count:
        while True:
            yield list(range(count))
    queue: list[int] = []
    while True:
        while len(queue) < size:
            queue.extend(rng.permutation(count).tolist())
        yield queue[:size]
        queue = queue[size:]


@contextmanager
def only_training(
    model: nn.Module, parameters: Iterable[nn.Parameter]
) -> Iterator[list[nn.Parameter]]:
    """Gradients for ``parameters`` alone and dropout off, then all as it was found.

    Dropout stays off so that the trained model and a frozen reference are compared
    without noise, and so that a seed fixes the result.
    """
    chosen = list(parameters)
    if not chosen:
        raise InputError("there are no parameters to train", expected="one or more")
    flags = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        model.eval()
        yield chosen
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
        for module, mode in modes:
            module.training = mode


def train_steps(
    model: nn.Module,
    parameters: list[nn.Parameter],
    backward: Callable[[], dict[str, float]],
    schedule: Schedule,
    *,
    evaluate: Evaluate | None = None,
    stop: Callable[[dict[str, float]], bool] | None = None,
    label: str = "training",
    progress: Progress = SILENT,
) -> TrainLog:
    """Run AdamW for the steps of ``schedule``.

    Args:
        model: Handed to ``evaluate``.
        parameters: What is trained.
        backward: Adds the gradients of one step and returns its losses.
        schedule: Learning rate, clipping and number of steps.
        evaluate: Called before the first step, every ``schedule.every`` steps and
            after the last.
        stop: Given each evaluation; True ends the training.
        label: Name of the progress bar.
        progress: Where progress is shown.
    """
    optimizer = torch.optim.AdamW(
        parameters,
        lr=schedule.lr,
        weight_decay=schedule.weight_decay,
        fused=True,  # one pass over memory: a tenth of the time on a CPU
    )
    rows: list[dict[str, float]] = []

    def measure(step: int, losses: dict[str, float]) -> bool:
        row = {"step": float(step), **losses}
        due = step % schedule.every == 0 or step == schedule.steps
        seen: dict[str, float] = {}
        if evaluate is not None and due:
            with torch.no_grad():
                seen = evaluate(model)
            model.eval()
        rows.append(row | seen)
        return stop is not None and bool(seen) and stop(seen)

    with progress.task(label, schedule.steps) as advance:
        if evaluate is not None and measure(0, {}):
            return TrainLog(tuple(rows), "criterion")
        for step in range(schedule.steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr * schedule.factor(step)
            optimizer.zero_grad(set_to_none=True)
            losses = backward()
            limit = math.inf if schedule.clip is None else schedule.clip
            norm = float(nn.utils.clip_grad_norm_(parameters, limit))
            if not math.isfinite(norm):
                return TrainLog(tuple(rows), "diverged")
            optimizer.step()
            advance(1)
            if measure(step + 1, losses | {"grad_norm": norm}):
                return TrainLog(tuple(rows), "criterion")
    return TrainLog(tuple(rows))


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lives."""
    return next(model.parameters()).device


def chunk_tokens(model: nn.Module) -> int:
    """Padded positions a pass of training may hold.

    Off the CPU a pass of a small model takes as long as launching its kernels, however
    few the positions, so it is given eight times as many.
    """
    if device_of(model).type == "cpu":
        return CHUNK_TOKENS
    small = sum(p.numel() for p in model.parameters()) <= SMALL_MODEL_PARAMETERS
    return (8 if small else 1) * CHUNK_TOKENS


def shortest_row(model: nn.Module, data: Sequences) -> Padded:
    """The shortest row of ``data``, to check something on ``model`` with."""
    row = min(range(len(data)), key=lambda row: len(data.ids[row]))
    return pad(data, [row], device=device_of(model))


def backward_nll(
    model: nn.Module, data: Sequences, loss_on: str, weight: float
) -> float:
    """Add the gradient of ``weight`` times the mean token NLL; return that mean.

    The mean is over all scored tokens of ``data``, as in Hugging Face models. A
    negative weight is gradient ascent on the likelihood's negative.
    """
    total = count_scored(data, loss_on)
    loss = 0.0
    device = device_of(model)
    for batch in batches(data, batch_tokens=chunk_tokens(model), device=device):
        logprob, _ = token_logprobs(model, batch, loss_on)
        part = -logprob.sum() / total
        (weight * part).backward()
        loss += float(part.detach())
    return loss


def mean_nll(model: nn.Module, data: Sequences, loss_on: str) -> float:
    """The mean token NLL over all scored tokens of ``data``, without gradients."""
    total, device = count_scored(data, loss_on), device_of(model)
    tokens = chunk_tokens(model)
    with torch.no_grad():
        parts = [
            -float(token_logprobs(model, batch, loss_on)[0].sum())
            for batch in batches(data, batch_tokens=tokens, device=device)
        ]
    return sum(parts) / total


def finetune_(
    model: nn.Module,
    data: Sequences,
    *,
    lr: float,
    steps: int,
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    warmup: int = 0,
    decay: str = "constant",
    loss_on: str = "answer",
    parameters: Iterable[nn.Parameter] | None = None,
    seed: int,
    evaluate: Evaluate | None = None,
    every: int = 1,
    stop: Callable[[dict[str, float]], bool] | None = None,
    label: str = "fine-tuning",
    progress: Progress = SILENT,
) -> TrainLog:
    """Train ``model`` in place to predict ``data``.

    Args:
        model: A causal language model; left in the mode and with the gradient flags
            it came with.
        data: Rows to learn.
        lr: AdamW's learning rate.
        steps: Optimizer steps.
        batch_size: Rows a step; None for all of them.
        weight_decay: AdamW's decoupled decay.
        clip: Largest gradient norm, None for no limit.
        warmup: Steps of linear rise of the learning rate.
        decay: ``"constant"`` or ``"cosine"`` after the rise.
        loss_on: ``"answer"`` or ``"all"`` tokens.
        parameters: What to train; everything by default.
        seed: Fixes the order of the rows.
        evaluate: Model to named numbers, without gradients.
        every: Steps between evaluations.
        stop: Given each evaluation; True ends the training.
        label: Name of the progress bar.
        progress: Where progress is shown.

    Raises:
        InputError: no rows, rows without anything to learn, or settings that cannot
            be used.
    """
    if len(data) == 0:
        raise InputError("there are no rows to train on", expected="one or more")
    count_scored(data, loss_on)
    schedule = Schedule(lr, steps, weight_decay, clip, warmup, decay, every)
    order = shuffled_batches(len(data), batch_size, numpy_rng(seed, "finetune"))
    chosen = model.parameters() if parameters is None else parameters
    with only_training(model, chosen) as trained:

        def backward() -> dict[str, float]:
            return {"loss": backward_nll(model, data[next(order)], loss_on, 1.0)}

        return train_steps(
            model,
            trained,
            backward,
            schedule,
            evaluate=evaluate,
            stop=stop,
            label=label,
            progress=progress,
        )
