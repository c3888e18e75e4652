"""Do concept vectors matter to an output, and did they move between checkpoints?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence.errors import InputError
from evidence.seeds import numpy_rng
from probes.concepts.labels import Concepts, random_concepts
from probes.concepts.vectors import ConceptVectors
from probes.splits.folds import group_codes
from probes.sweeps.site_source import SiteStore, open_source


@dataclass(frozen=True, eq=False, repr=False)
class TcavScores:
    """Sensitivity of an output to concepts, against concepts that mean nothing.

    Attributes:
        score: (site, concept) share of rows whose output would rise if the
            activation moved towards the concept; 0.5 says that it does not matter.
        random: (site, draw) the same for random concepts.
        p_value: (concept,) two-sided: does the score lie farther from one half at
            some site than random concepts do at theirs?
    """

    sites: tuple[str, ...]
    concepts: tuple[str, ...]
    score: NDArray[np.float64]
    random: NDArray[np.float64]
    p_value: NDArray[np.float64]


def tcav(
    gradients: ArrayLike | Tensor | SiteStore,
    vectors: ConceptVectors,
    random: ConceptVectors,
) -> TcavScores:
    """TCAV scores of all concepts, and the test against random concepts.

    The paper runs a t-test over vectors that share their positive rows; those are
    not independent. Here the score's distance from one half, the largest over sites,
    takes its rank among that of random concepts fitted in the same way, which holds
    whatever the dependence. Over concepts it is not corrected.

    Args:
        gradients: (site, row, d) of an output, such as an answer's logit, by the
            activations of rows at the sites of the vectors.
        vectors: Of the concepts.
        random: Of random concepts on the same rows (``random_concepts``).

    Raises:
        InputError: sites or widths differ.

    Source: Kim et al. (2018), arXiv 1711.11279.
    """
    score = _share_positive(gradients, vectors)
    null = _share_positive(gradients, random)
    if len(score) != len(null):
        raise InputError(
            "concepts and random concepts were fitted at different sites",
            expected=f"{len(score)} sites",
            got=str(len(null)),
        )
    far, by_luck = (np.abs(each - 0.5).max(0) for each in (score, null))
    beyond = (by_luck[None] >= far[:, None] - 1e-12).sum(1)
    p_value = (1 + beyond) / (1 + len(by_luck))
    return TcavScores(vectors.sites, vectors.concepts, score, null, p_value)


@dataclass(frozen=True, eq=False, repr=False)
class ConceptShifts:
    """How the rows of each concept moved between two checkpoints, others' motion off.

    Attributes:
        vectors: (site, concept, d) mean shift of rows that show the concept less that
            of rows that do not, in activation units.
        size: (site, concept) its length over the root mean square distance of the
            first checkpoint's rows from their mean.
        p_value: (concept,) is it longer at some site than after the concept's marks
            were dealt anew among groups?
    """

    sites: tuple[str, ...]
    concepts: tuple[str, ...]
    vectors: NDArray[np.float64]
    size: NDArray[np.float64]
    p_value: NDArray[np.float64]


def shift_vectors(
    before: ArrayLike | Tensor | SiteStore,
    after: ArrayLike | Tensor | SiteStore,
    concepts: Concepts,
    *,
    groups: ArrayLike | None = None,
    draws: int = 200,
    seed: int = 0,
) -> ConceptShifts:
    """What a change of weights did to the rows of each concept, beyond all others.

    Args:
        before: (site, row, d) of the first checkpoint.
        after: The same rows in the second.
        concepts: Which rows show what.
        groups: (row,) entity of each row; marks are exchanged by whole groups where
            every group has one.
        draws: Permutations.
        seed: Of the permutations.

    Raises:
        InputError: the two differ in sites, rows or width.
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
    entity = group_codes(groups, concepts.n_rows)
    weights = [_mean_difference_weights(concepts.marks)]
    for place, marks in enumerate(concepts.marks):
        seed_of = int(numpy_rng(seed, "shifts", concepts.names[place]).integers(2**31))
        weights.append(
            _mean_difference_weights(
                random_concepts(marks, entity, draws, seed_of).marks
            )
        )
    table = np.concatenate(weights)
    count = len(concepts)
    vectors, size, lengths = [], [], []
    for old, new in zip(first.names, second.names, strict=True):
        x, y = (
            source.read(name, None).cpu().numpy()
            for source, name in ((first, old), (second, new))
        )
        if x.shape != y.shape:
            raise InputError(
                f"the checkpoints differ in width at {old}",
                expected=str(x.shape[1]),
                got=str(y.shape[1]),
            )
        moved = table @ (y - x)
        spread = np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean())
        vectors.append(moved[:count])
        length = np.linalg.norm(moved, axis=1) / max(spread, 1e-300)
        size.append(length[:count])
        lengths.append(length[count:].reshape(count, draws))
    observed, null = np.array(size).max(0), np.array(lengths).max(0)
    beyond = (null >= observed[:, None] * (1 - 1e-9)).sum(1)
    return ConceptShifts(
        first.names,
        concepts.names,
        np.array(vectors),
        np.array(size),
        (1 + beyond) / (1 + draws),
    )


def _mean_difference_weights(marks: NDArray[np.int8]) -> NDArray[np.float64]:
    """(concept, row) weights that take one mean from another."""
    yes, no = (marks == 1).astype(float), (marks == 0).astype(float)
    return yes / yes.sum(1, keepdims=True) - no / no.sum(1, keepdims=True)


def _share_positive(
    gradients: ArrayLike | Tensor | SiteStore, vectors: ConceptVectors
) -> NDArray[np.float64]:
    """(site, concept) share of rows whose gradient points towards the concept."""
    source = open_source(gradients)
    if len(source.names) != len(vectors.sites):
        raise InputError(
            "gradients and concept vectors have other sites",
            expected=f"{len(vectors.sites)} sites",
            got=str(len(source.names)),
        )
    shares = []
    for place, name in enumerate(source.names):
        slope = source.read(name, None).cpu().numpy()
        if slope.shape[1] != vectors.vectors.shape[2]:
            raise InputError(
                f"the gradients at {name} have another width than the vectors",
                expected=str(vectors.vectors.shape[2]),
                got=str(slope.shape[1]),
            )
        along = slope @ vectors.vectors[place].T
        shares.append(((along > 0) + 0.5 * (along == 0)).mean(0))
    return np.array(shares)
