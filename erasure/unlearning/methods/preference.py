"""Methods that prefer another answer to the true one."""

from dataclasses import dataclass

from torch import Tensor

from capture.data.sequences import Padded, pad
from erasure.unlearning.methods.base import Method, Run, positive
from erasure.unlearning.training.objectives import dpo, sequence_logprobs
from erasure.unlearning.training.task import Losses, TextTask


@dataclass(frozen=True)
class DPO(Method[TextTask]):
    """Direct preference optimization with another answer, such as a refusal, as the preferred one.

    Source: Rafailov et al. (2023), arXiv 2305.18290; IdkDPO as in TOFU (Maini et al. 2024, arXiv
    2401.06121).

    Attributes:
        beta: Inverse temperature, per nat; the authors use 0.1.
    """

    name = "dpo"
    modalities = ("text",)
    needs = ("preferred",)
    beta: float = positive(0.1)

    def losses(self, run: Run[TextTask]) -> Losses:
        """``objectives.dpo`` against the model as it was given, row by row, mean over rows."""
        task, preferred = run.task, run.task.data("relabeled")
        reference = [task.frozen_logprobs("relabeled"), task.frozen_logprobs("forget")]

        def forget(rows: list[int]) -> float:
            def losses(batch: Padded) -> Tensor:
                device, in_batch = batch.input_ids.device, batch.rows.tolist()
                pair = pad(preferred[rows], in_batch, device=device), batch
                gains = [
                    sequence_logprobs(task.model, one, task.loss_on)
                    - frozen[rows][in_batch].to(device)
                    for one, frozen in zip(pair, reference, strict=True)
                ]
                return dpo(gains[0], gains[1], self.beta)

            return task.batch_loss(task.forget[rows], losses, run.training.forget_weight)

        return Losses(forget, run.keep_answers)
