"""Settings of an unlearning run."""

from dataclasses import dataclass

from erasure.training import Schedule
from evidence.errors import InputError

METHODS = ("grad_ascent", "grad_diff", "npo", "relabel", "rmu", "last_block_relabel")
RELABELLING = ("relabel", "last_block_relabel")


@dataclass(frozen=True)
class UnlearnConfig:
    """A method and its settings.

    Attributes:
        method: One of ``METHODS``.
        lr: AdamW's learning rate.
        steps: Most optimizer steps.
        batch_size: Forget rows a step; None for all of them.
        retain_batch_size: Retain rows a step; None for as many as forget rows.
        retain_weight: Weight of the retain term (ignored by ``grad_ascent``). RMU's
            authors call it alpha and use 1200 on a 7B model.
        forget_weight: Weight of the forget term.
        beta: NPO's inverse temperature.
        weight_decay: AdamW's decoupled decay.
        clip: Largest gradient norm; None for no limit.
        warmup: Steps of linear rise of the learning rate.
        loss_on: ``"answer"`` or ``"all"`` tokens (RMU always uses every token).
        lora_rank: Train adapters of this rank instead of the weights, and merge
            them at the end; None trains the weights.
        lora_alpha: Scale of the adapters; twice the rank by default.
        rmu_layer: Block whose output is pushed, counted from 0. It and the two
            blocks before it are trained.
        rmu_coefficient: Norm of the control vector.
        rmu_parameters: ``"down"`` trains the down-projections of the three blocks as
            the authors do; ``"all"`` trains every parameter of the model.
        train_head: ``last_block_relabel`` also trains the output head.
        stop_below: Stop once ``evaluate(model)["forget"]`` is at most this.
        every: Steps between evaluations.
    """

    method: str
    lr: float = 1e-5
    steps: int = 50
    batch_size: int | None = None
    retain_batch_size: int | None = None
    retain_weight: float = 1.0
    forget_weight: float = 1.0
    beta: float = 0.1
    weight_decay: float = 0.01
    clip: float | None = 1.0
    warmup: int = 0
    loss_on: str = "answer"
    lora_rank: int | None = None
    lora_alpha: float | None = None
    rmu_layer: int = 7
    rmu_coefficient: float = 6.5
    rmu_parameters: str = "down"
    train_head: bool = False
    stop_below: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        checks = {
            "method": (self.method in METHODS, ", ".join(METHODS), self.method),
            "beta": (self.beta > 0, "a number > 0", self.beta),
            "retain_weight": (self.retain_weight >= 0, ">= 0", self.retain_weight),
            "forget_weight": (self.forget_weight > 0, "> 0", self.forget_weight),
            "lora_rank": (
                self.lora_rank is None or self.lora_rank >= 1,
                "None or 1 or more",
                self.lora_rank,
            ),
            "rmu_parameters": (
                self.rmu_parameters in ("down", "all"),
                "'down' or 'all'",
                self.rmu_parameters,
            ),
        }
        for name, (good, expected, got) in checks.items():
            if not good:
                raise InputError(
                    f"{name} cannot be used", expected=expected, got=str(got)
                )
        self.schedule()

    def schedule(self) -> Schedule:
        """The learning-rate plan, checked."""
        return Schedule(
            self.lr,
            self.steps,
            self.weight_decay,
            self.clip,
            self.warmup,
            every=self.every,
        )
