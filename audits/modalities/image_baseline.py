"""What the models of an image audit name, and what of it the audit goes on with.

The unit is the image. Images are dealt into sets once: forget images in two halves,
each the other's fitting part; retain images into a part to fit on and one to compare
with; never-taught images, made of the latter.
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
"""Retain images used, in times of the budget's retain entities."""
MIN_RETAIN = 15
NEVER_TAUGHT_FACTOR, MIN_NEVER_TAUGHT = 2, 96
"""Never-taught images made for each forgotten one, and at least."""
MIN_DIFFERENCE = 0.5
"""How far from its floor to the original what reads the original's code in a candidate
must find the class. Where one direction lies in a model that never saw it is an
accident of the model (0.25 to 0.6 in twins of tuning seed 0, whose images agree with
each other all the same), and the states of a retrain from the same starting weights
bring an original to name half of the images at times (``docs/vision.md``)."""
N_INVENTED_CLASSES = 12
"""Kinds of never-taught images: halves of one pair of classes each."""


@dataclass(frozen=True)
class EvaluationSets:
    """The images of an audit, all of them known to the original but the invented.

    Attributes:
        forget: Of the forgotten class.
        fit: Of the other classes, for fitting and teaching.
        check: Of the other classes, for comparing with.
        never: Of classes that no model saw; none that the original calls the class.
    """

    forget: ImageSet
    fit: ImageSet
    check: ImageSet
    never: ImageSet

    @property
    def label(self) -> int:
        """Number of the class to forget."""
        return int(self.forget.labels[0])

    @property
    def retain(self) -> ImageSet:
        """All images of the other classes."""
        return self.fit + self.check


def select(run: ImageRun) -> dict[str, Any]:
    """Choose the images; JSON-ready, by number in the sets given.

    Raises:
        InputError: the original names too few images of either set.
    """
    forget, retain = run.inputs.forget, run.inputs.retain
    budget, seed = run.config.budget, run.config.seed
    with run.models["original"].loaded(run.device) as model:
        kept = {}
        for name, images, most, least in (
            ("forget", forget, budget.retain_entities, run.config.min_entities),
            (
                "retain",
                retain,
                RETAIN_FACTOR * budget.retain_entities,
                MIN_RETAIN,
            ),
        ):
            order = numpy_rng(seed, "images", name).permutation(len(images))
            asked = order[: 2 * most]
            right = (
                predicted_classes(model, images.select(asked)) == images.labels[asked]
            )
            kept[name] = np.sort(asked[right][:most])
            if len(kept[name]) < least:
                raise InputError(
                    f"the original does not know the {name} set: it names "
                    f"{int(right.sum())} of {len(asked)} images",
                    expected=f"right classes of at least {least} images",
                    got=str(int(right.sum())),
                    fix="Check that the first model is the one before unlearning and "
                    "that class numbers and pixel values are those it was trained on",
                )
        order = numpy_rng(seed, "images", "halves").permutation(kept["retain"])
        cut = len(order) // 2
        parts = {"fit": np.sort(order[:cut]), "check": np.sort(order[cut:])}
        never = run.inputs.never_taught
        if never is None:
            never = _invented(run, retain.select(parts["check"]), len(kept["forget"]))
        named_so = predicted_classes(model, never) == int(forget.labels[0])
    if named_so.mean() > 0.5:
        raise InputError(
            "the original calls most never-taught images the forgotten class",
            expected="images of classes that it was not taught",
            got=f"{named_so.mean():.0%}",
        )
    return {
        "never_called": float(named_so.mean()),
        "forget": kept["forget"].tolist(),
        "fit": parts["fit"].tolist(),
        "check": parts["check"].tolist(),
        # What the original itself takes for the class is no floor.
        "never": np.flatnonzero(~named_so).tolist(),
    }


def selected_sets(run: ImageRun, chosen: dict[str, Any]) -> EvaluationSets:
    """The images that ``select`` chose."""
    forget, retain = run.inputs.forget, run.inputs.retain
    check = retain.select(chosen["check"], "check")
    never = run.inputs.never_taught
    if never is None:
        never = _invented(run, check, len(chosen["forget"]))
    return EvaluationSets(
        forget.select(chosen["forget"], "forget"),
        retain.select(chosen["fit"], "fit"),
        check,
        never.select(chosen["never"], "never_taught"),
    )


def _invented(run: ImageRun, known: ImageSet, forgotten: int) -> ImageSet:
    count = max(NEVER_TAUGHT_FACTOR * forgotten, MIN_NEVER_TAUGHT)
    rng = numpy_rng(run.config.seed, "never taught", "images")
    return invent_images(known, count, rng, N_INVENTED_CLASSES)


def finite_logits(model: nn.Module, images: ImageSet) -> np.ndarray:
    """(image, class) logits.

    Raises:
        InputError: they are not finite.
    """
    found = logits_with_edits(model, images, {}, find_image_sites(model)).numpy()
    if not np.isfinite(found).all():
        raise InputError("the model's logits are not finite")
    return found


def predicted_classes(model: nn.Module, images: ImageSet) -> np.ndarray:
    """(image,) number of the class the model names."""
    return finite_logits(model, images).argmax(1)


def pool_places(states: Tensor) -> np.ndarray:
    """(image, d) of whole states: a class token beside the mean place, or that mean.

    Without a class token every place counts alike, as for what is pooled anyway.
    """
    places = as_positions(states).double()
    if states.dim() == 3:
        first, rest = places[:, 0], places[:, 1:].mean(1)
        return np.concatenate([first.numpy(), rest.numpy()], axis=1)
    return places.mean(1).numpy()


def pooled_states(
    model: nn.Module, images: ImageSet, sites: list[str]
) -> dict[str, np.ndarray]:
    """Site to (image, d) pooled states."""
    found = image_states(model, images, sites, find_image_sites(model))
    return {site: pool_places(states) for site, states in found.items()}


def late_sites(model: nn.Module) -> list[str]:
    """Blocks from the middle on, and what enters the classifier.

    What leaves the first blocks still is the picture, and a retrain from the same
    starting weights computes it alike: there the original's reader would find a class
    that the model never saw. Chosen on tuning seed 0 of the digits world.
    """
    where = find_image_sites(model)
    blocks = where.of("resid")
    return [*blocks[len(blocks) // 2 :], *where.of("final")]


def score_baseline(run: ImageRun, role: str, sets: EvaluationSets) -> dict[str, Any]:
    """What one model names, in one loading; JSON-ready.

    Returns:
        ``named``: (image,) 1 where the class is named, of "forget" and "never_taught";
        ``rank``: (image,) share of the other classes' images whose logit of the class,
        against the rest of their logits, is lower; ``useful``: as
        ``audits.core.preflight.utility`` wants it.
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
            part: (logits[part].argmax(1) == sets.label).astype(int).tolist()
            for part in parts
        },
        "rank": {
            part: rank_among(_margin(logits[part], sets.label), against).tolist()
            for part in parts
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
    rest = np.delete(logits, label, axis=1)
    top = rest.max(1)
    return logits[:, label] - top - np.log(np.exp(rest - top[:, None]).sum(1))


def rank_among(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(...,) share of ``others`` below each value, ties counting half; chance 0.5."""
    order = np.sort(others)
    below = np.searchsorted(order, values, "left")
    return (below + np.searchsorted(order, values, "right")) / (2 * len(order))


def check_swap(baseline_scores: dict[str, Any]) -> None:
    """Refuse sets that behaviour shows to be swapped.

    Raises:
        InputError: the candidate kept the forget images and lost the retain images.
    """
    gone = baseline_scores["named"]["forget"]
    kept = baseline_scores["useful"]["retain"]
    error = swapped_files_error((len(gone), sum(gone)), (len(kept), sum(kept)))
    if error:
        raise error


def image_values(found: Any, images: ImageSet) -> EntityValues:
    """(image, column) scores, every image a unit."""
    return average_by_entity(np.asarray(found, dtype=np.float64), images.ids)
