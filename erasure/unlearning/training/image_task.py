"""What methods of class forgetting minimise, on pixels and class numbers."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from capture.network.hooks import first_tensor
from capture.network.structure import classifier_of, find_blocks
from capture.scoring.class_logits import class_logits
from erasure.unlearning.training.objectives import distillation

CHUNK_IMAGES = 256


def logits_and_features(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and what the classifier receives, (image, class) and (image, d)."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = classifier_of(model).register_forward_pre_hook(keep)
    try:
        logits = class_logits(model, pixels)
    finally:
        handle.remove()
    return logits, seen[0]


def logits_and_states(
    model: nn.Module, pixels: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """Logits and what a block gives, in the model's own shape."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        seen.append(first_tensor(output))

    handle = find_blocks(model)[block].register_forward_hook(keep)
    try:
        logits = class_logits(model, pixels)
    finally:
        handle.remove()
    return logits, seen[0]


def frozen_features(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and features of the model as it is now, without gradients."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(pixels), CHUNK_IMAGES):
            parts.append(
                logits_and_features(model, pixels[start : start + CHUNK_IMAGES])
            )
    logits, features = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(features)


def class_centroids(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(class, d) mean features; a class without images is NaN."""
    one_hot = functional.one_hot(labels, classes).to(features)
    return (one_hot.T @ features) / one_hot.sum(0)[:, None]


def nearest_centroid_loss(features: Tensor, centres: Tensor) -> Tensor:
    """Mean cosine distance of each row to the nearest of some centres.

    Source: DUCK (Cotogni et al. 2023, arXiv 2312.02052).
    """
    alike = functional.normalize(features, dim=1) @ functional.normalize(centres).T
    return (1 - alike.max(1).values).mean()


def fgsm_target_class(
    model: nn.Module, pixels: Tensor, labels: Tensor, step: float
) -> Tensor:
    """(image,) the wrong class a step of FGSM leads towards.

    The highest wrong class of ``pixels + step * sign(gradient of the loss)``: the
    neighbour across the nearest boundary, also where the step stays short of it.

    Source: boundary shrink (Chen et al. 2023, arXiv 2303.11570).
    """
    asked = pixels.clone().requires_grad_(True)
    loss = functional.cross_entropy(class_logits(model, asked), labels)
    (slope,) = torch.autograd.grad(loss, asked)
    with torch.no_grad():
        logits = class_logits(model, pixels + step * slope.sign()).clone()
        logits[torch.arange(len(labels)), labels] = -torch.inf
    return logits.argmax(1)


def uniform_loss(logits: Tensor) -> Tensor:
    """Mean cross-entropy of the uniform distribution with the model's, nats."""
    return -logits.log_softmax(1).mean()


def mean_distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over images of ``distillation``."""
    return distillation(logits, teacher, temperature).mean()
