"""Settings of a run that makes an image classifier forget a class."""

from dataclasses import dataclass

from erasure.unlearning.training.loop import Schedule, check_values
from evidence.fields import check_fields

IMAGE_METHODS = (
    *("grad_ascent", "grad_diff", "relabel", "salun", "ssd", "scrub", "bad_teacher"),
    *("boundary_shrink", "duck", "famr", "cf_k", "eu_k", "rmu", "l1_sparse"),
)
# Methods trained on retain images only.
RETAIN_ONLY_METHODS = ("cf_k", "eu_k", "l1_sparse")
# Methods trained on forget images only.
FORGET_ONLY_METHODS = ("grad_ascent", "boundary_shrink", "famr")


@dataclass(frozen=True)
class ImageUnlearnConfig:
    """A method and its settings.

    Attributes:
        method: One of ``IMAGE_METHODS``.
        lr: AdamW's learning rate.
        steps: Optimizer steps.
        batch_size: Forget images per step.
        retain_batch_size: Retain images per step.
        forget_weight: Weight of the forget term (DUCK's authors use 1).
        retain_weight: Weight of the retain term (DUCK 1.4).
        temperature: Of SCRUB's and bad teacher's distillation and of DUCK's retain loss (2 in SCRUB
            and DUCK).
        distil_weight: SCRUB's weight of the retain distillation (the authors' alpha).
        ascents: SCRUB's epochs of ascent on the forget images.
        saliency: Share of the weights that SalUn trains.
        dampen_above: SSD dampens weights that are this many times as important to the forget images
            as to all images.
        dampen_by: SSD's factor on the ratio of importances.
        step: Size of boundary shrink's FGSM step, in pixel values.
        anchor: FAMR's weight of the squared distance to the original's weights; the largest weight
            of L1-sparse's penalty, which decays to 0 over the run.
        last_k: Number of last blocks trained by CF-k and EU-k, with everything after them.
        block: Block whose output RMU steers; it and all blocks before it are trained.
        coefficient: Norm of RMU's control vector, in mean norms of the block's states.
        weight_decay: AdamW's decoupled weight decay.
        clip: Maximum gradient norm; None for no limit.

    Examples:
        >>> exhume.ImageUnlearnConfig("scrub").ascents
        3
    """

    method: str
    lr: float = 1e-3
    steps: int = 30
    batch_size: int | None = 32
    retain_batch_size: int | None = 64
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    temperature: float = 2.0
    distil_weight: float = 0.5
    ascents: int = 3
    saliency: float = 0.5
    dampen_above: float = 10.0
    dampen_by: float = 1.0
    step: float = 0.2
    anchor: float = 1e-3
    last_k: int = 1
    block: int = 1
    coefficient: float = 2.0
    weight_decay: float = 0.0
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        checks = {
            "method": (
                self.method in IMAGE_METHODS,
                ", ".join(IMAGE_METHODS),
                self.method,
            ),
            "temperature": (self.temperature > 0, "a number > 0", self.temperature),
            "ascents": (self.ascents >= 0, "0 or more", self.ascents),
            "saliency": (0 < self.saliency <= 1, "a share above 0", self.saliency),
            "dampen_above": (self.dampen_above > 0, "> 0", self.dampen_above),
            "dampen_by": (self.dampen_by > 0, "> 0", self.dampen_by),
            "step": (self.step > 0, "a number > 0", self.step),
            "anchor": (self.anchor >= 0, "0 or more", self.anchor),
            "last_k": (self.last_k >= 1, "1 or more", self.last_k),
            "coefficient": (self.coefficient > 0, "a number > 0", self.coefficient),
        }
        check_values(checks)
        self.schedule()

    def schedule(self) -> Schedule:
        """The validated learning-rate schedule."""
        return Schedule(self.lr, self.steps, self.weight_decay, self.clip)
