"""Restoration trial of one image model: choose an edit on one half, test on the other.

One fixed edit is fitted on half of the forgotten class's images and chosen there within limits
on its side effects (``audits.axes.restoration.search``). It is tested on the other half; then
the halves are swapped. The same search, with equal freedom, is run for classes that no model
was taught, among random edits, among edits made for other classes, and in a model retrained
without the class. These show how much of the restoration is due to the search alone. After
arXiv 2602.18505, whose own test is in ``audits.axes.restoration.image_state_injection``.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from audits.axes.restoration.image_steering import (
    AMPLIFIED_READING,
    SteeringEdit,
    SteeringFit,
    named_as_class,
    randomly_rotated,
    split_in_halves,
)
from audits.axes.restoration.net_rate import MIN_LOST, net_of_worst_control
from audits.axes.restoration.search import (
    SideEffectLimits,
    fit_steering,
    model_variants,
    search_best_edit,
)
from audits.axes.restoration.trial import NAME
from capture.data.images import ImageSet
from capture.data.invented_classes import invent_images
from capture.network.sites import find_image_sites
from evidence.errors import InputError
from evidence.intervals import average_by_entity
from evidence.results import MIN_RANGE
from evidence.seeds import numpy_rng

MAX_RETAIN = 240
N_UNSEEN_CLASSES = 3
"""Number of never-taught classes for which the search is repeated."""
MIN_IMAGES = 8


def unseen_classes(
    original: nn.Module, retain: ImageSet, label: int, count: int, seed: int
) -> ImageSet:
    """``N_UNSEEN_CLASSES`` invented classes, at most ``count`` images each.

    Args:
        original: Images that it predicts as the forgotten class are left out.
        retain: Images of the retain classes.
        label: The forgotten class.
        count: Number of forgotten images: a smaller class would be a weaker control.
        seed: Of the choice.
    """
    rng = numpy_rng(seed, NAME, "never taught")
    invented = invent_images(retain, N_UNSEEN_CLASSES * count, rng, N_UNSEEN_CLASSES)
    return invented.select(
        named_as_class(original, invented, {}, find_image_sites(original), label) == 0
    )


def restore_images(
    original: nn.Module,
    model: nn.Module,
    forget: ImageSet,
    retain: ImageSet,
    never_taught: ImageSet,
    seed: int,
) -> dict[str, Any]:
    """Search for steering edits of ``model``, every forgotten image tested once; JSON-ready.

    Args:
        original: Model before unlearning.
        model: The candidate.
        forget: Images of the forgotten class that no model was trained on.
        retain: The same of the other classes.
        never_taught: Images of classes that no model saw; the largest classes are used.
        seed: Of halves and controls.

    Returns:
        ``ids`` (image,); ``plain``, ``steered``, ``own``, ``random`` and ``others``: (image,)
        1.0 where the image is predicted as the class without an edit, under the chosen edit,
        under the best edit that keeps the candidate's last block, or under the best of random
        edits or of edits for another class; ``never``: the same of never-taught images, each
        under the best edit for its own class; ``never_ids`` and ``never_kinds`` of those;
        ``choices`` and ``never_choices``.

    Raises:
        InputError: the forget images are of several classes, or too few; no never-taught class
            is large enough.
    """
    label = only_class(forget)
    kinds = _kinds(never_taught)
    variants = model_variants(model, original)
    variant = variants[0]
    parts = split_in_halves(forget, numpy_rng(seed, NAME, "forget"))
    retain_halves = split_in_halves(retain, numpy_rng(seed, NAME, "retain"), 2 * MAX_RETAIN)
    unseen_halves = [
        split_in_halves(class_images, numpy_rng(seed, NAME, "kind", str(index)))
        for index, class_images in enumerate(kinds)
    ]
    plain = variant.named(forget, label, {})
    arms = ("steered", "own", "random", "others")
    named_by_arm: dict[str, dict[str, float]] = {arm: {} for arm in arms}
    never_taught_hits: dict[str, tuple[float, int]] = {}
    choices, never_taught_choices = [], []
    for number in (0, 1):
        rng = numpy_rng(seed, NAME, "controls", str(number))
        fit, test = parts[number], parts[1 - number]
        fitted = fit_steering(variant, original, fit + retain_halves[number])
        half = [class_halves[number] for class_halves in unseen_halves]
        limits = SideEffectLimits.of(variant, retain_halves[number], _joined(half), label)
        other_class = int(rng.choice(np.unique(retain.labels)))
        steered = search_best_edit(variants, fit, limits, _of_class(fitted, label))
        alone = steered
        if steered.variant is not variant:
            alone = search_best_edit(variants[:1], fit, limits, _of_class(fitted, label))
        by_arm = {
            "steered": steered,
            "own": alone,
            # A random last block would predict nothing, so controls keep the candidate's.
            "random": search_best_edit(variants[:1], fit, limits, _at_random(fitted, label, rng)),
            "others": search_best_edit(
                variants[:1], fit, limits, _of_other(fitted, label, other_class)
            ),
        }
        choices.append(by_arm["steered"].to_dict())
        for arm, chosen in by_arm.items():
            hits = chosen.named(test, label).tolist()
            named_by_arm[arm].update(zip(test.ids, hits, strict=True))
        for index, class_halves in enumerate(unseen_halves):
            # The same search for a never-taught class; the others limit side effects.
            class_half = replace(half[index], labels=np.full(len(half[index]), label))
            fitted = fit_steering(variant, original, class_half + retain_halves[number])
            others = _joined([h for position, h in enumerate(half) if position != index])
            limits = SideEffectLimits.of(variant, retain_halves[number], others, label)
            chosen = search_best_edit(variants, class_half, limits, _of_class(fitted, label))
            never_taught_choices.append({"kind": index} | chosen.to_dict())
            test_images = class_halves[1 - number]
            for name, hit in zip(test_images.ids, chosen.named(test_images, label), strict=True):
                never_taught_hits[name] = float(hit), index
    result: dict[str, Any] = {
        arm: [values[image] for image in forget.ids] for arm, values in named_by_arm.items()
    }
    return result | {
        "ids": list(forget.ids),
        "plain": plain.tolist(),
        "never_ids": list(never_taught_hits),
        "never": [hit for hit, _ in never_taught_hits.values()],
        "never_kinds": [index for _, index in never_taught_hits.values()],
        "choices": choices,
        "never_choices": never_taught_choices,
    }


def _kinds(never_taught: ImageSet) -> list[ImageSet]:
    """The largest never-taught classes, each as its own set.

    Raises:
        InputError: none is large enough to be halved.
    """
    labels, counts = np.unique(never_taught.labels, return_counts=True)
    order = labels[np.argsort(-counts, kind="stable")]
    sizes = np.sort(counts)[::-1]
    classes = [
        never_taught.select(never_taught.labels == label)
        for label, size in zip(order, sizes, strict=True)
        if size >= MIN_IMAGES
    ]
    if not classes:
        raise InputError(
            "no class of the never-taught images is large enough to be steered to",
            expected=f"{MIN_IMAGES} images of one class",
            got=str(int(counts.max())),
        )
    return classes[:N_UNSEEN_CLASSES]


def _joined(sets: Sequence[ImageSet]) -> ImageSet | None:
    """Several sets as one; None where there are none."""
    if not sets:
        return None
    joined = sets[0]
    for images in sets[1:]:
        joined = joined + images
    return joined


def _of_class(fitted: SteeringFit, label: int):
    return lambda method, site: fitted.steering_edit(method, site, label)


def _at_random(fitted: SteeringFit, label: int, rng: np.random.Generator):
    """Edits as large as those of the class, each in a new random direction."""

    def make(method: str, site: str) -> SteeringEdit | None:
        steering = fitted.steering_edit(method, site, label)
        return None if steering is None else randomly_rotated(steering, rng)

    return make


def _of_other(fitted: SteeringFit, label: int, other_class: int):
    """Edits made for another class."""

    def make(method: str, site: str) -> SteeringEdit | None:
        if method == AMPLIFIED_READING:
            # The reading is of another class; the direction is still that of the forgotten one.
            return fitted.steering_edit(method, site, label, read_label=other_class)
        return fitted.steering_edit(method, site, other_class)

    return make


def only_class(forget: ImageSet) -> int:
    """The single class of the forget images.

    Raises:
        InputError: they are of several classes, or too few to halve.
    """
    classes = np.unique(forget.labels)
    if len(classes) != 1 or len(forget) < MIN_IMAGES:
        raise InputError(
            "the forget images cannot be used",
            expected=f"one class, {MIN_IMAGES} images or more",
            got=f"{len(classes)} classes, {len(forget)} images",
        )
    return int(classes[0])


def net_rate(
    run: dict[str, Any], original_named: np.ndarray, references: Sequence[dict[str, Any]] = ()
) -> dict[str, Any] | None:
    """Share of the lost predictions that steering restores, minus the worst control.

    As ``audits.axes.restoration.axis.net_rate``: rate = (named steered - named before) / (named
    by the original - named before); controls likewise. Never-taught classes and references,
    which never had the class, are steered by edits of their own; all of their predictions of
    the class count, as nothing was lost there.

    Args:
        run: Result of ``restore_images``.
        original_named: (image,) 1.0 where the original predicts the class.
        references: Results for models retrained without the class.

    Returns:
        ``rate``, ``own_rate`` (with the candidate's own last block), ``controls``,
        ``worst_control``, ``net`` and its ``interval``, ``residual`` (0 is the worst control, 1
        the original), ``kinds`` (the rate of each never-taught class) and ``lost``; None where
        the candidate lost less than a tenth.
    """
    before = float(np.mean(run["plain"]))
    lost_share = float(original_named.mean()) - before
    if lost_share < MIN_LOST:
        return None
    steered = average_by_entity(np.array(run["steered"]), run["ids"])
    controls = {
        arm: (average_by_entity(np.array(run[arm]), run["ids"]), before)
        for arm in ("random", "others")
    }
    never_taught = average_by_entity(np.array(run["never"]), run["never_ids"])
    controls["never_taught"] = never_taught, 0.0
    for number, reference in enumerate(references, start=1):
        values = average_by_entity(np.array(reference["steered"]), reference["ids"])
        controls[f"reference-{number}"] = values, 0.0
    net = net_of_worst_control(steered, before, lost_share, controls)
    worst_rate = net["controls"][net["worst_control"]]
    hits, kinds = np.array(run["never"]), np.array(run["never_kinds"])
    return net | {
        "own_rate": (float(np.mean(run["own"])) - before) / lost_share,
        "residual": net["net"] / max(1 - worst_rate, MIN_RANGE),
        "kinds": [float(hits[kinds == k].mean()) / lost_share for k in np.unique(kinds)],
    }
