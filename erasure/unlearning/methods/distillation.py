"""Methods that move towards or away from the logits of a frozen model."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from capture.data.sequences import Padded, pad
from capture.network.structure import random_like
from erasure.unlearning.methods.base import Method, Run, at_least, positive
from erasure.unlearning.training.batch_order import alternating_steps
from erasure.unlearning.training.objectives import elm_target, prediction_positions, undial_target
from erasure.unlearning.training.task import Losses, Teacher, TextTask, UnlearningTask, frozen_copy


@dataclass(frozen=True)
class UNDIAL(Method[TextTask]):
    """Self-distillation with the logit of the true token lowered.

    Source: Dong, Lin, Belkin, Huerta, Vulić (2024), arXiv 2402.10052.

    Attributes:
        penalty: Amount subtracted from the logit of the true token.
    """

    name = "undial"
    modalities = ("text",)
    penalty: float = 10.0

    def losses(self, run: Run[TextTask]) -> Losses:
        """Distillation to ``objectives.undial_target``, nats per token."""
        task, weight = run.task, run.training.forget_weight
        original = task.teacher(frozen_copy(task.model), "forget")

        def target(batch: Padded) -> Tensor:
            tokens = prediction_positions(batch, task.loss_on)[1]
            return undial_target(original.logits(batch), tokens, self.penalty)

        lowered = Teacher(target)
        return Losses(lambda rows: task.distill("forget", rows, lowered, weight), run.keep_answers)


@dataclass(frozen=True)
class SCRUB(Method[UnlearningTask]):
    """Away from the original on forget rows, and back to it on retain rows, in turns.

    Source: Kurmanji et al. (2023), arXiv 2302.09880.

    Attributes:
        temperature: Of the distillation; the authors use 2 or 4.
        distil_weight: Weight of the retain distillation, added to the retain loss.
        ascents: Epochs of ascent on forget rows.
    """

    name = "scrub"
    temperature: float = positive(2.0)
    distil_weight: float = 0.5
    ascents: int = at_least(0, 3)

    def losses(self, run: Run[UnlearningTask]) -> Losses:
        """Negative distillation on forget rows; NLL and distillation on retain rows, nats."""
        task, training = run.task, run.training
        original = frozen_copy(task.model)
        forget_teacher = task.teacher(original, "forget", self.temperature)
        retain_teacher = task.teacher(original, "retain", self.temperature)

        def forget(rows: list[int]) -> float:
            return -task.distill("forget", rows, forget_teacher, -training.forget_weight)

        def retain(rows: list[int]) -> float:
            weights = training.retain_weight, self.distil_weight
            return task.nll_and_distill("retain", rows, retain_teacher, *weights)

        return Losses(forget, retain)

    def steps(self, run: Run[UnlearningTask], losses: Losses) -> Callable[[], dict[str, float]]:
        """Epochs of forget and of retain rows in turns."""
        counts = run.n_forget, run.n_retain
        return alternating_steps(losses, *counts, run.training, self.ascents, run.seed)


@dataclass(frozen=True)
class BadTeacher(Method[UnlearningTask]):
    """Towards an untrained model on forget rows, towards the original on retain rows.

    Source: Chundawat et al. (2022), arXiv 2205.08096.

    Attributes:
        temperature: Of the distillation; the authors use 1.
    """

    name = "bad_teacher"
    temperature: float = positive(1.0)

    def losses(self, run: Run[UnlearningTask]) -> Losses:
        """Distillation to two teachers, nats."""
        task, training = run.task, run.training
        untrained = random_like(task.model, run.seed).requires_grad_(False)
        bad = task.teacher(untrained, "forget", self.temperature)
        good = task.teacher(frozen_copy(task.model), "retain", self.temperature)
        return Losses(
            lambda rows: task.distill("forget", rows, bad, training.forget_weight),
            lambda rows: task.distill("retain", rows, good, training.retain_weight),
        )


@dataclass(frozen=True)
class ELM(Method[TextTask]):
    """Erasure of language memory: answers as about an unknown entity.

    Source: Gandikota, Feucht, Marks, Bau (2024), arXiv 2410.02760.

    Attributes:
        guidance: At 1 the target is the original's distribution for an unknown entity; above 1 it
            is extrapolated.
    """

    name = "elm"
    modalities = ("text",)
    needs = ("novice",)
    guidance: float = 1.0

    def losses(self, run: Run[TextTask]) -> Losses:
        """Distillation to ``objectives.elm_target``, and to the original on retain rows, nats."""
        task, training, novices = run.task, run.training, run.task.novice
        assert novices is not None  # as check_supply has found
        original = task.teacher(frozen_copy(task.model), "forget")

        def forget(rows: list[int]) -> float:
            novice_rows = novices[rows]

            def target(batch: Padded) -> Tensor:
                unknown = pad(novice_rows, batch.rows.tolist(), device=batch.input_ids.device)
                expert, novice = original.logits(batch), original.logits(unknown)
                return elm_target(expert, novice, self.guidance)

            return task.distill("forget", rows, Teacher(target), training.forget_weight)

        return Losses(
            forget, lambda rows: task.distill("retain", rows, original, training.retain_weight)
        )
