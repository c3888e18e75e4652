"""Circuit attribution divergence (CAD, our definition): how far edges' scores moved.

MANSU (arXiv 2605.15138) names the measure and publishes no formula; what stands here is
ours. With a_e = |mean score| of edge e over entities, C the original's circuit and C'
the candidate's best edges, as many:

* mass lost: 1 - sum over C of a_e(candidate) / sum over C of a_e(original);
* mass kept in the original's direction: sum over C of sign(original) * score(candidate)
  / sum over C of a_e(original), entity by entity. Scores of an answer that was never
  known have either sign and average out, where their absolute values do not;
* shape: Jensen-Shannon divergence, in bits, of the normalised a_e over C and C';
* rank: Spearman correlation of a_e over all edges; overlap: Jaccard index of C and C'.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import rankdata

from evidence.errors import InputError


@dataclass(frozen=True)
class Divergence:
    """How far a candidate's edge scores are from the original's.

    Attributes:
        mass_lost: 0 where the circuit carries as much as before, 1 where nothing.
        shape: 0 to 1 bit.
        rank: -1 to 1.
        overlap: 0 to 1.
    """

    mass_lost: float
    shape: float
    rank: float
    overlap: float


def retained_mass(
    scores: np.ndarray, original: np.ndarray, edge_mask: np.ndarray
) -> np.ndarray:
    """(entity,) share of the circuit's mass kept in the original's direction.

    1 where the edges do what they did, 0 where they do nothing for this answer,
    negative where they now work against it.

    Args:
        scores: (entity, edge) of the candidate.
        original: (edge,) mean scores of the original.
        edge_mask: (edge,) bool, the original's circuit.

    Raises:
        InputError: the circuit is empty or carries nothing.
    """
    _check(scores, original, edge_mask)
    base = original[edge_mask]
    return scores[:, edge_mask] @ np.sign(base) / np.abs(base).sum()


def divergence(
    scores: np.ndarray, original: np.ndarray, edge_mask: np.ndarray
) -> Divergence:
    """The four figures of a candidate.

    Args:
        scores: (entity, edge) of the candidate.
        original: (edge,) mean scores of the original.
        edge_mask: (edge,) bool, the original's circuit.

    Raises:
        InputError: the circuit is empty or carries nothing.
    """
    _check(scores, original, edge_mask)
    before, after = np.abs(original), np.abs(scores.mean(0))
    own = np.zeros_like(edge_mask)
    own[np.argsort(-after, kind="stable")[: edge_mask.sum()]] = True
    both = edge_mask | own
    # A candidate whose edges carry nothing at all has no shape, and kept none.
    silent = after[both].sum() == 0
    shape = 1.0 if silent else jensenshannon(before[both], after[both], base=2) ** 2
    # Spearman's coefficient is Pearson's of the ranks.
    flat = after.std() == 0 or before.std() == 0
    ranks = np.corrcoef(rankdata(before), rankdata(after))[0, 1] if not flat else 0.0
    return Divergence(
        mass_lost=float(1 - after[edge_mask].sum() / before[edge_mask].sum()),
        shape=float(shape),
        rank=float(ranks),
        overlap=float((edge_mask & own).sum() / both.sum()),
    )


def _check(scores: np.ndarray, original: np.ndarray, chosen: np.ndarray) -> None:
    if scores.shape[1:] != original.shape or chosen.shape != original.shape:
        raise InputError(
            "scores, original and circuit belong to different graphs",
            expected=str(original.shape),
            got=f"{scores.shape[1:]} and {chosen.shape}",
        )
    if not np.abs(original[chosen]).sum() > 0:
        raise InputError(
            "the original's circuit carries nothing, so nothing can be lost",
            expected="a circuit of one edge or more with a score that is not 0",
            got=f"{int(chosen.sum())} edges",
        )
