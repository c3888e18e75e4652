"""Features and losses of image classifiers, for class unlearning."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from capture.network.hooks import record_places
from capture.network.sites import Place
from capture.network.structure import classifier_of, find_blocks
from capture.scoring.class_logits import class_logits
from erasure.unlearning.training.objectives import distillation

CHUNK_IMAGES = 256


def logits_and_features(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(image, class) logits and (image, d) inputs of the final linear layer."""
    return _logits_and(model, pixels, Place("features", classifier_of(model), "in"))


def logits_and_states(model: nn.Module, pixels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(image, class) logits and a block's output, in the model's own shape."""
    return _logits_and(model, pixels, Place("states", find_blocks(model)[block], "out"))


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
