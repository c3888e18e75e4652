"""Methods that train on retain rows only."""

from dataclasses import dataclass

import numpy as np
from torch.nn import functional

from capture.scoring.class_logits import class_logits
from erasure.unlearning.methods.base import Method, Run, at_least
from erasure.unlearning.training.image_task import ImageTask
from erasure.unlearning.training.parameters import Scope, reinitialize_
from erasure.unlearning.training.task import Losses, UnlearningTask


@dataclass(frozen=True)
class CFk(Method[UnlearningTask]):
    """Catastrophic forgetting of the last k blocks: they are trained on retain rows.

    Source: Goel et al. (2022), arXiv 2201.06640.

    Attributes:
        last_k: Number of last blocks that are trained, with everything after them.
    """

    name = "cf_k"
    reads_forget = False
    last_k: int = at_least(1, 1)

    def scope(self, task: UnlearningTask) -> Scope:
        """The last blocks and everything after them."""
        return task.last_blocks(self.last_k)

    def losses(self, run: Run[UnlearningTask]) -> Losses:
        """NLL of the retain rows, nats."""
        return Losses(None, run.keep_answers)


@dataclass(frozen=True)
class EUk(Method[UnlearningTask]):
    """Exact unlearning of the last k blocks: they are newly initialized and trained on retain rows.

    Source: Goel et al. (2022), arXiv 2201.06640.

    Attributes:
        last_k: Number of last blocks that are trained, with everything after them.
    """

    name = "eu_k"
    reads_forget = False
    adapters = False
    last_k: int = at_least(1, 1)

    def scope(self, task: UnlearningTask) -> Scope:
        """The last blocks and everything after them."""
        return task.last_blocks(self.last_k)

    def losses(self, run: Run[UnlearningTask]) -> Losses:
        """NLL of the retain rows, nats, from newly initialized weights."""
        reinitialize_(run.task.model, run.parameters, run.seed)
        return Losses(None, run.keep_answers)


@dataclass(frozen=True)
class L1Sparse(Method[ImageTask]):
    """Fine-tuning on retain images with an L1 penalty that decays to 0 over the run.

    Source: Jia et al. (2023), arXiv 2304.04934.

    Attributes:
        penalty: Largest weight of the sum of absolute weights.
    """

    name = "l1_sparse"
    modalities = ("images",)
    reads_forget = False
    penalty: float = at_least(0, 1e-3)

    def losses(self, run: Run[ImageTask]) -> Losses:
        """Cross-entropy of the retain labels, nats, with the penalty."""
        task, training = run.task, run.training
        decaying = iter(self.penalty * np.linspace(1, 0, training.steps, endpoint=False))

        def retain(rows: list[int]) -> float:
            pixels, labels = task.batch("retain", rows)
            loss = functional.cross_entropy(class_logits(task.model, pixels), labels)
            loss = loss + next(decaying) * sum(p.abs().sum() for p in run.parameters)
            return task.backward(loss, training.retain_weight)

        return Losses(None, retain)
