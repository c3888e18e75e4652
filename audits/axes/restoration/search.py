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

from audits.axes.restoration.image_routes import (
    BATCH,
    ROUTES,
    Fitted,
    Push,
    adding,
    image_sites,
    named,
    pixel_logits,
    slope_of,
    state_sites,
    states_of,
    with_end_of,
)
from audits.axes.restoration.trial import RETAIN_DROP, STRENGTHS
from capture.data.images import ImageSet
from capture.network.hooks import Edit
from capture.network.sites import Sites

OWN = "its own last block"
ENDED = "the original's last block in place"
EARLY = 64
"""Images asked before the rest, to see whether a change is out of the question."""


@dataclass(frozen=True, eq=False)
class Body:
    """A network to run: the candidate, or the candidate with the original's end.

    Attributes:
        name: ``OWN`` or ``ENDED``.
        model: The network.
        where: Its sites.
    """

    name: str
    model: nn.Module
    where: Sites

    def called(
        self, images: ImageSet, label: int | None, edits: dict[str, Edit]
    ) -> np.ndarray:
        """(image,) 1.0 where ``label``, or the image's own class, is named."""
        return named(self.model, images, edits, self.where, label)


def bodies_of(model: nn.Module, original: nn.Module) -> list[Body]:
    """The candidate, and with the original's end where the two are built alike."""
    ended = with_end_of(model, original)
    found = [Body(OWN, model, image_sites(model))]
    return found if ended is None else [*found, Body(ENDED, ended, image_sites(ended))]


def fit_changes(body: Body, original: nn.Module, both: ImageSet) -> Fitted:
    """Fit changes of the candidate's states on images of the class and of others."""
    sites = state_sites(body.where)

    def slope(label: int, site: str) -> torch.Tensor:
        return slope_of(body.model, both, label, site, body.where)

    return Fitted(
        states_of(body.model, both, sites, body.where),
        states_of(original, both, ["final"], image_sites(original)),
        cache(slope),
        both.labels,
    )


@dataclass(frozen=True, eq=False)
class Guard:
    """Images that a change has to leave alone, and how far it may not.

    Attributes:
        kept: Of the classes that stay.
        unknown: Of classes that nobody was taught, where there are any.
        label: What none of the unknown may be called because of it.
        wrong: Most of the kept that may be named wrongly.
        strange: Most of the unknown that may be called ``label``.
    """

    kept: ImageSet
    unknown: ImageSet | None
    label: int
    wrong: float
    strange: float

    @classmethod
    def of(
        cls, body: Body, kept: ImageSet, unknown: ImageSet | None, label: int
    ) -> "Guard":
        """Two points more of either than the candidate does unchanged."""
        wrong = float((1 - body.called(kept, None, {})).sum())
        strange, count = 0.0, 0
        if unknown is not None:
            strange, count = float(body.called(unknown, label, {}).sum()), len(unknown)
        return cls(
            kept,
            unknown,
            label,
            wrong + RETAIN_DROP * len(kept) + 1e-9,
            strange + RETAIN_DROP * count + 1e-9,
        )

    def cost(self, body: Body, edits: dict[str, Edit]) -> dict[str, float] | None:
        """What the change costs, or None where that is too much.

        Faults only add up, so some images are asked first, and the others only where
        these leave it open.
        """
        strange, wrong = 0.0, 0.0
        if self.unknown is not None:
            strange = float(body.called(self.unknown, self.label, edits).sum())
        rows = np.arange(len(self.kept))
        for part in (rows[:EARLY], rows[EARLY:]):
            if strange > self.strange or wrong > self.wrong:
                return None
            if len(part):
                right = body.called(self.kept.select(part), None, edits)
                wrong += float((1 - right).sum())
        if wrong > self.wrong:
            return None
        asked = len(self.unknown) if self.unknown is not None else 1
        return {"retain": 1 - wrong / len(self.kept), "unknown": strange / asked}


@dataclass(frozen=True, eq=False)
class Chosen:
    """A change, ready to be made to any image.

    Attributes:
        body: What it is made in.
        said: Share of the images it was chosen on that are called the class.
        cost: ``retain``, share of the kept named rightly, and ``unknown``, share of the
            guard's never-taught images called the class; None where nothing is done.
        route: How it was fitted; None where nothing is added.
        site: Where it is made.
        strength: How much of it.
        push: What is added at strength 1.
    """

    body: Body
    said: float
    cost: dict[str, float] | None = None
    route: str | None = None
    site: str | None = None
    strength: float = 0.0
    push: Push | None = field(default=None, repr=False)

    def called(self, images: ImageSet, label: int) -> np.ndarray:
        """(image,) 1.0 where the class is named under the change."""
        edits = {}
        if self.push is not None and self.site is not None:
            edits = {self.site: adding(self.push, self.strength)}
        return self.body.called(images, label, edits)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = ("route", "site", "strength", "said", "cost")
        return {"body": self.body.name} | {name: getattr(self, name) for name in names}


def strongest(
    bodies: Sequence[Body],
    images: ImageSet,
    guard: Guard,
    make: Callable[[str, str], Push | None],
) -> Chosen:
    """The change by which most of ``images`` are called the class, within the limits.

    Of two equals the earlier stands: the original's end before anything added, early
    sites before late, little before much. To that end nothing is added: with end and
    direction both the original's, a retrain from its starting weights that never saw
    the class named 82 % of it (tuning seed 1), and 18 % with the end alone.

    Args:
        bodies: The candidate, and with the original's end if that may be put in.
        images: What is to be called the class.
        guard: What is to be left alone.
        make: From a route and a site to the change at strength 1, if there is one.
    """
    own, label = bodies[0], guard.label
    best = Chosen(own, float(own.called(images, label, {}).mean()))
    for body in bodies[1:]:
        said = float(body.called(images, label, {}).mean())
        cost = guard.cost(body, {}) if said > best.said else None
        if cost is not None:
            best = Chosen(body, said, cost)
    for route in ROUTES:
        for site in state_sites(own.where):
            if best.said >= 1.0:
                return best
            push = make(route, site)
            if push is None:
                continue
            shares = _said(own, images, label, site, push)
            for strength, said in zip(STRENGTHS, shares, strict=True):
                if said <= best.said:
                    continue
                cost = guard.cost(own, {site: adding(push, strength)})
                if cost is None:
                    break  # stronger steering costs more
                best = Chosen(own, said, cost, route, site, strength, push)
    return best


def _said(
    body: Body, images: ImageSet, label: int, site: str, push: Push
) -> list[float]:
    """(strength,) share called the class; every strength in the same passes."""
    hits = torch.zeros(len(STRENGTHS))
    most = max(1, BATCH // len(STRENGTHS))
    for part in images.pixels.split(most):
        # One pass holds every image once a strength, strength after strength.
        sizes = torch.tensor(STRENGTHS).repeat_interleave(len(part))
        rows = part.repeat(len(STRENGTHS), 1, 1, 1)
        edits = {site: adding(push, sizes)}
        said = pixel_logits(body.model, rows, edits, body.where).argmax(1) == label
        hits += said.reshape(len(STRENGTHS), -1).sum(1)
    return (hits.double() / len(images)).tolist()
