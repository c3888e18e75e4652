"""Restoration trial of an image model.

The edit changes the candidate's states, or replaces the candidate's last block and classifier by
the original's. The same search, with equal freedom, is run for classes that no model was taught,
among random edits, among edits made for other classes, and in a model retrained without the class.
These show how much of the restoration is due to the search alone.
"""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial, reduce
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from audits.axes.restoration.scoring import named_as_class
from audits.axes.restoration.search import (
    MAX_DROP,
    STRENGTHS,
    TOLERANCE,
    Choice,
    ChosenEdit,
    SideEffects,
    strongest_edit,
)
from audits.axes.restoration.steering import (
    IMAGE_METHODS,
    ImageSteering,
    SteeringEdit,
    image_steering_sites,
    logprob_gradient,
    steering_hook,
)
from audits.axes.restoration.trial import NAME, Arm, Trial, pool_halves
from audits.core.scores import ScoreTable
from capture.data.images import ImageSet
from capture.data.invented_classes import invent_images
from capture.network.hooks import Edit
from capture.network.sites import Sites, find_image_sites
from capture.scoring.class_logits import BATCH, image_states, pixel_logits
from evidence.errors import InputError
from evidence.seeds import numpy_rng

OWN_END = "its own last block"
ORIGINAL_END = "the original's last block in place"
PRESCREEN_IMAGES = 64
"""Retain images checked first, to reject costly edits early."""
MAX_RETAIN = 240
N_UNSEEN_CLASSES = 3
"""Number of never-taught classes for which the search is repeated."""
MIN_IMAGES = 8
MakeEdit = Callable[[str, str], SteeringEdit | None]


@dataclass(frozen=True, eq=False)
class ModelVariant:
    """A network variant: the candidate, or the candidate with the original's last block."""

    name: str
    model: nn.Module
    sites: Sites

    def named(
        self, images: ImageSet, label: int | None, edits: Mapping[str, Edit]
    ) -> NDArray[np.float64]:
        """(image,) 1.0 where ``label``, or the image's own class, is predicted."""
        return named_as_class(self.model, images, edits, self.sites, label)


def model_variants(model: nn.Module, original: nn.Module) -> list[ModelVariant]:
    """The candidate, and its variant with the original's end where structures agree."""
    ended = with_original_end(model, original)
    variants = [ModelVariant(OWN_END, model, find_image_sites(model))]
    if ended is not None:
        variants.append(ModelVariant(ORIGINAL_END, ended, find_image_sites(ended)))
    return variants


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


def fit_steering(variant: ModelVariant, original: nn.Module, images: ImageSet) -> ImageSteering:
    """Fit steering edits of the candidate on images of the class and of others."""

    def gradient(label: int, site: str) -> Tensor:
        return logprob_gradient(variant.model, images, label, site, variant.sites)

    return ImageSteering(
        image_states(variant.model, images, image_steering_sites(variant.sites), variant.sites),
        image_states(original, images, ["final"], find_image_sites(original)),
        cache(gradient),
        images.labels,
    )


@dataclass(frozen=True, eq=False)
class SideEffectLimits:
    """Limits on the side effects of an edit.

    Attributes:
        label: The class to steer to.
        max_wrong: Maximum number of retain images predicted wrongly.
        max_named: Maximum number of never-taught images predicted as ``label``.
    """

    retain: ImageSet
    never_taught: ImageSet | None
    label: int
    max_wrong: float
    max_named: float

    @classmethod
    def of(
        cls, variant: ModelVariant, retain: ImageSet, never_taught: ImageSet | None, label: int
    ) -> "SideEffectLimits":
        """Two points above the unedited candidate, for both limits."""
        n_wrong = float((1 - variant.named(retain, None, {})).sum())
        n_named, count = 0.0, 0
        if never_taught is not None:
            n_named, count = float(variant.named(never_taught, label, {}).sum()), len(never_taught)
        return cls(
            retain,
            never_taught,
            label,
            n_wrong + MAX_DROP * len(retain) + TOLERANCE,
            n_named + MAX_DROP * count + TOLERANCE,
        )

    def effects(self, variant: ModelVariant, edits: Mapping[str, Edit]) -> SideEffects | None:
        """The side effects of an edit, or None where they exceed a limit.

        Errors only accumulate, so some images are checked first and the others only if needed.
        """
        n_named, n_wrong = 0.0, 0.0
        if self.never_taught is not None:
            n_named = float(variant.named(self.never_taught, self.label, edits).sum())
        rows = np.arange(len(self.retain))
        for part in (rows[:PRESCREEN_IMAGES], rows[PRESCREEN_IMAGES:]):
            if n_named > self.max_named or n_wrong > self.max_wrong:
                return None
            if len(part):
                right = variant.named(self.retain.select(part), None, edits)
                n_wrong += float((1 - right).sum())
        if n_wrong > self.max_wrong:
            return None
        n_never_taught = len(self.never_taught) if self.never_taught is not None else 1
        return SideEffects(1 - n_wrong / len(self.retain), n_named / n_never_taught)


def search(
    variants: Sequence[ModelVariant],
    images: ImageSet,
    limits: SideEffectLimits,
    make_edit: MakeEdit,
) -> ChosenEdit:
    """The edit with the most ``images`` predicted as the class, within the limits.

    Ties go to the earlier candidate: the original's end before steering, early sites before
    late ones, small strengths before large ones. Steering is never combined with the original's
    end: with end and direction both the original's, a retrain from its starting weights that
    never saw the class predicted 82 % of it (tuning seed 1), and 18 % with the end alone.

    Args:
        variants: The candidate, and its variant with the original's end if there is one.
        make_edit: From a method and a site to the edit at strength 1, if there is one.
    """
    variant, label = variants[0], limits.label
    start = Choice(float(variant.named(images, label, {}).mean()), variant=variant.name)
    for other in variants[1:]:
        share = float(other.named(images, label, {}).mean())
        effects = limits.effects(other, {}) if share > start.objective else None
        if effects is not None:
            start = Choice(share, effects, variant=other.name)
    return strongest_edit(
        start,
        product(IMAGE_METHODS, image_steering_sites(variant.sites)),
        make_edit,
        lambda site, edit: _shares_named(variant, images, label, site, edit),
        lambda edits: limits.effects(variant, edits),
        1.0,
        variant.name,
    )


def _shares_named(
    variant: ModelVariant, images: ImageSet, label: int, site: str, steering: SteeringEdit
) -> list[float]:
    """(strength,) share predicted as the class; all strengths share the forward passes."""
    hits = torch.zeros(len(STRENGTHS))
    batch_images = max(1, BATCH // len(STRENGTHS))
    for part in images.pixels.split(batch_images):
        # One pass holds every image once per strength, strength after strength.
        sizes = torch.tensor(STRENGTHS).repeat_interleave(len(part))
        rows = part.repeat(len(STRENGTHS), 1, 1, 1)
        edits = {site: steering_hook(steering, sizes)}
        hit = pixel_logits(variant.model, rows, edits, variant.sites).argmax(1) == label
        hits += hit.reshape(len(STRENGTHS), -1).sum(1)
    return (hits.double() / len(images)).tolist()


def named_under(
    chosen: ChosenEdit, variants: Sequence[ModelVariant], images: ImageSet, label: int
) -> NDArray[np.float64]:
    """(image,) 1.0 where the class is predicted under a chosen edit."""
    (variant,) = (each for each in variants if each.name == chosen.choice.variant)
    return variant.named(images, label, chosen.hooks())


def unseen_classes(
    original: nn.Module, retain: ImageSet, label: int, count: int, seed: int
) -> ImageSet:
    """``N_UNSEEN_CLASSES`` invented classes, at most ``count`` images each.

    Args:
        original: Images that it predicts as the forgotten class are left out.
        label: The forgotten class.
        count: Number of forgotten images: a smaller class would be a weaker control.
    """
    rng = numpy_rng(seed, NAME, "never taught")
    invented = invent_images(retain, N_UNSEEN_CLASSES * count, rng, N_UNSEEN_CLASSES)
    return invented.select(
        named_as_class(original, invented, {}, find_image_sites(original), label) == 0
    )


def half_rows(
    n_images: int, rng: np.random.Generator, max_images: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two disjoint halves, of at most ``max_images`` images together."""
    order = rng.permutation(n_images)[:max_images]
    return np.sort(order[::2]), np.sort(order[1::2])


def steer_images(
    original: nn.Module,
    model: nn.Module,
    forget: ImageSet,
    retain: ImageSet,
    never_taught: ImageSet,
    seed: int,
) -> Trial:
    """Search for steering edits of ``model``, every forgotten image tested once.

    Args:
        forget: Images of the forgotten class that no model was trained on.
        retain: The same of the other classes.
        never_taught: Images of classes that no model saw; the largest classes are used.

    Raises:
        InputError: the forget images are of several classes, or too few; no never-taught class
            is large enough.
    """
    label, unseen = only_class(forget), largest_classes(never_taught)
    variants = model_variants(model, original)
    variant = variants[0]
    rows = half_rows(len(forget), numpy_rng(seed, NAME, "forget"))
    retain_rows = half_rows(len(retain), numpy_rng(seed, NAME, "retain"), 2 * MAX_RETAIN)
    unseen_rows = [
        half_rows(len(images), numpy_rng(seed, NAME, "kind", str(index)))
        for index, images in enumerate(unseen)
    ]
    plain = variant.named(forget, label, {})
    halves, choices = [], []
    ids: list[str] = []
    hits: list[NDArray[np.float64]] = []
    classes: list[int] = []
    for number in (0, 1):
        rng = numpy_rng(seed, NAME, "controls", str(number))
        fit, tested = forget.select(rows[number]), forget.select(rows[1 - number])
        kept = retain.select(retain_rows[number])
        half = [images.select(r[number]) for images, r in zip(unseen, unseen_rows, strict=True)]
        limits = SideEffectLimits.of(variant, kept, _joined(half), label)
        other = int(rng.choice(np.unique(retain.labels)))
        steering = fit_steering(variant, original, fit + kept)
        to_class = partial(steering.edit, label=label)
        chosen = search(variants, fit, limits, to_class)
        own = chosen
        if chosen.choice.variant != OWN_END:
            own = search(variants[:1], fit, limits, to_class)
        by_arm = {
            Arm.STEERED: chosen,
            Arm.OWN_END: own,
            # A random last block would predict nothing, so controls keep the candidate's.
            Arm.RANDOM: search(
                variants[:1], fit, limits, partial(steering.random_edit, label=label, rng=rng)
            ),
            Arm.OTHERS: search(
                variants[:1], fit, limits, partial(steering.edit, label=label, other=other)
            ),
        }
        scores = {
            arm: {"named": named_under(edit, variants, tested, label)}
            for arm, edit in by_arm.items()
        }
        halves.append((rows[1 - number], scores))
        choices.append(chosen.choice)
        for index, images in enumerate(unseen):
            # The same search for a never-taught class; the others limit side effects.
            class_half = replace(half[index], labels=np.full(len(half[index]), label))
            steering = fit_steering(variant, original, class_half + kept)
            others = _joined([each for at, each in enumerate(half) if at != index])
            limits = SideEffectLimits.of(variant, kept, others, label)
            to_class = partial(steering.edit, label=label)
            chosen = search(variants, class_half, limits, to_class)
            rest = images.select(unseen_rows[index][1 - number])
            ids += rest.ids
            hits.append(named_under(chosen, variants, rest, label))
            classes += [index] * len(rest)
    tables = pool_halves(halves, forget.ids, {"named": plain})
    tables["named"][Arm.NEVER_TAUGHT] = ScoreTable(tuple(ids), np.concatenate(hits)[:, None])
    return Trial(tables, tuple(choices), never_taught_classes=tuple(classes))


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


def largest_classes(never_taught: ImageSet) -> list[ImageSet]:
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
    return reduce(operator.add, sets) if sets else None
