"""Fixed changes of an image model's states, and what a model calls images under them.

Nothing here reads a label at test time: a change is fitted on some images and then
made to the states of *every* image, whatever it shows. It is one vector, or one vector
in proportion to what a fixed reader finds in the image's own state; all that tells
images apart is then the candidate's.
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
# The original may read, and nothing of its states is added: its mean of the class, or
# what the class lost in the mean, put back, named 42 % of the class in a retrain from
# its starting weights that never saw it (tuning seed 1).
# Its reader is tried on what enters the classifier alone. Early states still hold the
# picture: there it would be a classifier of its own, and name the class in such a
# retrain as well.
RIDGE = 0.1
"""Penalty of the original's reader, in mean variances of a coordinate."""


@dataclass(frozen=True, eq=False)
class LinearSteeringEdit:
    """A change in proportion to what a fixed reader finds in an image's state.

    Attributes:
        probe: (coordinate,) over the flattened state.
        offset: What is taken off before the reader, likewise flattened.
        direction: What is added, of one image's state's shape, where it reads 1.
    """

    probe: Tensor
    offset: Tensor
    direction: Tensor


SteeringEdit = Tensor | LinearSteeringEdit
"""What is added: the same for every image, or in proportion to a reading."""


def steering_sites(where: Sites) -> list[str]:
    """What leaves each block, and what enters the classifier."""
    return [*where.of("resid"), *where.of("final")]


def with_original_end(model: nn.Module, original: nn.Module) -> nn.Module | None:
    """A copy of a model in which the original's last block, and all after it, stands.

    The images' twin of ``attribution.patching.transplant``: an edit of the last block
    or of the classifier is undone, and only what reaches that block speaks.

    Returns:
        The copy; None where the two ends are not built alike.
    """
    ended = copy.deepcopy(model)
    here, there = _end(ended), _end(original)
    if [_shapes(each) for each in here] != [_shapes(each) for each in there]:
        return None
    with torch.no_grad():
        for mine, theirs in zip(here, there, strict=True):
            for own, other in zip(_held(mine), _held(theirs), strict=True):
                own.copy_(other)
    return ended


def _end(model: nn.Module) -> list[nn.Module]:
    """The modules from the last block on, in the order they are listed in."""
    where, modules = find_image_sites(model), list(model.modules())
    return modules[modules.index(where.places[where.of("resid")[-1]].module) :]


def _held(module: nn.Module) -> list[Tensor]:
    """A module's own weights and running figures, its children's left out."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _shapes(module: nn.Module) -> tuple[str, list[torch.Size]]:
    return type(module).__name__, [each.shape for each in _held(module)]


def named_as_class(
    model: nn.Module,
    images: ImageSet,
    edits: Mapping[str, Edit],
    where: Sites,
    label: int | None = None,
) -> np.ndarray:
    """(image,) 1.0 where the model names an image's class, or ``label`` if given."""
    said = logits_with_edits(model, images, edits, where).argmax(1).numpy()
    wanted = images.labels if label is None else label
    return (said == wanted).astype(float)


def logprob_gradient(
    model: nn.Module, images: ImageSet, label: int, site: str, where: Sites
) -> Tensor:
    """The mean slope of a class's log-probability over the images' states at a site."""
    held: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        # Cut from below: nothing beneath the site is differentiated.
        held.append(value.detach().requires_grad_(True))
        return held[0]

    pixels = images.pixels.to(model_device(model))
    with (
        torch.enable_grad(),
        evaluation_mode(model),
        patch(model, {site: keep}, known_sites=where),
    ):
        logprob = class_logits(model, pixels).log_softmax(1)[:, label].mean()
    (slope,) = torch.autograd.grad(logprob, held[0])
    return slope.sum(0).detach().float().cpu()


def steering_hook(steering: SteeringEdit, strength: float | Tensor) -> Edit:
    """The edit that makes the same change to the states of every image.

    Args:
        steering: The change.
        strength: How much of it; (row,) of one batch, to try several at once.

    Raises:
        InputError: the strength or the change is not finite.
    """
    write = steering.direction if isinstance(steering, LinearSteeringEdit) else steering
    size = torch.as_tensor(strength)
    if not bool(torch.isfinite(size).all() and torch.isfinite(write).all()):
        raise InputError(
            "the steering strength or the change is not finite", got=str(strength)
        )

    def edit(value: Tensor) -> Tensor:
        step = size.to(value).reshape(-1, *[1] * (value.dim() - 1)) * write.to(value)
        if not isinstance(steering, LinearSteeringEdit):
            return value + step
        read = (value.flatten(1) - steering.offset.to(value)) @ steering.probe.to(value)
        # Below the mean of the rest nothing was found, and nothing is taken away.
        found = read.clamp(min=0.0).reshape(-1, *[1] * (value.dim() - 1))
        return value + found * step

    return edit


@dataclass(frozen=True, eq=False)
class SteeringFit:
    """States of the images that changes are fitted on.

    Attributes:
        candidate_states: Site to (image, ...) states in the candidate.
        original_states: The same in the original, of what enters the classifier.
        gradient: From a class and a site to the slope in the candidate.
        labels: (image,) class of each.
    """

    candidate_states: Mapping[str, Tensor]
    original_states: Mapping[str, Tensor]
    gradient: Callable[[int, str], Tensor]
    labels: np.ndarray

    def steering_edit(
        self, method: str, site: str, label: int, read_label: int | None = None
    ) -> SteeringEdit | None:
        """What the route adds at strength 1; None where it would add nothing.

        Args:
            method: One of ``STEERING_METHODS``.
            site: Where.
            label: The class that is to be named.
            read_label: The class that an amplified reading reads; ``label`` by default.
        """
        mine = torch.from_numpy(self.labels == label)
        states = self.candidate_states[site]
        push = states[mine].mean(0) - states[~mine].mean(0)
        if method != CLASS_MEAN:
            slope = self.gradient(label, site)
            push = slope * (push.norm() / slope.norm().clamp(min=1e-12))
        if not float(push.norm()) > 1e-6:
            return None
        if method == AMPLIFIED_READING:
            if site != "final":
                return None
            return self._amplified(
                site, label if read_label is None else read_label, push
            )
        return push

    def _amplified(self, site: str, label: int, write: Tensor) -> LinearSteeringEdit:
        """The original's discriminant of a class, 0 on the rest and 1 on its mean."""
        states = self.original_states[site].flatten(1).double()
        mine = torch.from_numpy(self.labels == label)
        one, rest = states[mine].mean(0), states[~mine].mean(0)
        inner = torch.where(mine[:, None], states - one, states - rest)
        second = inner.T @ inner / len(states)
        second.diagonal().add_(RIDGE * second.diagonal().mean() + 1e-12)
        reader = torch.linalg.solve(second, one - rest)
        reader /= (one - rest) @ reader
        return LinearSteeringEdit(reader.float(), rest.float(), write)


def randomly_rotated(steering: SteeringEdit, rng: np.random.Generator) -> SteeringEdit:
    """Another change of the same size: what is added, or read, drawn at random."""
    if isinstance(steering, LinearSteeringEdit):
        return replace(steering, probe=_randomly_rotated(steering.probe, rng))
    return _randomly_rotated(steering, rng)


def _randomly_rotated(push: Tensor, rng: np.random.Generator) -> Tensor:
    drawn = torch.from_numpy(rng.standard_normal(tuple(push.shape))).float()
    return drawn * (push.norm() / drawn.norm())


def split_in_halves(
    images: ImageSet, rng: np.random.Generator, max_images: int | None = None
) -> tuple[ImageSet, ImageSet]:
    """Two halves without a common image, of so many images together at most."""
    order = rng.permutation(len(images))[:max_images]
    return images.select(np.sort(order[::2])), images.select(np.sort(order[1::2]))
