"""Class unlearning of image classifiers: the task, its features and its losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from capture.network.hooks import record_places
from capture.network.sites import Place
from capture.network.structure import classifier_of, find_blocks
from capture.scoring.class_logits import class_logits
from erasure.unlearning.training.objectives import distillation
from erasure.unlearning.training.parameters import Scope
from erasure.unlearning.training.task import Part, Supply, Teacher, Term
from evidence.errors import InputError
from evidence.seeds import numpy_rng

LabeledImages = tuple[Tensor, Tensor]
"""Pixels (image, channel, height, width) and class numbers (image,)."""
# Images in one pass without gradients, and images whose states set the unit of RMU's coefficient.
CHUNK_IMAGES = 256
STATE_SAMPLE = 64


@dataclass(frozen=True)
class ImageTask:
    """Images of one class to forget and of others to keep.

    Attributes:
        model: The image classifier in training.
        forget: Training images of the class, all with one label.
        retain: Training images of the other classes.
        relabeled: The forget images with wrong labels.
    """

    modality: ClassVar[str] = "images"
    adapters: ClassVar[bool] = False
    model: nn.Module
    forget: LabeledImages
    retain: LabeledImages
    relabeled: LabeledImages | None = None

    def __post_init__(self) -> None:
        classes = self.forget[1].unique().tolist()
        if len(classes) != 1 or len(self.retain[0]) == 0:
            raise InputError(
                "class unlearning needs images of one class, and images of others",
                expected="one class to forget, one image or more to keep",
                got=f"{len(classes)} classes to forget, {len(self.retain[0])} images to keep",
            )
        if bool((self.retain[1] == classes[0]).any()):
            raise InputError(
                f"class {classes[0]} is to be forgotten and to be kept",
                fix="Remove its images from the retain set",
            )

    def data(self, part: Part) -> LabeledImages:
        """The images of a part."""
        images = {"forget": self.forget, "retain": self.retain, "relabeled": self.relabeled}[part]
        assert images is not None  # as check_supply has found
        return images

    def batch(self, part: Part, rows: list[int]) -> LabeledImages:
        """Some images of a part."""
        pixels, labels = self.data(part)
        return pixels[rows], labels[rows]

    def count(self, part: Part) -> int:
        """Number of images of a part."""
        return len(self.data(part)[0])

    def check_supply(self, supply: Supply, method: str) -> None:
        """Check that there are wrong labels; images have no other supplies."""
        if supply != "relabeled" or self.relabeled is None:
            raise InputError(f"{method} needs {supply} rows", got="none")

    def check_scored(self, part: Part) -> None:
        """Nothing to check: every image has a label."""

    def backward(self, loss: Tensor, weight: float) -> float:
        """Add the gradient of ``weight`` times a loss and return the loss."""
        (weight * loss).backward()
        return float(loss.detach())

    def nll(self, part: Part, rows: list[int], weight: float) -> float:
        """Mean cross-entropy of the labels."""
        return self.backward(self._cross_entropy(*self.batch(part, rows)), weight)

    def _cross_entropy(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(class_logits(self.model, pixels), labels)

    def logprob_loss(
        self, part: Part, rows: list[int], loss: Callable[[Tensor], Tensor], weight: float
    ) -> float:
        """Mean of a loss of the labels' log-probabilities."""
        pixels, labels = self.batch(part, rows)
        logprobs = class_logits(self.model, pixels).log_softmax(1).gather(1, labels[:, None])
        return self.backward(loss(logprobs[:, 0]).mean(), weight)

    def teacher(self, source: nn.Module, part: Part, temperature: float = 1.0) -> Teacher:
        """Logits of all images, computed once."""
        logits = frozen_features(source, self.data(part)[0])[0]
        return Teacher(lambda rows: logits[rows], temperature)

    def distill(self, part: Part, rows: list[int], teacher: Teacher, weight: float) -> float:
        """Mean distillation loss over images."""
        logits = class_logits(self.model, self.data(part)[0][rows])
        loss = mean_distillation(logits, teacher.logits(rows), teacher.temperature)
        return self.backward(loss, weight)

    def nll_and_distill(
        self, part: Part, rows: list[int], teacher: Teacher, weight: float, distil_weight: float
    ) -> float:
        """One pass; ``weight`` is that of the sum of both losses."""
        pixels, labels = self.batch(part, rows)
        logits = class_logits(self.model, pixels)
        distilled = mean_distillation(logits, teacher.logits(rows), teacher.temperature)
        loss = functional.cross_entropy(logits, labels) + distil_weight * distilled
        return self.backward(loss, weight)

    def fisher(self, part: Part, parameters: list[nn.Parameter]) -> list[Tensor]:
        """As ``image_fisher``."""
        return image_fisher(self.model, parameters, self.data(part))

    def last_blocks(self, count: int) -> Scope:
        """With everything after them."""
        return Scope([self.model], last_parameters(self.model, count))

    def state_size(self, block: nn.Module) -> tuple[int, float]:
        """The unit is the mean norm of the states of the first retain images."""
        states = self._states(self.retain[0][:STATE_SAMPLE], block)
        width = states.shape[1] if states.dim() == 4 else states.shape[-1]
        return width, float(_features_last(states).norm(dim=-1).mean())

    def state_term(
        self, part: Part, block: nn.Module, target: Tensor | None, weight: float
    ) -> Term:
        """Mean over all entries of the states."""
        pixels = self.data(part)[0]
        vector = None if target is None else target.to(pixels)
        frozen = self._states(pixels, block) if vector is None else pixels[:0]

        def term(rows: list[int]) -> float:
            states = logits_and_states(self.model, pixels[rows], block)[1]
            if vector is None:
                difference = states - frozen[rows]
            else:
                difference = _features_last(states) - vector
            return self.backward(difference.square().mean(), weight)

        return term

    def _states(self, pixels: Tensor, block: nn.Module) -> Tensor:
        with torch.no_grad():
            return logits_and_states(self.model, pixels, block)[1]


def random_wrong_labels(forget: LabeledImages, retain: LabeledImages, seed: int) -> LabeledImages:
    """The forget images, each with a retain class drawn at random."""
    classes = retain[1].unique()
    drawn = numpy_rng(seed, "wrong labels").integers(len(classes), size=len(forget[1]))
    return forget[0], classes[torch.from_numpy(drawn)]


def last_parameters(model: nn.Module, count: int) -> list[nn.Parameter]:
    """Parameters of the last ``count`` blocks and of everything after them.

    Raises:
        InputError: The model has fewer blocks.
    """
    blocks = find_blocks(model)
    if count > len(blocks):
        raise InputError(
            "the model has fewer blocks than are to be trained",
            expected=f"at most {len(blocks)}",
            got=str(count),
        )
    modules = list(model.modules())
    first = modules.index(blocks[-count])
    parameters = {id(p): p for m in modules[first:] for p in m.parameters(recurse=False)}
    return list(parameters.values())


def first_parameters(model: nn.Module, count: int) -> list[nn.Parameter]:
    """Parameters of the first ``count`` blocks and of everything registered before them.

    Raises:
        InputError: The model has no more blocks than that.
    """
    blocks = find_blocks(model)
    if count >= len(blocks):
        raise InputError(
            "no block would be left behind those that are to be trained",
            expected=f"fewer than {len(blocks)}",
            got=str(count),
        )
    modules = list(model.modules())
    behind = modules.index(blocks[count])
    parameters = {id(p): p for m in modules[:behind] for p in m.parameters(recurse=False)}
    return list(parameters.values())


def _features_last(states: Tensor) -> Tensor:
    """Feature maps with the feature axis last; other states unchanged."""
    return states.movedim(1, -1) if states.dim() == 4 else states


def logits_and_features(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(image, class) logits and (image, d) inputs of the final linear layer."""
    return _logits_and(model, pixels, Place("features", classifier_of(model), "in"))


def logits_and_states(model: nn.Module, pixels: Tensor, block: nn.Module) -> tuple[Tensor, Tensor]:
    """(image, class) logits and a block's output, in the model's own shape."""
    return _logits_and(model, pixels, Place("states", block, "out"))


def _logits_and(model: nn.Module, pixels: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    with record_places([place]) as captured:
        logits = class_logits(model, pixels)
    return logits, captured[place.name]


def frozen_features(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and features of the current model, without gradients."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(pixels), CHUNK_IMAGES):
            parts.append(logits_and_features(model, pixels[start : start + CHUNK_IMAGES]))
    logits, features = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(features)


def class_centroids(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(class, d) mean features; NaN for a class without images."""
    one_hot = functional.one_hot(labels, classes).to(features)
    return (one_hot.T @ features) / one_hot.sum(0)[:, None]


def nearest_centroid_loss(features: Tensor, centroids: Tensor) -> Tensor:
    """Mean cosine distance of each row to its nearest centroid.

    Source: DUCK (Cotogni et al. 2023, arXiv 2312.02052).
    """
    similarity = functional.normalize(features, dim=1) @ functional.normalize(centroids).T
    return (1 - similarity.max(1).values).mean()


def fgsm_target_class(model: nn.Module, pixels: Tensor, labels: Tensor, step: float) -> Tensor:
    """(image,) the most likely wrong class after one FGSM step.

    The most likely wrong class at ``pixels + step * sign(gradient of the loss)``: the neighbor
    across the nearest decision boundary, even if the step does not cross it.

    Source: boundary shrink (Chen et al. 2023, arXiv 2303.11570).
    """
    inputs = pixels.clone().requires_grad_(True)
    loss = functional.cross_entropy(class_logits(model, inputs), labels)
    (gradient,) = torch.autograd.grad(loss, inputs)
    with torch.no_grad():
        logits = class_logits(model, pixels + step * gradient.sign()).clone()
        logits[torch.arange(len(labels)), labels] = -torch.inf
    return logits.argmax(1)


def uniform_loss(logits: Tensor) -> Tensor:
    """Mean cross-entropy of the uniform distribution with the model's, in nats."""
    return -logits.log_softmax(1).mean()


def mean_distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean of ``distillation`` over images."""
    return distillation(logits, teacher, temperature).mean()


def image_fisher(
    model: nn.Module, parameters: list[nn.Parameter], images: LabeledImages
) -> list[Tensor]:
    """Diagonal Fisher information: mean squared gradient of one image's loss."""
    names = {id(p): name for name, p in model.named_parameters()}
    values = {names[id(p)]: p.detach() for p in parameters}

    def image_loss(weights: dict[str, Tensor], pixel: Tensor, label: Tensor) -> Tensor:
        output = torch.func.functional_call(model, weights, (pixel[None],))
        logits = output if isinstance(output, Tensor) else output.logits
        return functional.cross_entropy(logits, label[None])

    # Vectorize over images: one image at a time takes ten times as long.
    per_image_gradients = torch.func.vmap(torch.func.grad(image_loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(value) for name, value in values.items()}
    # Fused attention cannot be vectorized by vmap.
    with sdpa_kernel(SDPBackend.MATH):
        for start in range(0, len(images[0]), 64):
            gradients = per_image_gradients(
                values, *(gradient[start : start + 64] for gradient in images)
            )
            for name, gradient in gradients.items():
                total[name] += gradient.square().sum(0) / len(images[0])
    return [total[names[id(p)]] for p in parameters]
