"""The strongest fixed change of an image model that leaves everything else alone.

It is a change of the candidate's states, or the original's last block and classifier in
place of the candidate's own. Route, site and strength are those by which most of the
images fitted on are called the class, within two limits: of the images that stay, at
most two points fewer are named rightly, and of never-taught ones at most two points
more are called the class. Without the second limit a change that names whatever is
unfamiliar passes for one that brings a class back: networks that never saw the class
were steered to it that way (``docs/vision.md``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from audits.axes.restoration.image_steering import (
    STEERING_METHODS,
    SteeringEdit,
    SteeringFit,
    logprob_gradient,
    named_as_class,
    steering_hook,
    steering_sites,
    with_original_end,
)
from audits.axes.restoration.trial import MAX_RETAIN_DROP, STRENGTHS
from capture.data.images import ImageSet
from capture.network.hooks import Edit
from capture.network.sites import Sites, find_image_sites
from capture.scoring.class_logits import BATCH, image_states, pixel_logits

OWN_END = "its own last block"
ORIGINAL_END = "the original's last block in place"
PRESCREEN_IMAGES = 64
"""Images asked before the rest, to see whether a change is out of the question."""


@dataclass(frozen=True, eq=False)
class ModelVariant:
    """A network to run: the candidate, or the candidate with the original's end.

    Attributes:
        name: ``OWN_END`` or ``ORIGINAL_END``.
        model: The network.
        sites: Its sites.
    """

    name: str
    model: nn.Module
    sites: Sites

    def named(
        self, images: ImageSet, label: int | None, edits: dict[str, Edit]
    ) -> np.ndarray:
        """(image,) 1.0 where ``label``, or the image's own class, is named."""
        return named_as_class(self.model, images, edits, self.sites, label)


def model_variants(model: nn.Module, original: nn.Module) -> list[ModelVariant]:
    """The candidate, and with the original's end where the two are built alike."""
    ended = with_original_end(model, original)
    found = [ModelVariant(OWN_END, model, find_image_sites(model))]
    return (
        found
        if ended is None
        else [*found, ModelVariant(ORIGINAL_END, ended, find_image_sites(ended))]
    )


def fit_steering(
    variant: ModelVariant, original: nn.Module, images: ImageSet
) -> SteeringFit:
    """Fit changes of the candidate's states on images of the class and of others."""
    sites = steering_sites(variant.sites)

    def slope(label: int, site: str) -> torch.Tensor:
        return logprob_gradient(variant.model, images, label, site, variant.sites)

    return SteeringFit(
        image_states(variant.model, images, sites, variant.sites),
        image_states(original, images, ["final"], find_image_sites(original)),
        cache(slope),
        images.labels,
    )


@dataclass(frozen=True, eq=False)
class SideEffectLimits:
    """Images that a change has to leave alone, and how far it may not.

    Attributes:
        retain: Of the classes that stay.
        never_taught: Of classes that nobody was taught, where there are any.
        label: What none of the unknown may be called because of it.
        max_wrong: Most of the kept that may be named wrongly.
        max_named: Most of the unknown that may be called ``label``.
    """

    retain: ImageSet
    never_taught: ImageSet | None
    label: int
    max_wrong: float
    max_named: float

    @classmethod
    def of(
        cls,
        variant: ModelVariant,
        retain: ImageSet,
        never_taught: ImageSet | None,
        label: int,
    ) -> "SideEffectLimits":
        """Two points more of either than the candidate does unchanged."""
        wrong = float((1 - variant.named(retain, None, {})).sum())
        strange, count = 0.0, 0
        if never_taught is not None:
            strange, count = (
                float(variant.named(never_taught, label, {}).sum()),
                len(never_taught),
            )
        return cls(
            retain,
            never_taught,
            label,
            wrong + MAX_RETAIN_DROP * len(retain) + 1e-9,
            strange + MAX_RETAIN_DROP * count + 1e-9,
        )

    def cost(
        self, variant: ModelVariant, edits: dict[str, Edit]
    ) -> dict[str, float] | None:
        """What the change costs, or None where that is too much.

        Faults only add up, so some images are asked first, and the others only where
        these leave it open.
        """
        strange, wrong = 0.0, 0.0
        if self.never_taught is not None:
            strange = float(variant.named(self.never_taught, self.label, edits).sum())
        rows = np.arange(len(self.retain))
        for part in (rows[:PRESCREEN_IMAGES], rows[PRESCREEN_IMAGES:]):
            if strange > self.max_named or wrong > self.max_wrong:
                return None
            if len(part):
                right = variant.named(self.retain.select(part), None, edits)
                wrong += float((1 - right).sum())
        if wrong > self.max_wrong:
            return None
        asked = len(self.never_taught) if self.never_taught is not None else 1
        return {"retain": 1 - wrong / len(self.retain), "unknown": strange / asked}


@dataclass(frozen=True, eq=False)
class ChosenEdit:
    """A change, ready to be made to any image.

    Attributes:
        variant: What it is made in.
        said: Share of the images it was chosen on that are called the class.
        cost: ``retain``, share of the kept named rightly, and ``unknown``, share of the
            guard's never-taught images called the class; None where nothing is done.
        route: How it was fitted; None where nothing is added.
        site: Where it is made.
        strength: How much of it.
        steering: What is added at strength 1.
    """

    variant: ModelVariant
    said: float
    cost: dict[str, float] | None = None
    route: str | None = None
    site: str | None = None
    strength: float = 0.0
    steering: SteeringEdit | None = field(default=None, repr=False)

    def named(self, images: ImageSet, label: int) -> np.ndarray:
        """(image,) 1.0 where the class is named under the change."""
        edits = {}
        if self.steering is not None and self.site is not None:
            edits = {self.site: steering_hook(self.steering, self.strength)}
        return self.variant.named(images, label, edits)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = ("route", "site", "strength", "said", "cost")
        return {"body": self.variant.name} | {
            name: getattr(self, name) for name in names
        }


def search_best_edit(
    variants: Sequence[ModelVariant],
    images: ImageSet,
    limits: SideEffectLimits,
    make_edit: Callable[[str, str], SteeringEdit | None],
) -> ChosenEdit:
    """The change by which most of ``images`` are called the class, within the limits.

    Of two equals the earlier stands: the original's end before anything added, early
    sites before late, little before much. To that end nothing is added: with end and
    direction both the original's, a retrain from its starting weights that never saw
    the class named 82 % of it (tuning seed 1), and 18 % with the end alone.

    Args:
        variants: The candidate, and with the original's end if that may be put in.
        images: What is to be called the class.
        limits: What is to be left alone.
        make_edit: From a route and a site to the change at strength 1, if there is one.
    """
    own, label = variants[0], limits.label
    best = ChosenEdit(own, float(own.named(images, label, {}).mean()))
    for body in variants[1:]:
        said = float(body.named(images, label, {}).mean())
        cost = limits.cost(body, {}) if said > best.said else None
        if cost is not None:
            best = ChosenEdit(body, said, cost)
    for route in STEERING_METHODS:
        for site in steering_sites(own.sites):
            if best.said >= 1.0:
                return best
            push = make_edit(route, site)
            if push is None:
                continue
            shares = _said(own, images, label, site, push)
            for strength, said in zip(STRENGTHS, shares, strict=True):
                if said <= best.said:
                    continue
                cost = limits.cost(own, {site: steering_hook(push, strength)})
                if cost is None:
                    break  # stronger steering costs more
                best = ChosenEdit(own, said, cost, route, site, strength, push)
    return best


def _said(
    body: ModelVariant, images: ImageSet, label: int, site: str, push: SteeringEdit
) -> list[float]:
    """(strength,) share called the class; every strength in the same passes."""
    hits = torch.zeros(len(STRENGTHS))
    most = max(1, BATCH // len(STRENGTHS))
    for part in images.pixels.split(most):
        # One pass holds every image once a strength, strength after strength.
        sizes = torch.tensor(STRENGTHS).repeat_interleave(len(part))
        rows = part.repeat(len(STRENGTHS), 1, 1, 1)
        edits = {site: steering_hook(push, sizes)}
        said = pixel_logits(body.model, rows, edits, body.sites).argmax(1) == label
        hits += said.reshape(len(STRENGTHS), -1).sum(1)
    return (hits.double() / len(images)).tolist()
