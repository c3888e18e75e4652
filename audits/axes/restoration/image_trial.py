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

from audits.axes.restoration.axis import MIN_LOST
from audits.axes.restoration.image_steering import (
    AMPLIFIED_READING,
    SteeringEdit,
    SteeringFit,
    image_sites,
    named_as_class,
    randomly_rotated,
    split_in_halves,
)
from audits.axes.restoration.search import (
    SideEffectLimits,
    fit_steering,
    model_variants,
    search_best_edit,
)
from capture.data.images import ImageSet
from capture.data.invented_classes import invent_images
from evidence.errors import InputError
from evidence.intervals import average_by_entity, difference_interval, rate_interval
from evidence.results import MIN_RANGE
from evidence.seeds import numpy_rng

NAME = "restoration"
MAX_RETAIN = 240
N_UNSEEN_CLASSES = 3
"""Number of never-taught classes for which the search is repeated."""
MIN_IMAGES = 8


def unseen_classes(
    original: nn.Module, known: ImageSet, label: int, count: int, seed: int
) -> ImageSet:
    """``N_UNSEEN_CLASSES`` invented classes, at most ``count`` images each.

    Args:
        original: Images that it predicts as the forgotten class are left out.
        known: Images of the retain classes.
        label: The forgotten class.
        count: Number of forgotten images: a smaller class would be a weaker control.
        seed: Of the choice.
    """
    rng = numpy_rng(seed, NAME, "never taught")
    made = invent_images(known, N_UNSEEN_CLASSES * count, rng, N_UNSEEN_CLASSES)
    return made.select(
        named_as_class(original, made, {}, image_sites(original), label) == 0
    )


def restore_images(
    original: nn.Module,
    model: nn.Module,
    forget: ImageSet,
    retain: ImageSet,
    never: ImageSet,
    seed: int,
) -> dict[str, Any]:
    """Search for steering edits of ``model``, every forgotten image tested once; JSON-ready.

    Args:
        original: Model before unlearning.
        model: The candidate.
        forget: Images of the forgotten class that no model was trained on.
        retain: The same of the other classes.
        never: Images of classes that no model saw; the largest classes are used.
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
    kinds = _kinds(never)
    bodies = model_variants(model, original)
    own = bodies[0]
    parts = split_in_halves(forget, numpy_rng(seed, NAME, "forget"))
    kept = split_in_halves(retain, numpy_rng(seed, NAME, "retain"), 2 * MAX_RETAIN)
    unknown = [
        split_in_halves(each, numpy_rng(seed, NAME, "kind", str(place)))
        for place, each in enumerate(kinds)
    ]
    plain = own.named(forget, label, {})
    arms = ("steered", "own", "random", "others")
    tried: dict[str, dict[str, float]] = {what: {} for what in arms}
    strange: dict[str, tuple[float, int]] = {}
    choices, for_kinds = [], []
    for number in (0, 1):
        rng = numpy_rng(seed, NAME, "controls", str(number))
        fit, test = parts[number], parts[1 - number]
        fitted = fit_steering(own, original, fit + kept[number])
        half = [each[number] for each in unknown]
        guard = SideEffectLimits.of(own, kept[number], _joined(half), label)
        other = int(rng.choice(np.unique(retain.labels)))
        steered = search_best_edit(bodies, fit, guard, _of_class(fitted, label))
        alone = steered
        if steered.variant is not own:
            alone = search_best_edit(bodies[:1], fit, guard, _of_class(fitted, label))
        found = {
            "steered": steered,
            "own": alone,
            # A random last block would predict nothing, so controls keep the candidate's.
            "random": search_best_edit(
                bodies[:1], fit, guard, _at_random(fitted, label, rng)
            ),
            "others": search_best_edit(
                bodies[:1], fit, guard, _of_other(fitted, label, other)
            ),
        }
        choices.append(found["steered"].to_dict())
        for what, chosen in found.items():
            said = chosen.named(test, label).tolist()
            tried[what].update(zip(test.ids, said, strict=True))
        for place, each in enumerate(unknown):
            # The same search for a never-taught class; the others limit side effects.
            mine = replace(half[place], labels=np.full(len(half[place]), label))
            fitted = fit_steering(own, original, mine + kept[number])
            others = _joined([h for at, h in enumerate(half) if at != place])
            guard = SideEffectLimits.of(own, kept[number], others, label)
            chosen = search_best_edit(bodies, mine, guard, _of_class(fitted, label))
            for_kinds.append({"kind": place} | chosen.to_dict())
            asked = each[1 - number]
            for name, hit in zip(asked.ids, chosen.named(asked, label), strict=True):
                strange[name] = float(hit), place
    result: dict[str, Any] = {
        what: [values[each] for each in forget.ids] for what, values in tried.items()
    }
    return result | {
        "ids": list(forget.ids),
        "plain": plain.tolist(),
        "never_ids": list(strange),
        "never": [hit for hit, _ in strange.values()],
        "never_kinds": [place for _, place in strange.values()],
        "choices": choices,
        "never_choices": for_kinds,
    }


def _kinds(never: ImageSet) -> list[ImageSet]:
    """The largest never-taught classes, each as its own set.

    Raises:
        InputError: none is large enough to be halved.
    """
    labels, counts = np.unique(never.labels, return_counts=True)
    order = labels[np.argsort(-counts, kind="stable")]
    sizes = np.sort(counts)[::-1]
    found = [
        never.select(never.labels == each)
        for each, size in zip(order, sizes, strict=True)
        if size >= MIN_IMAGES
    ]
    if not found:
        raise InputError(
            "no class of the never-taught images is large enough to be steered to",
            expected=f"{MIN_IMAGES} images of one class",
            got=str(int(counts.max())),
        )
    return found[:N_UNSEEN_CLASSES]


def _joined(sets: Sequence[ImageSet]) -> ImageSet | None:
    """Several sets as one; None where there are none."""
    if not sets:
        return None
    whole = sets[0]
    for each in sets[1:]:
        whole = whole + each
    return whole


def _of_class(fitted: SteeringFit, label: int):
    return lambda route, site: fitted.steering_edit(route, site, label)


def _at_random(fitted: SteeringFit, label: int, rng: np.random.Generator):
    """Edits as large as those of the class, each in a new random direction."""

    def make(route: str, site: str) -> SteeringEdit | None:
        push = fitted.steering_edit(route, site, label)
        return None if push is None else randomly_rotated(push, rng)

    return make


def _of_other(fitted: SteeringFit, label: int, other: int):
    """Edits made for another class."""

    def make(route: str, site: str) -> SteeringEdit | None:
        if route == AMPLIFIED_READING:
            # The reading is of another class; the direction is still that of the forgotten one.
            return fitted.steering_edit(route, site, label, read_label=other)
        return fitted.steering_edit(route, site, other)

    return make


def only_class(forget: ImageSet) -> int:
    """The single class of the forget images.

    Raises:
        InputError: they are of several classes, or too few to halve.
    """
    found = np.unique(forget.labels)
    if len(found) != 1 or len(forget) < MIN_IMAGES:
        raise InputError(
            "the forget images cannot be used",
            expected=f"one class, {MIN_IMAGES} images or more",
            got=f"{len(found)} classes, {len(forget)} images",
        )
    return int(found[0])


def net_rate(
    run: dict[str, Any],
    known: np.ndarray,
    references: Sequence[dict[str, Any]] = (),
) -> dict[str, Any] | None:
    """Share of the lost predictions that steering restores, minus the worst control.

    As ``audits.axes.restoration.axis.net_rate``: rate = (named steered - named before) / (named
    by the original - named before); controls likewise. Never-taught classes and references,
    which never had the class, are steered by edits of their own; all of their predictions of
    the class count, as nothing was lost there.

    Args:
        run: Result of ``restore_images``.
        known: (image,) 1.0 where the original predicts the class.
        references: Results for models retrained without the class.

    Returns:
        ``rate``, ``own_rate`` (with the candidate's own last block), ``controls``,
        ``worst_control``, ``net`` and its ``interval``, ``residual`` (0 is the worst control, 1
        the original), ``kinds`` (the rate of each never-taught class) and ``lost``; None where
        the candidate lost less than a tenth.
    """
    before = float(np.mean(run["plain"]))
    lost = float(known.mean()) - before
    if lost < MIN_LOST:
        return None
    steered = average_by_entity(np.array(run["steered"]), run["ids"])
    rows = {
        what: (average_by_entity(np.array(run[what]), run["ids"]), before)
        for what in ("random", "others")
    }
    rows["never_taught"] = (
        average_by_entity(np.array(run["never"]), run["never_ids"]),
        0.0,
    )
    for number, other in enumerate(references, start=1):
        values = np.array(other["steered"])
        rows[f"reference-{number}"] = (average_by_entity(values, other["ids"]), 0.0)
    rates = {
        what: (float(values.mean[0]) - level) / lost
        for what, (values, level) in rows.items()
    }
    worst = max(rates, key=lambda what: rates[what])
    hits, kinds = np.array(run["never"]), np.array(run["never_kinds"])
    values, level = rows[worst]
    low, high = difference_interval(
        float(steered.mean[0]),
        rate_interval(steered),
        float(values.mean[0]),
        rate_interval(values),
    )
    rate = (float(steered.mean[0]) - before) / lost
    shift = level - before
    return {
        "rate": rate,
        "own_rate": (float(np.mean(run["own"])) - before) / lost,
        "controls": rates,
        "worst_control": worst,
        "net": rate - rates[worst],
        "interval": [(low + shift) / lost, (high + shift) / lost],
        "residual": (rate - rates[worst]) / max(1 - rates[worst], MIN_RANGE),
        "kinds": [float(hits[kinds == k].mean()) / lost for k in np.unique(kinds)],
        "lost": lost,
    }
