"""Methods that act on internal states."""

from dataclasses import dataclass

from torch import nn
from torch.nn import functional

from capture.network.structure import block_at, down_projection, find_blocks
from capture.scoring.class_logits import class_logits
from erasure.unlearning.methods.base import Method, Run, one_of, positive
from erasure.unlearning.training.image_task import (
    ImageTask,
    class_centroids,
    frozen_features,
    logits_and_features,
    nearest_centroid_loss,
)
from erasure.unlearning.training.objectives import control_vector
from erasure.unlearning.training.parameters import Scope
from erasure.unlearning.training.task import Losses, UnlearningTask
from evidence.errors import InputError
from evidence.seeds import torch_rng


@dataclass(frozen=True)
class RMU(Method[UnlearningTask]):
    """Representation misdirection: forget states towards a random vector, retain states held.

    Source: Li et al. (2024), arXiv 2403.03218. The authors use a retain weight (alpha) of 1200 on a
    7B model. For images it is transferred from language models.

    Attributes:
        block: Block whose output is steered, counted from 0, or the block itself.
        coefficient: Norm of the control vector; for images in mean norms of the block's states.
        parameters: ``"down"`` trains the down projections of the block and the two before it as the
            authors do, ``"all"`` the model, ``"prefix"`` the block and all blocks before it.
    """

    name = "rmu"
    scores_answers = False
    block: int | nn.Module = 7
    coefficient: float = 6.5
    parameters: str = one_of("down", "all", "prefix")

    def steered(self, model: nn.Module) -> nn.Module:
        """The block whose output is steered.

        Raises:
            InputError: The model has no such block.
        """
        if not isinstance(self.block, nn.Module):
            return block_at(model, self.block, "the block that RMU steers (rmu_layer)")
        if not any(self.block is block for block in find_blocks(model)):
            raise InputError(
                "rmu_module is not one of the model's blocks", got=type(self.block).__name__
            )
        return self.block

    def scope(self, task: UnlearningTask) -> Scope:
        """As ``parameters`` says."""
        last = self.steered(task.model)
        if self.parameters == "all":
            return Scope.of(task.model)
        blocks = find_blocks(task.model)
        up_to = blocks[: blocks.index(last) + 1]
        if self.parameters == "prefix":
            return Scope.of(*up_to)
        modules = [down_projection(block) for block in up_to[-3:]]
        # The authors train only the matrix, even if there is a bias.
        return Scope(modules, [module.get_parameter("weight") for module in modules])

    def losses(self, run: Run[UnlearningTask]) -> Losses:
        """Mean squared distances, in squared units of the states."""
        task, training = run.task, run.training
        block = self.steered(task.model)
        retain = None
        if run.n_retain:
            retain = task.state_term("retain", block, None, training.retain_weight)
        width, unit = task.state_size(block)
        rng = torch_rng(run.seed, "control vector")
        control = control_vector(width, self.coefficient * unit, rng)
        forget = task.state_term("forget", block, control, training.forget_weight)
        return Losses(forget, retain)


@dataclass(frozen=True)
class DUCK(Method[ImageTask]):
    """Forget features towards the nearest centroid of another class.

    Source: Cotogni et al. (2023), arXiv 2312.02052. The authors use a retain weight of 1.4.

    Attributes:
        temperature: Of the retain loss; the authors use 2.
    """

    name = "duck"
    modalities = ("images",)
    temperature: float = positive(2.0)

    def losses(self, run: Run[ImageTask]) -> Losses:
        """Cosine distance to the nearest centroid; cross-entropy of the retain labels, nats."""
        task, training = run.task, run.training
        labels = task.retain[1]
        features = frozen_features(task.model, task.retain[0])[1]
        classes = int(max(int(task.forget[1].max()), int(labels.max()))) + 1
        centroids = class_centroids(features, labels, classes)
        centroids = centroids[~centroids.isnan().any(1)]

        def forget(rows: list[int]) -> float:
            found = logits_and_features(task.model, task.forget[0][rows])[1]
            return task.backward(nearest_centroid_loss(found, centroids), training.forget_weight)

        def retain(rows: list[int]) -> float:
            pixels, true = task.batch("retain", rows)
            logits = class_logits(task.model, pixels) / self.temperature
            return task.backward(functional.cross_entropy(logits, true), training.retain_weight)

        return Losses(forget, retain)
