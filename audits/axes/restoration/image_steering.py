"""Steering edits of image states, and a model's predictions under them.

No label is used at test time: an edit is fitted on some images and then applied to the states
of *every* image. It is either one vector, or one vector scaled by a fixed linear reading of the
image's own state, so that any information about the image is the candidate's.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from capture.data.images import ImageSet
from capture.network.hooks import Edit, evaluation_mode, patch
from capture.network.sites import Sites, find_image_sites
from capture.network.structure import model_device
from capture.scoring.class_logits import class_logits, logits_with_edits
from evidence.errors import InputError

CLASS_MEAN = "its own mean of the class, less that of the rest"
LOGPROB_GRADIENT = "the slope of the class's own log-probability"
AMPLIFIED_READING = "what the original's reader of the class finds, amplified"
STEERING_METHODS = (CLASS_MEAN, LOGPROB_GRADIENT, AMPLIFIED_READING)
# The original supplies at most the linear reading, never a direction to add. Adding its class
# mean, or the mean difference of the class between the models, steered a retrain that never saw
# the class to 42 % of it (same starting weights, tuning seed 1).
# Its reading is tried at the classifier's input alone. Earlier states still encode the picture,
# where the reading would itself act as a classifier, in such a retrain too.
RIDGE = 0.1
"""Ridge penalty of the original's discriminant, in units of the mean coordinate variance."""


@dataclass(frozen=True, eq=False)
class LinearSteeringEdit:
    """A steering edit proportional to a fixed linear reading of an image's state.

    Attributes:
        probe: (coordinate,) weights over the flattened state.
        offset: (coordinate,) subtracted before the reading.
        direction: Added per unit of the reading; shape of one image's state.
    """

    probe: Tensor
    offset: Tensor
    direction: Tensor


SteeringEdit = Tensor | LinearSteeringEdit
"""A constant vector, or a vector proportional to a reading."""


def steering_sites(where: Sites) -> list[str]:
    """The output of each block, and the input of the classifier."""
    return [*where.of("resid"), *where.of("final")]


def with_original_end(model: nn.Module, original: nn.Module) -> nn.Module | None:
    """A copy of a model with the original's last block and everything after it.

    The counterpart of ``attribution.patching.transplant`` for images: it undoes an edit of the
    last block or of the classifier.

    Returns:
        The copy; None where the two ends differ in structure.
    """
    ended = copy.deepcopy(model)
    modules, original_modules = _end(ended), _end(original)
    if [_shapes(module) for module in modules] != [_shapes(module) for module in original_modules]:
        return None
    with torch.no_grad():
        for part, original_part in zip(modules, original_modules, strict=True):
            for tensor, original_tensor in zip(_held(part), _held(original_part), strict=True):
                tensor.copy_(original_tensor)
    return ended


def _end(model: nn.Module) -> list[nn.Module]:
    """The modules from the last block on, in registration order."""
    where, modules = find_image_sites(model), list(model.modules())
    return modules[modules.index(where.places[where.of("resid")[-1]].module) :]


def _held(module: nn.Module) -> list[Tensor]:
    """A module's own parameters and buffers, without its children's."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _shapes(module: nn.Module) -> tuple[str, list[torch.Size]]:
    return type(module).__name__, [tensor.shape for tensor in _held(module)]


def named_as_class(
    model: nn.Module,
    images: ImageSet,
    edits: Mapping[str, Edit],
    where: Sites,
    label: int | None = None,
) -> np.ndarray:
    """(image,) 1.0 where the prediction is the image's class, or ``label`` if given."""
    predicted = logits_with_edits(model, images, edits, where).argmax(1).numpy()
    target = images.labels if label is None else label
    return (predicted == target).astype(float)


def logprob_gradient(
    model: nn.Module, images: ImageSet, label: int, site: str, where: Sites
) -> Tensor:
    """Mean gradient of a class's log-probability with respect to the states at a site."""
    leaf: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        # Detached: nothing below the site is differentiated.
        leaf.append(value.detach().requires_grad_(True))
        return leaf[0]

    pixels = images.pixels.to(model_device(model))
    with torch.enable_grad(), evaluation_mode(model), patch(model, {site: keep}, known_sites=where):
        logprob = class_logits(model, pixels).log_softmax(1)[:, label].mean()
    (gradient,) = torch.autograd.grad(logprob, leaf[0])
    return gradient.sum(0).detach().float().cpu()


def steering_hook(steering: SteeringEdit, strength: float | Tensor) -> Edit:
    """The edit that applies a steering edit to the states of every image.

    Args:
        strength: Scalar, or (row,) of one batch to try several at once.

    Raises:
        InputError: the strength or the edit is not finite.
    """
    write = steering.direction if isinstance(steering, LinearSteeringEdit) else steering
    size = torch.as_tensor(strength)
    if not bool(torch.isfinite(size).all() and torch.isfinite(write).all()):
        raise InputError("the steering strength or the change is not finite", got=str(strength))

    def edit(value: Tensor) -> Tensor:
        step = size.to(value).reshape(-1, *[1] * (value.dim() - 1)) * write.to(value)
        if not isinstance(steering, LinearSteeringEdit):
            return value + step
        read = (value.flatten(1) - steering.offset.to(value)) @ steering.probe.to(value)
        # Readings below the mean of the other classes count as 0; nothing is subtracted.
        reading = read.clamp(min=0.0).reshape(-1, *[1] * (value.dim() - 1))
        return value + reading * step

    return edit


@dataclass(frozen=True, eq=False)
class SteeringFit:
    """States of the fitting images, from which steering edits are made.

    Attributes:
        candidate_states: Site to (image, ...) states in the candidate.
        original_states: The same in the original, at the classifier's input.
        gradient: From a class and a site to the gradient in the candidate.
        labels: (image,) class of each.
    """

    candidate_states: Mapping[str, Tensor]
    original_states: Mapping[str, Tensor]
    gradient: Callable[[int, str], Tensor]
    labels: np.ndarray

    def steering_edit(
        self, method: str, site: str, label: int, read_label: int | None = None
    ) -> SteeringEdit | None:
        """The edit of a method at strength 1; None where it would change nothing.

        Args:
            method: One of ``STEERING_METHODS``.
            site: Where it is applied.
            label: The class to steer to.
            read_label: The class of the linear reading; ``label`` by default.
        """
        in_class = torch.from_numpy(self.labels == label)
        states = self.candidate_states[site]
        edit = states[in_class].mean(0) - states[~in_class].mean(0)
        if method != CLASS_MEAN:
            gradient = self.gradient(label, site)
            edit = gradient * (edit.norm() / gradient.norm().clamp(min=1e-12))
        if not float(edit.norm()) > 1e-6:
            return None
        if method == AMPLIFIED_READING:
            if site != "final":
                return None
            return self._amplified(site, label if read_label is None else read_label, edit)
        return edit

    def _amplified(self, site: str, label: int, write: Tensor) -> LinearSteeringEdit:
        """The original's discriminant of a class: 0 on the other classes' mean, 1 on its own."""
        states = self.original_states[site].flatten(1).double()
        in_class = torch.from_numpy(self.labels == label)
        class_mean, other_mean = states[in_class].mean(0), states[~in_class].mean(0)
        centered = torch.where(in_class[:, None], states - class_mean, states - other_mean)
        covariance = centered.T @ centered / len(states)
        covariance.diagonal().add_(RIDGE * covariance.diagonal().mean() + 1e-12)
        probe = torch.linalg.solve(covariance, class_mean - other_mean)
        probe /= (class_mean - other_mean) @ probe
        return LinearSteeringEdit(probe.float(), other_mean.float(), write)


def randomly_rotated(steering: SteeringEdit, rng: np.random.Generator) -> SteeringEdit:
    """A random edit of equal norm: the constant vector or the reading is drawn again."""
    if isinstance(steering, LinearSteeringEdit):
        return replace(steering, probe=_randomly_rotated(steering.probe, rng))
    return _randomly_rotated(steering, rng)


def _randomly_rotated(vector: Tensor, rng: np.random.Generator) -> Tensor:
    drawn = torch.from_numpy(rng.standard_normal(tuple(vector.shape))).float()
    return drawn * (vector.norm() / drawn.norm())


def split_in_halves(
    images: ImageSet, rng: np.random.Generator, max_images: int | None = None
) -> tuple[ImageSet, ImageSet]:
    """Two disjoint halves, of at most ``max_images`` images together."""
    order = rng.permutation(len(images))[:max_images]
    return images.select(np.sort(order[::2])), images.select(np.sort(order[1::2]))
