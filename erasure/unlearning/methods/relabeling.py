"""Methods that teach wrong answers, and SalUn's masks of the weights that matter."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from capture.network.structure import find_blocks, own_head_
from erasure.unlearning.methods.base import Method, Run, positive, share
from erasure.unlearning.training.frozen_prefix import cached_prefix
from erasure.unlearning.training.image_task import ImageTask, fgsm_target_class
from erasure.unlearning.training.loop import Schedule, shortest_row
from erasure.unlearning.training.parameters import Scope
from erasure.unlearning.training.settings import TrainingSettings
from erasure.unlearning.training.task import Losses, Term, TextTask, UnlearningTask


def relabel_term(run: Run[UnlearningTask]) -> Term:
    """Negative log-likelihood of the wrong answers, nats."""
    task, weight = run.task, run.training.forget_weight
    return lambda rows: task.nll("relabeled", rows, weight)


@dataclass(frozen=True)
class Relabel(Method[UnlearningTask]):
    """Training on wrong answers: given ones for text, random classes for images.

    Source: as in TOFU (Maini et al. 2024, arXiv 2401.06121) and the alternative answers of Eldan &
    Russinovich (2023, arXiv 2310.02238); random labels as in SalUn (Fan et al. 2023, arXiv
    2310.12508).
    """

    name = "relabel"
    needs = ("relabeled",)
    forget_part = "relabeled"

    def losses(self, run: Run[UnlearningTask]) -> Losses:
        """NLL of the wrong answers and of the retain answers, nats."""
        return Losses(relabel_term(run), run.keep_answers)


@dataclass(frozen=True)
class LastBlockRelabel(Method[TextTask]):
    """Relabeling that trains the last block alone, so everything before it is unchanged.

    Not published: it makes models whose knowledge is suppressed by construction.

    Attributes:
        train_head: Whether the output head is trained too.
    """

    name = "last_block_relabel"
    modalities = ("text",)
    needs = ("relabeled",)
    forget_part = "relabeled"
    train_head: bool = False

    def scope(self, task: TextTask) -> Scope:
        """The last block, and the output head if it is trained."""
        head = [own_head_(task.model)] if self.train_head else []
        return Scope.of(find_blocks(task.model)[-1], *head)

    def losses(self, run: Run[TextTask]) -> Losses:
        """NLL of the wrong answers and of the retain answers, nats."""
        task, weight = run.task, run.training.forget_weight
        return Losses(lambda rows: task.nll("relabeled", rows, weight), run.keep_answers)

    def during(self, run: Run[TextTask]) -> AbstractContextManager[None]:
        """The blocks below run once per row."""
        model = run.task.model
        return cached_prefix(model, shortest_row(model, run.task.data("relabeled")))


@dataclass(frozen=True)
class SalUn(Method[UnlearningTask]):
    """Relabeling of the weights with the largest forget gradient.

    Source: Fan, Liu, Zhang, Wong, Wei, Liu (2023), arXiv 2310.12508.

    Attributes:
        saliency: Share of the weights that are trained.
    """

    name = "salun"
    needs = ("relabeled",)
    forget_part = "relabeled"
    adapters = False
    saliency: float = share(0.5)

    def losses(self, run: Run[UnlearningTask]) -> Losses:
        """NLL of the wrong answers and of the retain answers, nats."""
        return Losses(relabel_term(run), run.keep_answers)

    def schedule(self, training: TrainingSettings) -> Schedule:
        """Without weight decay, which would also change the weights outside the mask."""
        return replace(training.schedule(), weight_decay=0.0)

    def during(self, run: Run[UnlearningTask]) -> AbstractContextManager[None]:
        """Gradients outside the mask are zero."""
        masks = saliency_masks(run.task, run.parameters, self.saliency)
        return masked_gradients(run.parameters, masks)


@dataclass(frozen=True)
class BoundaryShrink(Method[ImageTask]):
    """Training on the class across the nearest decision boundary.

    Source: Chen et al. (2023), arXiv 2303.11570.

    Attributes:
        step: Size of the FGSM step that finds the class, in pixel values.
    """

    name = "boundary_shrink"
    modalities = ("images",)
    reads_retain = False
    step: float = positive(0.2)

    def losses(self, run: Run[ImageTask]) -> Losses:
        """Cross-entropy of the neighboring class, nats."""
        pixels, labels = run.task.forget
        neighbor = fgsm_target_class(run.task.model, pixels, labels, self.step)
        task = replace(run.task, relabeled=(pixels, neighbor))
        weight = run.training.forget_weight
        return Losses(lambda rows: task.nll("relabeled", rows, weight), None)


def saliency_masks(
    task: UnlearningTask, parameters: list[nn.Parameter], share: float
) -> list[Tensor]:
    """Masks of the ``share`` of all weights with the largest forget gradient.

    Args:
        task: Its forget rows have their true answers.
        parameters: The parameters, which take gradients.
        share: In (0, 1]; one threshold for all parameters together.
    """
    for parameter in parameters:
        parameter.grad = None
    task.nll("forget", list(range(task.count("forget"))), 1.0)
    return largest_gradient_masks(parameters, share)


def largest_gradient_masks(parameters: list[nn.Parameter], share: float) -> list[Tensor]:
    """Masks of the ``share`` of weights with the largest gradients; clears the gradients.

    Args:
        parameters: With the gradients to compare.
        share: In (0, 1]; one threshold for all parameters together.
    """
    sizes = [torch.zeros_like(p) if p.grad is None else p.grad.abs() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    flat = torch.cat([size.flatten() for size in sizes])
    count = max(1, round(share * len(flat)))
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[flat.topk(count).indices] = True
    parts = mask.split([size.numel() for size in sizes])
    return [part.view_as(size) for part, size in zip(parts, sizes, strict=True)]


@contextmanager
def masked_gradients(parameters: list[nn.Parameter], masks: list[Tensor]) -> Iterator[None]:
    """Context manager that zeroes the gradients of the weights outside the masks.

    Decoupled weight decay acts without gradients: train without it.
    """
    handles = [
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
        for parameter, mask in zip(parameters, masks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
