"""Can an image model be steered back to a class it was made to forget?

One fixed change of the states, the same rule for every image, is fitted on half of the
images; its route, site and strength are chosen there under a limit on what it costs the
other classes; what it brings back is counted on the other half, and then the halves
change places. The same steering with a random change, with changes made for other
classes, on never-taught images and on a model that never saw the class says how much of
that is luck. After arXiv 2602.18505, whose own test is in ``audits.image_published``.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from audits.image_steering import (
    ROUTES,
    Fitted,
    adding,
    halves,
    image_sites,
    named,
    slope_of,
    state_sites,
    states_of,
    turned,
)
from audits.restoration import LEAST_LOST
from audits.restoration_trial import RETAIN_DROP, STRENGTHS
from capture.hooks import Edit
from capture.images import ImageSet
from capture.sites import Sites
from evidence.errors import InputError
from evidence.rates import by_entity, difference_interval, rate_interval
from evidence.seeds import numpy_rng

NAME = "restoration"
MOST_KEPT = 240
DRAWS = 3
"""Random changes a half."""
OTHERS = 3
"""Other classes whose changes are tried."""
LEAST_IMAGES = 8


def restore_images(
    original: nn.Module,
    model: nn.Module,
    forget: ImageSet,
    retain: ImageSet,
    never: ImageSet,
    seed: int,
) -> dict[str, Any]:
    """Try to steer ``model`` back, every forgotten image tested once; JSON-ready.

    Args:
        original: Model before unlearning.
        model: The candidate.
        forget: Images of the forgotten class that no model was trained on.
        retain: The same of the other classes.
        never: Images of classes that no model saw.
        seed: Of halves and controls.

    Returns:
        ``ids`` (image,); ``plain``, ``steered``, ``random`` and ``others``: (image,)
        1.0, or the share of draws, where the image is called the class; ``never``:
        (never-taught image,) the same under the steering; ``choices``, one a half;
        ``retain_before``.

    Raises:
        InputError: the forget images are of several classes, or too few.
    """
    label = one_class(forget)
    where, there = image_sites(model), image_sites(original)
    sites = state_sites(where)
    parts = halves(forget, numpy_rng(seed, NAME, "forget"))
    kept = halves(retain, numpy_rng(seed, NAME, "retain"), 2 * MOST_KEPT)
    plain = dict(zip(forget.ids, named(model, forget, {}, where), strict=True))
    tried: dict[str, dict[str, float]] = {"steered": {}, "random": {}, "others": {}}
    unknown, choices = [], []
    for number in (0, 1):
        fit, test = parts[number], parts[1 - number]
        both = fit + kept[number]
        rng = numpy_rng(seed, NAME, "controls", str(number))
        classes = [int(c) for c in rng.permutation(np.unique(retain.labels))[:OTHERS]]
        fitted = Fitted(
            states_of(model, both, sites, where),
            states_of(original, both, sites, there),
            cache(partial(_slope, model, both, where)),
            both.labels,
        )
        choice = _choose(model, fitted, fit, kept[number], where, sites, label)
        choices.append(choice)
        for what, values in _try(
            model, fitted, choice, test, where, label, classes, rng
        ).items():
            tried[what].update(zip(test.ids, values.tolist(), strict=True))
        edits = _edits(fitted, choice, label)
        unknown.append(named(model, never, edits, where, label))
    result: dict[str, Any] = {
        what: [values[each] for each in forget.ids] for what, values in tried.items()
    }
    return result | {
        "ids": list(forget.ids),
        "never_ids": list(never.ids),
        "plain": [float(plain[each]) for each in forget.ids],
        "never": np.mean(unknown, axis=0).tolist(),
        "choices": choices,
    }


def _slope(
    model: nn.Module, images: ImageSet, where: Sites, label: int, site: str
) -> Tensor:
    return slope_of(model, images, label, site, where)


def one_class(forget: ImageSet) -> int:
    """The class the forget images are of.

    Raises:
        InputError: they are of several, or too few to halve.
    """
    found = np.unique(forget.labels)
    if len(found) != 1 or len(forget) < LEAST_IMAGES:
        raise InputError(
            "the forget images cannot be used",
            expected=f"one class, {LEAST_IMAGES} images or more",
            got=f"{len(found)} classes, {len(forget)} images",
        )
    return int(found[0])


def net_of_controls(
    run: dict[str, Any],
    known: np.ndarray,
    references: Sequence[dict[str, Any]] = (),
) -> dict[str, Any] | None:
    """Share of the lost namings that steering restores, less the worst control.

    As ``audits.restoration.net_rate``: rate = (named steered - named before) / (named
    by the original - named before), the same for each control. References are models
    that never saw the class, steered by changes of their own; what that makes them call
    the class counts in full, as they had lost nothing.

    Args:
        run: As ``restore_images``.
        known: (image,) 1.0 where the original names the class.
        references: The same of models retrained without the class.

    Returns:
        ``rate``, ``controls``, ``worst_control``, ``net``, ``interval`` and ``lost``;
        None where the candidate lost less than a tenth.
    """
    before = float(np.mean(run["plain"]))
    lost = float(known.mean()) - before
    if lost < LEAST_LOST:
        return None
    steered = by_entity(np.array(run["steered"]), run["ids"])
    rows = {
        what: (by_entity(np.array(run[what]), run["ids"]), before)
        for what in ("random", "others")
    }
    rows["never_taught"] = (by_entity(np.array(run["never"]), run["never_ids"]), 0.0)
    for number, other in enumerate(references, start=1):
        values = np.array(other["steered"])
        rows[f"reference-{number}"] = (by_entity(values, other["ids"]), 0.0)
    rates = {
        what: (float(values.mean[0]) - level) / lost
        for what, (values, level) in rows.items()
    }
    worst = max(rates, key=lambda what: rates[what])
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
        "controls": rates,
        "worst_control": worst,
        "net": rate - rates[worst],
        "interval": [(low + shift) / lost, (high + shift) / lost],
        "lost": lost,
    }


def _choose(
    model: nn.Module,
    fitted: Fitted,
    fit: ImageSet,
    kept: ImageSet,
    where: Sites,
    sites: Sequence[str],
    label: int,
) -> dict[str, Any]:
    """Route, site and strength that bring most back on the images fitted on."""
    base = float(named(model, kept, {}, where).mean())
    best: dict[str, Any] = {
        "route": None,
        "site": None,
        "strength": 0.0,
        "said": float(named(model, fit, {}, where).mean()),
        "retain": base,
        "retain_before": base,
    }
    for route in ROUTES:
        for site in sites:
            push = fitted.push(route, site, label)
            if push is None or best["said"] >= 1.0:
                continue
            for strength in STRENGTHS:
                edits = {site: adding(push, strength)}
                said = float(named(model, fit, edits, where).mean())
                if said <= best["said"]:
                    continue
                left = float(named(model, kept, edits, where).mean())
                if left < base - RETAIN_DROP - 1e-9:
                    break  # stronger steering costs more
                best |= {"route": route, "site": site, "strength": strength}
                best |= {"said": said, "retain": left}
    return best


def _edits(
    fitted: Fitted,
    choice: dict[str, Any],
    label: int,
    *,
    other: int | None = None,
    turn: np.random.Generator | None = None,
) -> dict[str, Edit]:
    """The chosen change, made for another class, or as large in a random direction."""
    route, site = choice["route"], choice["site"]
    if route is None:
        return {}
    if other is None:
        push = fitted.push(route, site, label)
    elif route == ROUTES[4]:
        # Another class is read; what is written still names the forgotten one.
        push = fitted.push(route, site, label, read=other)
    else:
        push = fitted.push(route, site, other)
    if push is None:
        return {}
    push = push if turn is None else turned(push, turn)
    return {site: adding(push, choice["strength"])}


def _try(
    model: nn.Module,
    fitted: Fitted,
    choice: dict[str, Any],
    test: ImageSet,
    where: Sites,
    label: int,
    classes: Sequence[int],
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """The change and its controls on images it was not chosen on."""

    def called(edits: dict) -> np.ndarray:
        return named(model, test, edits, where, label)

    random = [called(_edits(fitted, choice, label, turn=rng)) for _ in range(DRAWS)]
    others = [called(_edits(fitted, choice, label, other=c)) for c in classes]
    return {
        "steered": called(_edits(fitted, choice, label)),
        "random": np.mean(random, axis=0),
        "others": np.mean(others, axis=0),
    }
