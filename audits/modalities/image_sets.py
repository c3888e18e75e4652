"""The sets of an image audit, and each model's predictions.

The unit is the image. Images are assigned to sets once: forget images to two halves, each used
to fit for the other; retain images to a fitting part and a comparison part; never-taught images
are made from the latter.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from audits.core.baseline_scores import RoleBaseline, SiteRank, Utility
from audits.core.context import ImageRun
from audits.core.preflight import effective_rank
from audits.core.roles import Role
from audits.core.scores import Part, ScoreTable
from audits.output.workspace import StageRunner
from capture.data.images import ImageSet
from capture.data.invented_classes import invent_images
from capture.network.sites import as_positions, find_image_sites
from capture.scoring.class_logits import image_states, logits_with_edits
from capture.scoring.set_validation import swapped_files_error
from evidence.errors import InputError
from evidence.seeds import numpy_rng

RETAIN_FACTOR = 4
"""Maximum number of retain images, in multiples of the budget's retain entities."""
MIN_RETAIN = 15
NEVER_TAUGHT_FACTOR, MIN_NEVER_TAUGHT = 2, 96
"""Never-taught images made per forgotten image, and their minimum number."""
MIN_DIFFERENCE = 0.5
"""Minimum residual for measurements that share the original's representation basis. Where a
single direction lies in a model that never saw the class is an accident of the model (residuals
of 0.25 to 0.6 in retrains of tuning seed 0, consistently over images), and patched states of a
retrain from the same starting weights sometimes lead the original to predict the class for half
of the images (``docs/results/vision.md``)."""
N_INVENTED_CLASSES = 12
"""Never-taught classes: each composes halves of one pair of retain classes."""


@dataclass(frozen=True)
class EvaluationSets:
    """The image sets of an audit; the original predicts all but the invented ones correctly.

    Attributes:
        forget: Images of the forgotten class.
        fit: Images of the other classes, for fitting and training.
        check: Images of the other classes, for comparison.
        never_taught: Images of classes that no model saw, without those that the original
            predicts as the class.
        named_never_taught: Share of all never-taught images that it predicts as the class.
    """

    forget: ImageSet
    fit: ImageSet
    check: ImageSet
    never_taught: ImageSet
    named_never_taught: float = 0.0

    @property
    def label(self) -> int:
        """Index of the class to forget."""
        return int(self.forget.labels[0])

    @property
    def retain(self) -> ImageSet:
        """All images of the other classes."""
        return self.fit + self.check


@dataclass(frozen=True)
class ChosenImages:
    """The images of each set, as indices into the given sets.

    Attributes:
        never_called: As ``EvaluationSets.named_never_taught``.
    """

    never_called: float
    forget: tuple[int, ...]
    fit: tuple[int, ...]
    check: tuple[int, ...]
    never: tuple[int, ...]


def choose_images(run: ImageRun) -> ChosenImages:
    """Choose the images that the original predicts correctly.

    Raises:
        InputError: the original predicts too few images of either set correctly.
    """
    forget, retain = run.inputs.forget, run.inputs.retain
    budget, seed = run.config.budget, run.config.seed
    with run.loaded.reading(run.models[Role.ORIGINAL], run.device) as model:
        chosen = {}
        for name, images, max_images, min_images in (
            ("forget", forget, budget.retain_entities, run.config.min_entities),
            ("retain", retain, RETAIN_FACTOR * budget.retain_entities, MIN_RETAIN),
        ):
            order = numpy_rng(seed, "images", name).permutation(len(images))
            tried = order[: 2 * max_images]
            right = predicted_classes(model, images.select(tried)) == images.labels[tried]
            chosen[name] = np.sort(tried[right][:max_images])
            if len(chosen[name]) < min_images:
                raise InputError(
                    f"the original does not know the {name} set: it names "
                    f"{int(right.sum())} of {len(tried)} images",
                    expected=f"right classes of at least {min_images} images",
                    got=str(int(right.sum())),
                    fix="Check that the first model is the one before unlearning and "
                    "that class numbers and pixel values are those it was trained on",
                )
        order = numpy_rng(seed, "images", "halves").permutation(chosen["retain"])
        cut = len(order) // 2
        parts = {"fit": np.sort(order[:cut]), "check": np.sort(order[cut:])}
        never_taught = run.inputs.never_taught
        if never_taught is None:
            never_taught = _invented(run, retain.select(parts["check"]), len(chosen["forget"]))
        called_class = predicted_classes(model, never_taught) == int(forget.labels[0])
    if called_class.mean() > 0.5:
        raise InputError(
            "the original predicts the forgotten class for most never-taught images",
            expected="images of classes that it was not taught",
            got=f"{called_class.mean():.0%}",
        )
    return ChosenImages(
        float(called_class.mean()),
        tuple(chosen["forget"].tolist()),
        tuple(parts["fit"].tolist()),
        tuple(parts["check"].tolist()),
        # Images that the original predicts as the class are no floor.
        tuple(np.flatnonzero(~called_class).tolist()),
    )


def select(run: ImageRun, stages: StageRunner) -> EvaluationSets:
    """The images that the original predicts correctly, and never-taught ones.

    Raises:
        InputError: the original predicts too few images of either set correctly.
    """
    chosen = stages.typed("original", ChosenImages, lambda: choose_images(run))
    forget, retain = run.inputs.forget, run.inputs.retain
    check = retain.select(list(chosen.check), "check")
    never_taught = run.inputs.never_taught
    if never_taught is None:
        never_taught = _invented(run, check, len(chosen.forget))
    return EvaluationSets(
        forget.select(list(chosen.forget), "forget"),
        retain.select(list(chosen.fit), "fit"),
        check,
        never_taught.select(list(chosen.never), "never_taught"),
        chosen.never_called,
    )


def _invented(run: ImageRun, retain: ImageSet, forgotten: int) -> ImageSet:
    count = max(NEVER_TAUGHT_FACTOR * forgotten, MIN_NEVER_TAUGHT)
    rng = numpy_rng(run.config.seed, "never taught", "images")
    return invent_images(retain, count, rng, N_INVENTED_CLASSES)


def finite_logits(model: nn.Module, images: ImageSet) -> np.ndarray:
    """(image, class) logits.

    Raises:
        InputError: they are not finite.
    """
    logits = logits_with_edits(model, images, {}, find_image_sites(model)).numpy()
    if not np.isfinite(logits).all():
        raise InputError("the model's logits are not finite")
    return logits


def predicted_classes(model: nn.Module, images: ImageSet) -> np.ndarray:
    """(image,) predicted class index."""
    return finite_logits(model, images).argmax(1)


def pool_places(states: Tensor) -> np.ndarray:
    """(image, d) of full states: class token and mean patch, or the mean over positions."""
    places = as_positions(states).double()
    if states.dim() == 3:
        first, patches = places[:, 0], places[:, 1:].mean(1)
        return np.concatenate([first.numpy(), patches.numpy()], axis=1)
    return places.mean(1).numpy()


def pooled_states(model: nn.Module, images: ImageSet, sites: list[str]) -> dict[str, np.ndarray]:
    """Site to (image, d) pooled states."""
    states_by_site = image_states(model, images, sites, find_image_sites(model))
    return {site: pool_places(states) for site, states in states_by_site.items()}


def late_sites(model: nn.Module) -> list[str]:
    """Blocks from the middle on, and the classifier's input.

    The first blocks still encode the picture itself, and a retrain from the same starting
    weights computes the same: there the original's probe would find a class that the model
    never saw. Chosen on tuning seed 0 of the digits world.
    """
    where = find_image_sites(model)
    blocks = where.of("resid")
    return [*blocks[len(blocks) // 2 :], *where.of("final")]


def score_baseline(run: ImageRun, role: Role, sets: EvaluationSets) -> RoleBaseline:
    """Predictions of one model.

    Metrics are ``named``, 1 where the class is predicted, and ``rank``, the share of other
    classes' images with a lower log-odds of the class.
    """
    with run.loaded.reading(run.models[role], run.device) as model:
        images = {Part.FORGET: sets.forget, Part.NEVER_TAUGHT: sets.never_taught}
        logits = {part: finite_logits(model, each) for part, each in images.items()}
        check = finite_logits(model, sets.check)
        sites = find_image_sites(model).of("resid")
        chosen = [sites[len(sites) // 4], sites[len(sites) // 2], sites[-1]]
        states = pooled_states(model, sets.check, chosen)
    against = _margin(check, sets.label)

    tables = {
        "named": {
            part: image_table(by_class.argmax(1) == sets.label, images[part])
            for part, by_class in logits.items()
        },
        "rank": {
            part: image_table(rank_among(_margin(by_class, sets.label), against), images[part])
            for part, by_class in logits.items()
        },
    }
    utility = Utility(
        tuple((check.argmax(1) == sets.check.labels).astype(int).tolist()),
        None,
        (),
        (),
        tuple(SiteRank(site, effective_rank(states[site])) for site in chosen),
    )
    return RoleBaseline(tables, utility=utility)


def _margin(logits: np.ndarray, label: int) -> np.ndarray:
    """(image,) log-odds of the class against all others."""
    others = np.delete(logits, label, axis=1)
    top = others.max(1)
    return logits[:, label] - top - np.log(np.exp(others - top[:, None]).sum(1))


def rank_among(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(...,) share of ``others`` below each value, ties counting half; chance is 0.5."""
    order = np.sort(others)
    below = np.searchsorted(order, values, "left")
    return (below + np.searchsorted(order, values, "right")) / (2 * len(order))


def check_swapped(
    run: ImageRun, sets: EvaluationSets, baseline: Mapping[Role, RoleBaseline]
) -> None:
    """Refuse sets that the candidate's predictions show to be swapped.

    Raises:
        InputError: the candidate kept the forget images and lost the retain images.
    """
    candidate = baseline[Role.CANDIDATE]
    assert candidate.utility is not None  # every image model has one
    forget_named = candidate.tables["named"][Part.FORGET].values[:, 0]
    retain_named = candidate.utility.retain
    error = swapped_files_error(
        (len(forget_named), int(forget_named.sum())), (len(retain_named), sum(retain_named))
    )
    if error:
        raise error


def image_table(scores: np.ndarray, images: ImageSet) -> ScoreTable:
    """(image,) or (image, column) scores as a table, with every image as a unit."""
    values = np.asarray(scores, dtype=np.float64)
    return ScoreTable(tuple(images.ids), values[:, None] if values.ndim == 1 else values)
