"""Linear probes of one class in the states of image models.

The original's probe is a linear discriminant of the class against the others, fitted on half of
its images and evaluated on the other half. A refitted probe is made from a single image of the
class, whitened by the within-class covariance of the retain classes. From many images it would
read a class that no model ever saw equally well, since the features that separate the other
classes separate an unseen one too. The score is the share of the other classes' images that an
image of the class outranks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from audits.core.scores import Part, ScoreTable
from audits.modalities.image_sets import EvaluationSets, image_table, pooled_states, rank_among
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
        retained: Site to (class, d): probes of retain classes.
        retained_labels: (class,) their class indices.
        shuffled: (site,) score of probes fitted on shuffled labels, on the original.
        random: (site,) score of random directions, on the original.
    """

    halves: np.ndarray
    forgotten: dict[str, np.ndarray]
    retained: dict[str, np.ndarray]
    retained_labels: np.ndarray
    shuffled: np.ndarray
    random: np.ndarray


def read_set_states(model: nn.Module, sets: EvaluationSets, sites: list[str]) -> StatesBySet:
    """States of every image set at every site."""
    return {
        name: pooled_states(model, getattr(sets, name), sites)
        for name in ("forget", "fit", "check", "never_taught")
    }


def all_finite(states: StatesBySet) -> bool:
    """Whether all states are finite."""
    return all(np.isfinite(x).all() for part in states.values() for x in part.values())


def fit_original_probes(states: StatesBySet, sets: EvaluationSets, seed: int) -> OriginalProbes:
    """Fit the original's probes of the class and of retain classes, and score the controls."""
    count = len(sets.forget)
    halves = np.zeros(count, dtype=int)
    halves[numpy_rng(seed, "decodability", "halves").permutation(count)[::2]] = 1
    retained_labels = _common(sets)
    own, classes = {}, {}
    shuffled, random = [], []
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
        directions = rng.standard_normal((DIRECTIONS, rows.shape[1]))
        for vectors, by_site in (
            (_discriminants(rows, shuffled_marks), shuffled),
            (directions, random),
        ):
            by_site.append(_outranked(forget_states, vectors, states["check"][site]).mean())
        classes[site] = _discriminants(retain_states, sets.fit.labels == retained_labels[:, None])
    nulls = np.array(shuffled), np.array(random)
    return OriginalProbes(halves, own, classes, retained_labels, *nulls)


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


def _outranked(rows: np.ndarray, vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(vector, image) share of the other images with a lower projection."""
    return np.stack([rank_among(rows @ vector, others @ vector) for vector in vectors])


def score_original_probes(
    probes: OriginalProbes, states: StatesBySet, sets: EvaluationSets
) -> dict[Part, ScoreTable]:
    """(image, site) scores of the original's probes on a model's states.

    Each forget image is scored by the probe that has not seen it.
    """
    forget, never_taught = [], []
    for site, vectors in probes.forgotten.items():
        others = states["check"][site]
        by_half = _outranked(states["forget"][site], vectors, others)
        forget.append(by_half[probes.halves, np.arange(len(probes.halves))])
        never_taught.append(_outranked(states["never_taught"][site], vectors, others).mean(0))
    return {
        Part.FORGET: image_table(np.stack(forget, axis=1), sets.forget),
        Part.NEVER_TAUGHT: image_table(np.stack(never_taught, axis=1), sets.never_taught),
    }


def score_retained_classes(
    probes: OriginalProbes, states: StatesBySet, sets: EvaluationSets
) -> np.ndarray:
    """(site,) mean score of the original's probes of retain classes on images of theirs."""
    by_site = []
    for site, vectors in probes.retained.items():
        shares = []
        for label, vector in zip(probes.retained_labels, vectors, strict=True):
            projections, members = states["check"][site] @ vector, sets.check.labels == label
            shares.append(rank_among(projections[members], projections[~members]).mean())
        by_site.append(float(np.mean(shares)) if shares else 0.5)
    return np.array(by_site)


def score_refitted_probes(
    states: StatesBySet, sets: EvaluationSets, seed: int
) -> dict[Part, ScoreTable]:
    """(image, site) scores of single-image probes."""
    rng = numpy_rng(seed, "decodability", "shots")
    count = len(sets.forget)
    shots = rng.permutation(count)[:SHOTS]
    labels = sets.never_taught.labels
    kinds = [np.flatnonzero(labels == kind) for kind in np.unique(labels)]
    groups = [(np.arange(count), shots, Part.FORGET)] + [
        (kind, kind[:NEVER_TAUGHT_SHOTS], Part.NEVER_TAUGHT) for kind in kinds if len(kind) > 1
    ]
    # A never-taught class with a single image cannot be scored and stays at chance.
    images = {Part.FORGET: sets.forget, Part.NEVER_TAUGHT: sets.never_taught}
    result = {part: np.full((len(each), len(states["fit"])), 0.5) for part, each in images.items()}
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
    return {part: image_table(table, images[part]) for part, table in result.items()}


def _whitener(states: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Solve with the shrunk within-class covariance of the retain classes."""
    means = {label: states[labels == label].mean(0) for label in np.unique(labels)}
    centered = states - np.stack([means[label] for label in labels])
    within = centered.T @ centered / len(states)
    ridge = SHRINKAGE * np.trace(within) / len(within)
    within = (1 - SHRINKAGE) * within
    within[np.diag_indices(len(within))] += max(ridge, 1e-12)
    return lambda difference: np.linalg.solve(within, difference)
