"""Settings that all unlearning methods share."""

from collections.abc import Callable
from dataclasses import dataclass

from erasure.unlearning.training.loop import Schedule, check_values
from evidence.errors import InputError
from evidence.fields import check_fields


@dataclass(frozen=True)
class TrainingSettings:
    """Optimizer, batches and weights of the two terms of an unlearning run.

    Attributes:
        lr: AdamW's learning rate.
        steps: Maximum number of optimizer steps.
        batch_size: Forget rows per step; None for all of them.
        retain_batch_size: Retain rows per step; None for as many as forget rows.
        forget_weight: Weight of the forget term.
        retain_weight: Weight of the retain term; at 0 no retain row is read.
        weight_decay: AdamW's decoupled weight decay.
        clip: Maximum gradient norm; None for no limit.
        warmup: Steps of linear warmup.
        loss_on: For text: ``"answer"`` or ``"all"`` tokens.
        lora_rank: For text: train LoRA adapters of this rank and merge them at the end; None trains
            the weights.
        lora_alpha: Scale of the adapters; twice the rank by default.
        stop_below: Stop once ``evaluate(model)["forget"]`` is at most this.
        every: Steps between evaluations.

    Examples:
        >>> exhume.TrainingSettings(lr=1e-4, steps=20).batch_size is None
        True
    """

    lr: float = 1e-5
    steps: int = 50
    batch_size: int | None = None
    retain_batch_size: int | None = None
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    weight_decay: float = 0.01
    clip: float | None = 1.0
    warmup: int = 0
    loss_on: str = "answer"
    lora_rank: int | None = None
    lora_alpha: float | None = None
    stop_below: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        optional = {
            name: (value is None or value >= 1, "None, or 1 or more", value)
            for name, value in (
                ("batch_size", self.batch_size),
                ("retain_batch_size", self.retain_batch_size),
                ("lora_rank", self.lora_rank),
            )
        }
        check_values(
            {
                "forget_weight": (self.forget_weight > 0, "> 0", self.forget_weight),
                "retain_weight": (self.retain_weight >= 0, "0 or more", self.retain_weight),
                "loss_on": (self.loss_on in ("answer", "all"), "'answer' or 'all'", self.loss_on),
            }
            | optional
        )
        self.schedule()

    def schedule(self) -> Schedule:
        """The validated learning-rate schedule."""
        return Schedule(
            self.lr, self.steps, self.weight_decay, self.clip, self.warmup, every=self.every
        )

    def stop_rule(self) -> Callable[[dict[str, float]], bool] | None:
        """Whether an evaluation ends the training; None without ``stop_below``."""
        below = self.stop_below
        if below is None:
            return None

        def stop(evaluation: dict[str, float]) -> bool:
            if "forget" not in evaluation:
                raise InputError(
                    "stop_below reads what evaluate returns under 'forget'",
                    got=", ".join(evaluation) or "nothing",
                )
            return evaluation["forget"] <= below

        return stop
