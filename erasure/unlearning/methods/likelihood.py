"""Methods that lower the likelihood of the forget answers."""

from dataclasses import dataclass

from torch import Tensor

from capture.data.sequences import Padded
from erasure.unlearning.methods.base import Method, Run, positive
from erasure.unlearning.training.objectives import (
    npo,
    prediction_positions,
    sequence_logprobs,
    simnpo,
)
from erasure.unlearning.training.task import Losses, Term, TextTask, UnlearningTask


def ascent_term(run: Run[UnlearningTask]) -> Term:
    """Gradient ascent on the forget rows; the loss is the negative NLL, in nats."""
    task, weight = run.task, run.training.forget_weight
    return lambda rows: -task.nll("forget", rows, -weight)


@dataclass(frozen=True)
class GradAscent(Method[UnlearningTask]):
    """Gradient ascent on the forget rows alone.

    Source: as in TOFU (Maini et al. 2024, arXiv 2401.06121).
    """

    name = "grad_ascent"
    reads_retain = False

    def losses(self, run: Run[UnlearningTask]) -> Losses:
        """Negative NLL of the forget rows, nats."""
        return Losses(ascent_term(run), None)


@dataclass(frozen=True)
class GradDiff(Method[UnlearningTask]):
    """Gradient difference: ascent on the forget rows, descent on the retain rows.

    Source: as in TOFU (Maini et al. 2024, arXiv 2401.06121).
    """

    name = "grad_diff"

    def losses(self, run: Run[UnlearningTask]) -> Losses:
        """Negative NLL of the forget rows and NLL of the retain rows, nats."""
        return Losses(ascent_term(run), run.keep_answers)


@dataclass(frozen=True)
class NPO(Method[TextTask]):
    """Negative preference optimization.

    Source: Zhang et al. (2024), arXiv 2404.05868.

    Attributes:
        beta: Inverse temperature, per nat; the authors use 0.1.
    """

    name = "npo"
    modalities = ("text",)
    beta: float = positive(0.1)

    def losses(self, run: Run[TextTask]) -> Losses:
        """``objectives.npo`` against the model as it was given, mean over rows."""
        task, reference = run.task, run.task.frozen_logprobs("forget")

        def forget(rows: list[int]) -> float:
            frozen = reference[rows]

            def losses(batch: Padded) -> Tensor:
                logprobs = sequence_logprobs(task.model, batch, task.loss_on)
                return npo(logprobs, frozen[batch.rows].to(logprobs.device), self.beta)

            return task.batch_loss(task.forget[rows], losses, run.training.forget_weight)

        return Losses(forget, run.keep_answers)


@dataclass(frozen=True)
class SimNPO(Method[TextTask]):
    """NPO without a reference, normalized by length.

    Source: Fan et al. (2024), arXiv 2410.07163.

    Attributes:
        beta: Inverse temperature, tokens per nat; the authors use 2.5 or 4.5.
        margin: Reward margin.
    """

    name = "simnpo"
    modalities = ("text",)
    beta: float = positive(2.5)
    margin: float = 0.0

    def losses(self, run: Run[TextTask]) -> Losses:
        """``objectives.simnpo``, mean over rows."""
        task = run.task

        def losses(batch: Padded) -> Tensor:
            logprobs = sequence_logprobs(task.model, batch, task.loss_on)
            length = prediction_positions(batch, task.loss_on)[0].sum(1)
            return simnpo(logprobs, length, self.beta, self.margin)

        def forget(rows: list[int]) -> float:
            return task.batch_loss(task.forget[rows], losses, run.training.forget_weight)

        return Losses(forget, run.keep_answers)
