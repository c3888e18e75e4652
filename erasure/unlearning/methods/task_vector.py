"""Task vector negation."""

from dataclasses import dataclass

import torch

from erasure.unlearning.methods.base import Method
from erasure.unlearning.training.loop import Evaluate, TrainLog, finetune_
from erasure.unlearning.training.parameters import trained_parameters
from erasure.unlearning.training.settings import TrainingSettings
from erasure.unlearning.training.task import TextTask
from evidence.progress import AUTO, Progress


@dataclass(frozen=True)
class TaskVector(Method[TextTask]):
    """Fine-tune on the forget rows, then subtract a multiple of the change.

    Source: Ilharco et al. (2022), arXiv 2212.04089.

    Attributes:
        scale: Factor on the subtracted change.
    """

    name = "task_vector"
    modalities = ("text",)
    reads_retain = False
    scale: float = 1.0

    def run(
        self,
        task: TextTask,
        training: TrainingSettings,
        *,
        evaluate: Evaluate | None = None,
        seed: int,
        progress: Progress = AUTO,
    ) -> TrainLog:
        """The log is that of fine-tuning; ``evaluate`` reads the final model."""
        model, adapters = task.model, (training.lora_rank, training.lora_alpha)
        initial = [parameter.detach().clone() for parameter in model.parameters()]
        with trained_parameters(model, self.scope(task), *adapters, seed) as parameters:
            log = finetune_(
                model,
                task.forget,
                lr=training.lr,
                steps=training.steps,
                batch_size=training.batch_size,
                weight_decay=training.weight_decay,
                clip=training.clip,
                warmup=training.warmup,
                loss_on=task.loss_on,
                parameters=parameters,
                seed=seed,
                label=self.name,
                progress=progress,
            )
        with torch.no_grad():
            for parameter, start in zip(model.parameters(), initial, strict=True):
                parameter.copy_(start - self.scale * (parameter - start))
        if evaluate is None:
            return log
        return TrainLog((*log.rows, {"step": float(training.steps)} | evaluate(model)), log.stopped)
