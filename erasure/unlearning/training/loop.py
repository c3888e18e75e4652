"""The training loop, used by everything that changes weights by gradients."""

import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from capture.data.sequences import Padded, Sequences, batches, pad
from capture.network.discovery.modes import gradients_on
from capture.network.edits.row_order import refuse_row_edits
from capture.network.hooks import evaluation_mode
from capture.network.model_inputs import changes_weights
from capture.network.structure import model_device
from erasure.unlearning.training.objectives import count_scored, token_logprobs
from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.fields import check_fields
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import numpy_rng

if TYPE_CHECKING:
    import plotly.graph_objects as go

Evaluate = Callable[[nn.Module], dict[str, float]]
CHUNK_TOKENS = 4096
SMALL_MODEL_PARAMETERS = 2_000_000  # parameters


@dataclass(frozen=True, repr=False)
class TrainLog:
    """Log of a training run.

    Attributes:
        rows: One per step: ``step``, the losses, ``grad_norm`` before clipping, and at evaluated
            steps the result of ``evaluate``. Step 0 is the initial model.
        stopped: ``"steps"`` if all steps were taken, ``"criterion"`` if the caller's criterion was
            met, ``"diverged"`` if a gradient was not finite (the weights are those before that
            step).
    """

    rows: tuple[dict[str, float], ...]
    stopped: str = "steps"

    def __repr__(self) -> str:
        last = ", ".join(f"{key} {value:.3g}" for key, value in self.last.items())
        name, steps = type(self).__name__, self.last.get("step", 0)
        return f"{name}({steps:.0f} steps, stopped by {self.stopped!r}; last: {last})"

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def plot(self) -> "go.Figure":
        """A Plotly figure of every quantity over the steps."""
        import plotly.graph_objects as go

        frame = self.to_frame().set_index("step")
        figure = go.Figure()
        for name in frame:
            values = frame[name].dropna()
            figure.add_scatter(x=values.index, y=values, name=html.escape(str(name)))
        figure.update_layout(template="plotly_white", xaxis_title="step")
        return figure

    def to_frame(self) -> pd.DataFrame:
        """One row per step; missing evaluations are NaN."""
        return pd.DataFrame(list(self.rows))

    @property
    def last(self) -> dict[str, float]:
        """The latest value of every quantity."""
        return {key: value for row in self.rows for key, value in row.items()}


def check_values(checks: Mapping[str, tuple[bool, str, object]]) -> None:
    """Check settings.

    Args:
        checks: Name to whether the value is valid, what is expected, and the value.

    Raises:
        InputError: Naming the first invalid setting.
    """
    for name, (valid, expected, got) in checks.items():
        if not valid:
            raise InputError(f"{name} cannot be used", expected=expected, got=str(got))


@dataclass(frozen=True)
class Schedule:
    """Learning-rate schedule and settings of the optimizer.

    Attributes:
        lr: AdamW's peak learning rate.
        steps: Maximum number of steps.
        weight_decay: AdamW's decoupled weight decay.
        clip: Maximum gradient norm; None for no limit.
        warmup: Steps of linear warmup.
        decay: ``"constant"`` or ``"cosine"`` (to zero at the last step) after warmup.
        every: Steps between evaluations.
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
            "decay": (self.decay in ("constant", "cosine"), "'constant' or 'cosine'", self.decay),
        }
        check_values(checks)

    def factor(self, step: int) -> float:
        """Share of ``lr`` used in step ``step``, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.decay == "constant":
            return 1.0
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * progress))


def shuffled_batches(count: int, size: int | None, rng: np.random.Generator) -> Iterator[list[int]]:
    """Endless batches of row numbers: every row once per epoch, newly shuffled.

    If ``size`` is None or at least ``count``, all rows in their own order. A batch that crosses the
    end of an epoch is filled from the next one.
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
    """Context manager with gradients for ``parameters`` only and dropout off.

    Dropout is off so that the trained model and a frozen reference are compared without noise, and
    so that a seed determines the result.
    """
    chosen = list(parameters)
    if not chosen:
        raise InputError("there are no parameters to train", expected="one or more")
    flags = [(p, p.requires_grad) for p in model.parameters()]
    with evaluation_mode(model):
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            for parameter in chosen:
                parameter.requires_grad_(True)
            yield chosen
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
                parameter.grad = None


def train_steps(
    model: nn.Module,
    parameters: list[nn.Parameter],
    backward: Callable[[], dict[str, float]],
    schedule: Schedule,
    *,
    evaluate: Evaluate | None = None,
    stop: Callable[[dict[str, float]], bool] | None = None,
    label: str = "training",
    progress: Progress = AUTO,
) -> TrainLog:
    """Run AdamW for the steps of ``schedule``.

    Args:
        model: Passed to ``evaluate``.
        parameters: The trained parameters.
        backward: Adds the gradients of one step and returns its losses.
        schedule: Learning rate, clipping and number of steps.
        evaluate: Called before the first step, every ``schedule.every`` steps and after the last.
        stop: Given each evaluation; True ends the training.
        label: Name of the progress bar.
    """
    optimizer = torch.optim.AdamW(
        parameters,
        lr=schedule.lr,
        weight_decay=schedule.weight_decay,
        fused=True,  # one pass over memory, ten times as fast on a CPU
    )
    rows: list[dict[str, float]] = []

    def measure(step: int, losses: dict[str, float]) -> bool:
        row = {"step": float(step), **losses}
        evaluated = step % schedule.every == 0 or step == schedule.steps
        evaluation: dict[str, float] = {}
        if evaluate is not None and evaluated:
            with torch.no_grad():
                evaluation = evaluate(model)
            model.eval()
        rows.append(row | evaluation)
        return stop is not None and bool(evaluation) and stop(evaluation)

    with as_progress(progress).task(label, schedule.steps) as advance:
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


def chunk_tokens(model: nn.Module) -> int:
    """Padded positions per training pass.

    Off the CPU, kernel launches dominate the time of a small model whatever the number of
    positions, so it gets eight times as many.
    """
    if model_device(model).type == "cpu":
        return CHUNK_TOKENS
    small = sum(p.numel() for p in model.parameters()) <= SMALL_MODEL_PARAMETERS
    return (8 if small else 1) * CHUNK_TOKENS


def shortest_row(model: nn.Module, data: Sequences) -> Padded:
    """The shortest row of ``data``, padded for ``model``."""
    row = min(range(len(data)), key=lambda row: len(data.ids[row]))
    return pad(data, [row], device=model_device(model))


def backward_nll(model: nn.Module, data: Sequences, loss_on: str, weight: float) -> float:
    """Add the gradient of ``weight`` times the mean token NLL and return that mean.

    The mean is over all scored tokens of ``data``, as in Hugging Face models. A negative weight is
    gradient ascent.
    """
    total = count_scored(data, loss_on)
    loss = 0.0
    device = model_device(model)
    for batch in batches(data, batch_tokens=chunk_tokens(model), device=device):
        logprob, _ = token_logprobs(model, batch, loss_on)
        part = -logprob.sum() / total
        (weight * part).backward()
        loss += float(part.detach())
    return loss


def backward_mean(
    batches: Iterable[Padded], losses: Callable[[Padded], Tensor], count: int, weight: float
) -> float:
    """Add the gradient of ``weight`` times the mean loss, batch by batch; return that mean.

    Args:
        batches: All batches of the mean.
        losses: Losses of a batch, of any shape.
        count: Number of losses in all batches.
        weight: Factor on the gradient.
    """
    mean = 0.0
    for batch in batches:
        loss = losses(batch).sum() / count
        (weight * loss).backward()
        mean += float(loss.detach())
    return mean


def mean_nll(model: nn.Module, data: Sequences, loss_on: str) -> float:
    """Mean token NLL over all scored tokens of ``data``, without gradients."""
    total, device = count_scored(data, loss_on), model_device(model)
    tokens = chunk_tokens(model)
    with torch.no_grad():
        parts = [
            -float(token_logprobs(model, batch, loss_on)[0].sum())
            for batch in batches(data, batch_tokens=tokens, device=device)
        ]
    return sum(parts) / total


@changes_weights
@gradients_on()
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
    progress: Progress = AUTO,
) -> TrainLog:
    """Fine-tune ``model`` on ``data``, in place.

    Args:
        model: A causal language model; its mode and gradient flags are restored.
        data: Rows to learn.
        lr: AdamW's learning rate.
        steps: Optimizer steps.
        batch_size: Rows per step; None for all of them.
        weight_decay: AdamW's decoupled weight decay.
        clip: Maximum gradient norm; None for no limit.
        warmup: Steps of linear warmup.
        decay: ``"constant"`` or ``"cosine"`` after warmup.
        loss_on: ``"answer"`` or ``"all"`` tokens.
        parameters: The trained parameters; all by default.
        seed: Seed of the order of rows.
        evaluate: Maps the model to named numbers, without gradients.
        every: Steps between evaluations.
        stop: Given each evaluation; True ends the training.
        label: Name of the progress bar.

    Raises:
        InputError: There are no rows, a row has nothing to learn, or a setting is out of range.

    Examples:
        >>> tuned = checkpoint.load()  # changed in place
        >>> log = exhume.finetune_(tuned, rows, lr=1e-4, steps=3, seed=0)
        >>> log.to_frame().columns.tolist()
        ['step', 'loss', 'grad_norm']
    """
    refuse_row_edits("training")
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
