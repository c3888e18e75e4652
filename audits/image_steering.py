"""Fixed changes of an image model's states, and what a model calls images under them.

Nothing here reads a label at test time: a change is fitted on some images and then
added to the states of *every* image, whatever it shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from capture.hooks import Edit, evaluating, patch
from capture.image_sites import find_image_sites
from capture.images import ImageSet
from capture.sites import Sites, model_device
from erasure.image_losses import class_logits
from evidence.errors import InputError

BATCH = 256
ROUTES = (
    "its own mean of the class, less that of the rest",
    "the original's mean of the class, less that of the rest",
    "what the class lost in the mean, put back",
    "the slope of the class's own log-probability",
)


def state_sites(where: Sites) -> list[str]:
    """What leaves each block, and what enters the classifier."""
    return [*where.of("resid"), *where.of("final")]


def read_logits(
    model: nn.Module, images: ImageSet, edits: Mapping[str, Edit], where: Sites
) -> Tensor:
    """(image, class) logits under edits, on the CPU."""
    device, found = model_device(model), []
    with torch.no_grad(), evaluating(model), patch(model, edits, where=where):
        for start in range(0, len(images), BATCH):
            part = images.pixels[start : start + BATCH].to(device)
            found.append(class_logits(model, part).float().cpu())
    return torch.cat(found)


def named(
    model: nn.Module,
    images: ImageSet,
    edits: Mapping[str, Edit],
    where: Sites,
    label: int | None = None,
) -> np.ndarray:
    """(image,) 1.0 where the model names an image's class, or ``label`` if given."""
    said = read_logits(model, images, edits, where).argmax(1).numpy()
    wanted = images.labels if label is None else label
    return (said == wanted).astype(float)


def states_of(
    model: nn.Module, images: ImageSet, sites: list[str], where: Sites
) -> dict[str, Tensor]:
    """Site to (image, ...) whole states, on the CPU."""
    found: dict[str, list[Tensor]] = {site: [] for site in sites}

    def keep(site: str) -> Edit:
        def edit(value: Tensor) -> Tensor:
            found[site].append(value.detach().float().cpu())
            return value

        return edit

    edits = {site: keep(site) for site in sites}
    read_logits(model, images, edits, where)
    return {site: torch.cat(parts) for site, parts in found.items()}


def slopes_of(
    model: nn.Module, images: ImageSet, label: int, sites: list[str], where: Sites
) -> dict[str, Tensor]:
    """Site to the mean slope of a class's log-probability over the images' states."""
    held: dict[str, Tensor] = {}

    def keep(site: str) -> Edit:
        def edit(value: Tensor) -> Tensor:
            # Cut from below, so that each site's slope is its own.
            held[site] = value.detach().requires_grad_(True)
            return held[site]

        return edit

    found = {}
    pixels = images.pixels.to(model_device(model))
    for site in sites:
        with (
            torch.enable_grad(),
            evaluating(model),
            patch(model, {site: keep(site)}, where=where),
        ):
            logprob = class_logits(model, pixels).log_softmax(1)[:, label].mean()
        (slope,) = torch.autograd.grad(logprob, held[site])
        found[site] = slope.sum(0).detach().float().cpu()
    return found


def adding(push: Tensor, strength: float) -> Edit:
    """The edit that adds the same change to the states of every image.

    Raises:
        InputError: the strength or the change is not finite.
    """
    if not np.isfinite(strength) or not bool(torch.isfinite(push).all()):
        raise InputError(
            "the steering strength or the change is not finite", got=str(strength)
        )

    def edit(value: Tensor) -> Tensor:
        return value + strength * push.to(value)

    return edit


@dataclass(frozen=True, eq=False)
class Fitted:
    """States of the images that changes are fitted on.

    Attributes:
        own: Site to (image, ...) states in the candidate.
        first: The same in the original.
        slopes: Class to site to the slope in the candidate.
        labels: (image,) class of each.
    """

    own: Mapping[str, Tensor]
    first: Mapping[str, Tensor]
    slopes: Mapping[int, Mapping[str, Tensor]]
    labels: np.ndarray

    def push(self, route: str, site: str, label: int) -> Tensor | None:
        """What the route adds at strength 1, of one image's state's shape."""
        mine = torch.from_numpy(self.labels == label)
        if route == ROUTES[2]:
            push = (self.first[site][mine] - self.own[site][mine]).mean(0)
        else:
            states = (self.first if route == ROUTES[1] else self.own)[site]
            push = states[mine].mean(0) - states[~mine].mean(0)
        if route == ROUTES[3]:
            slope = self.slopes[label][site]
            push = slope * (push.norm() / slope.norm().clamp(min=1e-12))
        return push if float(push.norm()) > 1e-6 else None


def turned(push: Tensor, rng: np.random.Generator) -> Tensor:
    """Another change of the same size, in a direction drawn at random."""
    drawn = torch.from_numpy(rng.standard_normal(tuple(push.shape))).float()
    return drawn * (push.norm() / drawn.norm())


def halves(
    images: ImageSet, rng: np.random.Generator, most: int | None = None
) -> tuple[ImageSet, ImageSet]:
    """Two halves without a common image, of so many images together at most."""
    order = rng.permutation(len(images))[:most]
    return images.rows(np.sort(order[::2])), images.rows(np.sort(order[1::2]))


def image_sites(model: nn.Module) -> Sites:
    """The model's sites, blocks as the units."""
    return find_image_sites(model)
