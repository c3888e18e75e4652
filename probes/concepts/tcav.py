"""TCAV sensitivity of an output to concepts, and concept shifts between checkpoints."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.seeds import numpy_rng
from probes.concepts.labels import Concepts, random_concepts
from probes.concepts.vectors import ConceptVectors
from probes.splits.folds import group_codes
from probes.sweeps.site_source import SiteStore, open_source


@dataclass(frozen=True, eq=False, repr=False)
class TcavScores:
    """Sensitivity of an output to concepts, with random concepts as the null.

    Attributes:
        sites: (site,) names.
        concepts: (concept,) names.
        score: (site, concept) share of rows whose output would increase if the activation moved
            towards the concept; 0.5 means no effect.
        random: (site, draw) the same for random concepts.
        p_value: (concept,) two-sided: the score's largest distance from one half over sites,
            against that of random concepts.
    """

    sites: tuple[str, ...]
    concepts: tuple[str, ...]
    score: NDArray[np.float64]
    random: NDArray[np.float64]
    p_value: NDArray[np.float64]

    def __repr__(self) -> str:
        return (
            f"TcavScores({len(self.sites)} sites, {len(self.concepts)} concepts: smallest p "
            f"{self.p_value.min():.2g})"
        )

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def to_frame(self) -> pd.DataFrame:
        """One row a site and concept: score, and p over all sites."""
        return _by_site(self.sites, self.concepts, score=self.score, p=self.p_value)


def tcav(
    gradients: ArrayLike | Tensor | SiteStore, vectors: ConceptVectors, random: ConceptVectors
) -> TcavScores:
    """TCAV scores of all concepts, with a permutation test against random concepts.

    The paper runs a t-test over vectors that share their positive rows and are therefore dependent.
    Here the largest distance from one half over sites is ranked among that of random concepts
    fitted in the same way, which is valid under any dependence. It is not corrected for the number
    of concepts.

    Args:
        gradients: (site, row, d) of an output, such as an answer's logit, by the activations at the
            sites of the vectors.
        vectors: Of the concepts.
        random: Of random concepts on the same rows (``random_concepts``).

    Raises:
        InputError: sites or widths differ.

    Source: Kim et al. (2018), arXiv 1711.11279.

    Examples:
        >>> lisbon = exhume.concepts_of({"Lisbon": cities == "Lisbon"})
        >>> vectors = exhume.concept_vectors(states, lisbon)
        >>> random = exhume.random_concepts(cities == "Lisbon", people, count=40)
        >>> rising = np.broadcast_to(vectors.vectors, states.values.shape)  # along the vector
        >>> found = exhume.tcav(rising, vectors, exhume.concept_vectors(states, random))
        >>> found.score.ravel().tolist()
        [1.0, 1.0]
    """
    score = _share_positive(gradients, vectors)
    null = _share_positive(gradients, random)
    if len(score) != len(null):
        raise InputError(
            "concepts and random concepts were fitted at different sites",
            expected=f"{len(score)} sites",
            got=str(len(null)),
        )
    distance, null_distance = (np.abs(table - 0.5).max(0) for table in (score, null))
    n_exceeding = (null_distance[None] >= distance[:, None] - 1e-12).sum(1)
    p_value = (1 + n_exceeding) / (1 + len(null_distance))
    return TcavScores(vectors.sites, vectors.concepts, score, null, p_value)


@dataclass(frozen=True, eq=False, repr=False)
class ConceptShifts:
    """How far the rows of each concept moved between two checkpoints, relative to other rows.

    Attributes:
        sites: (site,) names.
        concepts: (concept,) names.
        vectors: (site, concept, d) mean shift of rows that show the concept minus that of rows that
            do not, in activation units.
        size: (site, concept) its norm over the root mean square distance of the first checkpoint's
            rows from their mean.
        p_value: (concept,) permutation p-value of the largest size over sites, with the concept's
            marks permuted among groups.
    """

    sites: tuple[str, ...]
    concepts: tuple[str, ...]
    vectors: NDArray[np.float64]
    size: NDArray[np.float64]
    p_value: NDArray[np.float64]

    def __repr__(self) -> str:
        return (
            f"ConceptShifts({len(self.sites)} sites, {len(self.concepts)} concepts: size "
            f"{self.size.min():.2g} to {self.size.max():.2g}, smallest p "
            f"{self.p_value.min():.2g})"
        )

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def to_frame(self) -> pd.DataFrame:
        """One row a site and concept: size, and p over all sites."""
        return _by_site(self.sites, self.concepts, size=self.size, p=self.p_value)


def shift_vectors(
    before: ArrayLike | Tensor | SiteStore,
    after: ArrayLike | Tensor | SiteStore,
    concepts: Concepts,
    *,
    groups: ArrayLike | None = None,
    draws: int = 200,
    seed: int = 0,
) -> ConceptShifts:
    """Shift of each concept's rows between two checkpoints, beyond that of all other rows.

    Args:
        before: (site, row, d) of the first checkpoint.
        after: The same rows in the second.
        concepts: Marks.
        groups: (row,) entity of each row; marks are permuted among whole groups if every group has
            one.
        draws: Permutations.
        seed: Seed of the permutations.

    Raises:
        InputError: the two differ in sites, rows or width.

    Examples:
        >>> unlearned = exhume.open_checkpoint("unlearned").load()
        >>> after = exhume.capture_activations(unlearned, rows, states.sites)
        >>> moved = exhume.shift_vectors(states, after, exhume.concepts_of(cities), draws=20)
        >>> moved.size.max(1).round(2).tolist()  # only the last block was edited
        [0.0, 0.59]
    """
    first, second = open_source(before), open_source(after)
    if len(first.names) != len(second.names) or not (
        first.n_rows == second.n_rows == concepts.n_rows
    ):
        raise InputError(
            "the checkpoints' activations do not match",
            expected=f"{len(first.names)} sites of {concepts.n_rows} rows",
            got=f"{len(second.names)} sites of {second.n_rows} rows",
        )
    entities = group_codes(groups, concepts.n_rows)
    weights = [_mean_difference_weights(concepts.marks)]
    for concept, marks in enumerate(concepts.marks):
        concept_seed = int(numpy_rng(seed, "shifts", concepts.names[concept]).integers(2**31))
        weights.append(
            _mean_difference_weights(random_concepts(marks, entities, draws, concept_seed).marks)
        )
    all_weights = np.concatenate(weights)
    n_concepts = len(concepts)
    vectors, relative_norm, null_norms = [], [], []
    for first_name, second_name in zip(first.names, second.names, strict=True):
        x, y = (
            source.read(name, None).cpu().numpy()
            for source, name in ((first, first_name), (second, second_name))
        )
        if x.shape != y.shape:
            raise InputError(
                f"the checkpoints differ in width at {first_name}",
                expected=str(x.shape[1]),
                got=str(y.shape[1]),
            )
        shifts = all_weights @ (y - x)
        spread = np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean())
        vectors.append(shifts[:n_concepts])
        norms = np.linalg.norm(shifts, axis=1) / max(spread, 1e-300)
        relative_norm.append(norms[:n_concepts])
        null_norms.append(norms[n_concepts:].reshape(n_concepts, draws))
    observed, null = np.array(relative_norm).max(0), np.array(null_norms).max(0)
    n_exceeding = (null >= observed[:, None] * (1 - 1e-9)).sum(1)
    return ConceptShifts(
        first.names,
        concepts.names,
        np.array(vectors),
        np.array(relative_norm),
        (1 + n_exceeding) / (1 + draws),
    )


def _by_site(
    sites: tuple[str, ...], concepts: tuple[str, ...], **columns: NDArray[np.float64]
) -> pd.DataFrame:
    """One row a site and concept of tables (site, concept), or (concept,) repeated."""
    index = pd.MultiIndex.from_product([sites, concepts], names=["site", "concept"])
    shape = len(sites), len(concepts)
    flat = {name: np.broadcast_to(t, shape).ravel() for name, t in columns.items()}
    return pd.DataFrame(flat, index=index).reset_index()


def _mean_difference_weights(marks: NDArray[np.int8]) -> NDArray[np.float64]:
    """(concept, row) weights of the difference between two means."""
    positive, negative = (marks == 1).astype(float), (marks == 0).astype(float)
    return positive / positive.sum(1, keepdims=True) - negative / negative.sum(1, keepdims=True)


def _share_positive(
    gradients: ArrayLike | Tensor | SiteStore, vectors: ConceptVectors
) -> NDArray[np.float64]:
    """(site, concept) share of rows whose gradient points towards the concept."""
    source = open_source(gradients)
    if len(source.names) != len(vectors.sites):
        raise InputError(
            "gradients and concept vectors have different sites",
            expected=f"{len(vectors.sites)} sites",
            got=str(len(source.names)),
        )
    shares = []
    for i_site, name in enumerate(source.names):
        gradient = source.read(name, None).cpu().numpy()
        if gradient.shape[1] != vectors.vectors.shape[2]:
            raise InputError(
                f"gradients and vectors have different widths at {name}",
                expected=str(vectors.vectors.shape[2]),
                got=str(gradient.shape[1]),
            )
        projection = gradient @ vectors.vectors[i_site].T
        shares.append(((projection > 0) + 0.5 * (projection == 0)).mean(0))
    return np.array(shares)
