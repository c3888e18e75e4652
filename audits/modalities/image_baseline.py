"""Baseline of an image audit: the evaluation sets, and each model's predictions.

The unit is the image. Images are assigned to sets once: forget images to two halves, each used
to fit for the other; retain images to a fitting part and a comparison part; never-taught images
are made from the latter.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from audits.core.context import ImageRun
from audits.core.preflight import spread
from capture.data.images import ImageSet
from capture.data.invented_classes import invent_images
from capture.network.sites import as_positions, find_image_sites
from capture.scoring.class_logits import image_states, logits_with_edits
from capture.scoring.set_validation import swapped_files_error
from evidence.errors import InputError
from evidence.intervals import EntityValues, average_by_entity
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
        never: Images of classes that no model saw, without those that the original predicts as
            the class.
    """

    forget: ImageSet
    fit: ImageSet
    check: ImageSet
    never: ImageSet

    @property
    def label(self) -> int:
        """Index of the class to forget."""
        return int(self.forget.labels[0])

    @property
    def retain(self) -> ImageSet:
        """All images of the other classes."""
        return self.fit + self.check


def select(run: ImageRun) -> dict[str, Any]:
    """Choose the images; JSON-ready, as indices into the given sets.

    Raises:
        InputError: the original predicts too few images of either set correctly.
    """
    forget, retain = run.inputs.forget, run.inputs.retain
    budget, seed = run.config.budget, run.config.seed
    with run.models["original"].loaded(run.device) as model:
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
    return {
        "never_called": float(called_class.mean()),
        "forget": chosen["forget"].tolist(),
        "fit": parts["fit"].tolist(),
        "check": parts["check"].tolist(),
        # Images that the original predicts as the class are no floor.
        "never": np.flatnonzero(~called_class).tolist(),
    }


def selected_sets(run: ImageRun, chosen: dict[str, Any]) -> EvaluationSets:
    """The images that ``select`` chose."""
    forget, retain = run.inputs.forget, run.inputs.retain
    check = retain.select(chosen["check"], "check")
    never_taught = run.inputs.never_taught
    if never_taught is None:
        never_taught = _invented(run, check, len(chosen["forget"]))
    return EvaluationSets(
        forget.select(chosen["forget"], "forget"),
        retain.select(chosen["fit"], "fit"),
        check,
        never_taught.select(chosen["never"], "never_taught"),
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


def score_baseline(run: ImageRun, role: str, sets: EvaluationSets) -> dict[str, Any]:
    """Predictions of one model; JSON-ready.

    Returns:
        ``named``: (image,) 1 where the class is predicted, for "forget" and "never_taught";
        ``rank``: (image,) share of other classes' images with a lower log-odds of the class;
        ``useful``: input of ``audits.core.preflight.utility``.
    """
    with run.models[role].loaded(run.device) as model:
        logits = {
            "forget": finite_logits(model, sets.forget),
            "never_taught": finite_logits(model, sets.never),
            "check": finite_logits(model, sets.check),
        }
        sites = find_image_sites(model).of("resid")
        chosen = [sites[len(sites) // 4], sites[len(sites) // 2], sites[-1]]
        states = pooled_states(model, sets.check, chosen)
    against = _margin(logits["check"], sets.label)
    parts = ("forget", "never_taught")
    return {
        "named": {
            part: (logits[part].argmax(1) == sets.label).astype(int).tolist() for part in parts
        },
        "rank": {
            part: rank_among(_margin(logits[part], sets.label), against).tolist() for part in parts
        },
        "useful": {
            "retain": (logits["check"].argmax(1) == sets.check.labels).tolist(),
            "general": None,
            "texts": [],
            "spread": [{"site": site, **spread(states[site])} for site in chosen],
        },
    }


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


def check_swap(baseline_scores: dict[str, Any]) -> None:
    """Refuse sets that the candidate's predictions show to be swapped.

    Raises:
        InputError: the candidate kept the forget images and lost the retain images.
    """
    forget_named = baseline_scores["named"]["forget"]
    retain_named = baseline_scores["useful"]["retain"]
    error = swapped_files_error(
        (len(forget_named), sum(forget_named)), (len(retain_named), sum(retain_named))
    )
    if error:
        raise error


def image_values(scores: Any, images: ImageSet) -> EntityValues:
    """(image, column) scores with every image as a unit."""
    return average_by_entity(np.asarray(scores, dtype=np.float64), images.ids)
