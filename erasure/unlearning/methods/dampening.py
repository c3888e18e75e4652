"""SSD (selective synaptic dampening): shrink the weights that matter most to the forget rows."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erasure.unlearning.methods.base import Method, positive
from erasure.unlearning.training.loop import Evaluate, TrainLog, only_training
from erasure.unlearning.training.settings import TrainingSettings
from erasure.unlearning.training.task import UnlearningTask
from evidence.progress import AUTO, Progress


@dataclass(frozen=True)
class SSD(Method[UnlearningTask]):
    """Dampen weights once, by their Fisher information, without training.

    Source: Foster, Schoepf, Brintrup (2023), arXiv 2308.07707.

    Attributes:
        dampen_above: Weights this many times as important to the forget rows as to all rows are
            dampened (the authors' alpha).
        dampen_by: Factor on the ratio of importances (the authors' lambda).
    """

    name = "ssd"
    adapters = False
    dampen_above: float = positive(10.0)
    dampen_by: float = positive(1.0)

    def uses_retain(self, training: TrainingSettings) -> bool:
        """Whatever the retain weight: importance is relative to all rows."""
        return True

    def run(
        self,
        task: UnlearningTask,
        training: TrainingSettings,
        *,
        evaluate: Evaluate | None = None,
        seed: int,
        progress: Progress = AUTO,
    ) -> TrainLog:
        """One edit; the log has the number of dampened weights."""
        with only_training(task.model, task.model.parameters()) as parameters:
            forget_fisher = task.fisher("forget", parameters)
            retain_fisher = task.fisher("retain", parameters)
            share = task.count("forget") / (task.count("forget") + task.count("retain"))
            above, by = self.dampen_above, self.dampen_by
            n_dampened = dampen_parameters_(
                parameters, forget_fisher, retain_fisher, share, above, by
            )
        return TrainLog(({"step": 1.0, "dampened": float(n_dampened)},))


def dampen_parameters_(
    parameters: Iterable[nn.Parameter],
    forget_fisher: Iterable[Tensor],
    retain_fisher: Iterable[Tensor],
    forget_share: float,
    above: float,
    by: float,
) -> int:
    """Apply ``dampen_`` to every parameter and return the number of dampened weights.

    Args:
        parameters: Changed in place.
        forget_fisher: Diagonal Fisher information on the forget data, as the parameters.
        retain_fisher: The same on the retain data.
        forget_share: Share of the forget data in all data, for the overall information.
        above: The authors' alpha, > 0.
        by: The authors' lambda, > 0.
    """
    return sum(
        dampen_(
            parameter.data, forget, forget_share * forget + (1 - forget_share) * retain, above, by
        )
        for parameter, forget, retain in zip(parameters, forget_fisher, retain_fisher, strict=True)
    )


def dampen_(weights: Tensor, forget: Tensor, overall: Tensor, above: float, by: float) -> int:
    """Shrink the weights that are much more important to the forget rows than to all rows.

    A weight with ``forget > above * overall`` is multiplied by ``min(by * overall / forget, 1)``.

    Args:
        weights: Changed in place.
        forget: Importance to the forget rows, of the weights' shape, >= 0.
        overall: Importance to all rows.
        above: The authors' alpha, > 0.
        by: The authors' lambda, > 0.

    Returns:
        Number of dampened weights.
    """
    chosen = forget > above * overall
    factor = (by * overall / forget.clamp(min=torch.finfo(forget.dtype).tiny)).clamp(max=1.0)
    with torch.no_grad():
        weights[chosen] *= factor[chosen]
    return int(chosen.sum())
