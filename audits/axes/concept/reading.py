"""Concept vectors of answers as linear probes of hidden states."""

from collections.abc import Sequence

import numpy as np

from audits.axes.decodability.site_probes import SiteProbe
from audits.axes.decodability.tasks import Task
from audits.axes.decodability.text_probes import ProbingData, shuffled_labels
from evidence.progress import SILENT, Progress
from probes.concepts.labels import Concepts
from probes.concepts.vectors import ConceptVectors, concept_vectors

METHODS = ("mean", "lda")


def answer_concepts(task: Task, labels: np.ndarray) -> Concepts:
    """One concept an answer (shared form), or the truth of a statement (unique form)."""
    if task.form == "unique":
        return Concepts(("true",), (labels == 1).astype(np.int8)[None])
    marks = (labels == np.arange(task.n_classes)[:, None]).astype(np.int8)
    return Concepts(tuple(f"{task.relation}: {name}" for name in task.classes), marks)


def fit_concepts(
    probing: ProbingData,
    role: str,
    method: str,
    *,
    rng: np.random.Generator | None = None,
    progress: Progress = SILENT,
) -> list[ConceptVectors]:
    """One set of concept vectors a task, from a model's states of the fitting entities.

    Args:
        role: Role of the model whose states are used.
        method: As in ``concept_vectors``.
        rng: Shuffles the answers first: a control that must read nothing.
    """
    vectors = []
    for number, task in enumerate(probing.tasks):
        true_labels = task.parts["fit"].labels
        labels = true_labels if rng is None else shuffled_labels(task, rng)
        states = probing.states[role].parts[number, "fit"]
        concepts = answer_concepts(task, labels)
        vectors.append(
            # The embedding of the last prompt token is the same whatever the answer, so that
            # site reads nothing.
            concept_vectors(states, concepts, method, flat="zero", progress=progress)
        )
    return vectors


def probe_of(vectors: ConceptVectors) -> SiteProbe:
    """Concept vectors as a probe: the projection on each, in units of its gap."""
    live = vectors.gap != 0
    gap = np.where(live, vectors.gap, 1.0)
    weights = np.where(live[..., None], vectors.vectors / gap[..., None], 0.0)
    bias = np.where(live, -vectors.offset / gap, 0.0)
    return SiteProbe(weights.transpose(0, 2, 1), bias)


def mean_cosine(
    vectors: Sequence[ConceptVectors], other_vectors: Sequence[ConceptVectors]
) -> list[float]:
    """(site,) mean cosine between two models' vectors of the same concepts."""
    cosines = [
        (a.vectors * b.vectors).sum(2)
        for a, b in zip(vectors, other_vectors, strict=True)
    ]
    return np.concatenate(cosines, axis=1).mean(1).tolist()
