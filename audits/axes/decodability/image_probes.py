"""Linear probes of one class in the states of image models.

The original's probe is a linear discriminant of the class against the others, fitted on half of
its images and evaluated on the other half. A refitted probe is made from a single image of the
class, whitened by the within-class covariance of the retain classes. From many images it would
read a class that no model ever saw equally well, since the features that separate the other
classes separate an unseen one too. The score is the share of the other classes' images that an
image of the class outranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from audits.core.context import AuditedModel
from audits.modalities.image_baseline import EvaluationSets, pooled_states, rank_among
from capture.data.images import ImageSet
from evidence.seeds import numpy_rng
from probes.concepts.directions import discriminant

SHRINKAGE = 0.1
SHUFFLES, DIRECTIONS = 5, 20
SHOTS = 20
"""Number of single-image refitted probes, over which scores are averaged."""
NEVER_TAUGHT_SHOTS = 3
MAX_CLASSES, MIN_FIT_IMAGES, MIN_CHECK_IMAGES = 12, 4, 2

StatesBySet = Mapping[str, Mapping[str, np.ndarray]]
"""Set name to site to (image, d)."""


@dataclass(frozen=True)
class OriginalProbes:
    """The original's probes, site by site.

    Attributes:
        halves: (image,) half, 0 or 1, of each forget image.
        forgotten: Site to (half, d): fitted without the images of that half.
        shuffled: Site to (shuffle, d): fitted on shuffled labels.
        random: Site to (direction, d): random directions.
        retained: Site to (class, d): probes of retain classes.
        retained_labels: (class,) their class indices.
    """

    halves: np.ndarray
    forgotten: dict[str, np.ndarray]
    shuffled: dict[str, np.ndarray]
    random: dict[str, np.ndarray]
    retained: dict[str, np.ndarray]
    retained_labels: np.ndarray


def read_set_states(
    audited: AuditedModel, sets: EvaluationSets, sites: list[str], device: str
) -> dict[str, dict[str, np.ndarray]]:
    """States of every image set at every site."""
    with audited.loaded(device) as model:
        return {
            name: pooled_states(model, getattr(sets, name), sites)
            for name in ("forget", "fit", "check", "never")
        }


def all_finite(states: StatesBySet) -> bool:
    """Whether all states are finite."""
    return all(np.isfinite(x).all() for part in states.values() for x in part.values())


def fit_original_probes(states: StatesBySet, sets: EvaluationSets, seed: int) -> OriginalProbes:
    """Fit the original's probes of the class, of retain classes, and the controls."""
    count = len(sets.forget)
    halves = np.zeros(count, dtype=int)
    halves[numpy_rng(seed, "decodability", "halves").permutation(count)[::2]] = 1
    retained_labels = _common(sets)
    own, shuffled, random, classes = {}, {}, {}, {}
    rng = numpy_rng(seed, "decodability", "nothing")
    for site, forget_states in states["forget"].items():
        retain_states = states["fit"][site]
        fitted = []
        for half in (0, 1):
            rows = np.concatenate([forget_states[halves != half], retain_states])
            marks = np.arange(len(rows)) < (halves != half).sum()
            fitted.append(_discriminants(rows, marks[None])[0])
        own[site] = np.stack(fitted)
        rows = np.concatenate([forget_states, retain_states])
        marks = np.arange(len(rows)) < count
        shuffled_marks = np.stack([rng.permutation(marks) for _ in range(SHUFFLES)])
        shuffled[site] = _discriminants(rows, shuffled_marks)
        random[site] = rng.standard_normal((DIRECTIONS, rows.shape[1]))
        classes[site] = _discriminants(retain_states, sets.fit.labels == retained_labels[:, None])
    return OriginalProbes(halves, own, shuffled, random, classes, retained_labels)


def _common(sets: EvaluationSets) -> np.ndarray:
    """Retain classes with enough images to fit and check a probe."""
    frequent = [
        label
        for label in np.unique(sets.fit.labels)
        if (sets.fit.labels == label).sum() >= MIN_FIT_IMAGES
        and (sets.check.labels == label).sum() >= MIN_CHECK_IMAGES
    ]
    return np.array(frequent[:MAX_CLASSES], dtype=np.int64)


def _discriminants(rows: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """(concept, d) discriminant directions, one a row of ``marks`` (concept, image)."""
    if len(marks) == 0:
        return np.zeros((0, rows.shape[1]))
    x = torch.from_numpy(rows)
    weight = torch.ones(len(x), dtype=torch.float64)
    directions = discriminant(x, torch.from_numpy(marks).double(), weight, SHRINKAGE)
    return directions.numpy()


def score_original_probes(
    probes: OriginalProbes, states: StatesBySet, sets: EvaluationSets
) -> dict[str, Any]:
    """Scores of the original's probes on a model's states; JSON-ready.

    Returns:
        ``forget`` and ``never``: (image, site) shares outranked, each forget image by the probe
        that has not seen it; ``classes``: (site,) the mean of the same over retain classes and
        their images; ``shuffled`` and ``random``: (site,) means.
    """
    columns: dict[str, list[Any]] = {
        name: [] for name in ("forget", "never", "classes", "shuffled", "random")
    }
    half = probes.halves
    for site in probes.forgotten:
        forget_states, other, invented = (
            states[part][site] for part in ("forget", "check", "never")
        )

        def outranked(rows: np.ndarray, vectors: np.ndarray, other=other) -> np.ndarray:
            """(vector, image)."""
            found = [rank_among(rows @ each, other @ each) for each in vectors]
            return np.stack(found)

        by_half = outranked(forget_states, probes.forgotten[site])
        columns["forget"].append(by_half[half, np.arange(len(forget_states))])
        columns["never"].append(outranked(invented, probes.forgotten[site]).mean(0))
        columns["shuffled"].append(outranked(forget_states, probes.shuffled[site]).mean())
        columns["random"].append(outranked(forget_states, probes.random[site]).mean())
        columns["classes"].append(_of_classes(probes, site, other, sets.check))
    # (site, image) becomes (image, site); means stay (site,).
    return {name: np.array(column).T.tolist() for name, column in columns.items()}


def _of_classes(readers: OriginalProbes, site: str, states: np.ndarray, images: ImageSet) -> float:
    shares = []
    for label, vector in zip(readers.retained_labels, readers.retained[site], strict=True):
        projections, members = states @ vector, images.labels == label
        shares.append(rank_among(projections[members], projections[~members]).mean())
    return float(np.mean(shares)) if shares else 0.5


def score_refitted_probes(states: StatesBySet, sets: EvaluationSets, seed: int) -> dict[str, Any]:
    """Scores of single-image probes; (image, site) "forget" and "never"."""
    rng = numpy_rng(seed, "decodability", "shots")
    count = len(sets.forget)
    shots = rng.permutation(count)[:SHOTS]
    kinds = [np.flatnonzero(sets.never.labels == k) for k in np.unique(sets.never.labels)]
    groups = [(np.arange(count), shots, "forget")] + [
        (kind, kind[:NEVER_TAUGHT_SHOTS], "never") for kind in kinds if len(kind) > 1
    ]
    # A never-taught class with a single image cannot be scored and stays at chance.
    result = {
        part: np.full((len(getattr(sets, part)), len(states["fit"])), 0.5)
        for part in ("forget", "never")
    }
    for column, site in enumerate(states["fit"]):
        fit_states, check_states = states["fit"][site], states["check"][site]
        solve = _whitener(fit_states, sets.fit.labels)
        for members, firsts, part in groups:
            rows = states[part][site]
            total, times = np.zeros(len(members)), np.zeros(len(members))
            for shot in firsts:
                vector = solve(rows[shot] - fit_states.mean(0))
                others = members != shot
                total[others] += rank_among(rows[members[others]] @ vector, check_states @ vector)
                times[others] += 1
            result[part][members, column] = total / np.maximum(times, 1)
    return {part: table.tolist() for part, table in result.items()}


def _whitener(states: np.ndarray, labels: np.ndarray):
    """Solve with the shrunk within-class covariance of the retain classes."""
    means = {label: states[labels == label].mean(0) for label in np.unique(labels)}
    centered = states - np.stack([means[label] for label in labels])
    within = centered.T @ centered / len(states)
    ridge = SHRINKAGE * np.trace(within) / len(within)
    within = (1 - SHRINKAGE) * within
    within[np.diag_indices(len(within))] += max(ridge, 1e-12)
    return lambda difference: np.linalg.solve(within, difference)
