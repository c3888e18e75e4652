"""FAMR, forgetting by anchored maximum-entropy regularization, without influence functions."""

from dataclasses import dataclass

from capture.scoring.class_logits import class_logits
from erasure.unlearning.methods.base import Method, Run, at_least
from erasure.unlearning.training.image_task import ImageTask, uniform_loss
from erasure.unlearning.training.task import Losses


@dataclass(frozen=True)
class FAMR(Method[ImageTask]):
    """Forget images towards the uniform distribution, weights anchored at the original's.

    Built from the method's abstract alone, without its influence-function step.

    Attributes:
        anchor: Weight of the squared distance to the original's weights.
    """

    name = "famr"
    modalities = ("images",)
    reads_retain = False
    anchor: float = at_least(0, 1e-3)

    def losses(self, run: Run[ImageTask]) -> Losses:
        """Cross-entropy of the uniform distribution, nats, with the anchor."""
        task = run.task
        origin = [parameter.detach().clone() for parameter in run.parameters]

        def forget(rows: list[int]) -> float:
            distance = sum(
                (parameter - start).square().sum()
                for parameter, start in zip(run.parameters, origin, strict=True)
            )
            logits = class_logits(task.model, task.forget[0][rows])
            loss = uniform_loss(logits) + self.anchor * distance
            return task.backward(loss, run.training.forget_weight)

        return Losses(forget, None)
