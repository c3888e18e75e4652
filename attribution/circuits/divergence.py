"""Circuit attribution divergence (CAD): distances between the edge scores of two models.

MANSU (arXiv 2605.15138) names the measure without a formula; these definitions are ours. With a_e =
|mean score| of edge e over entities, C the original's circuit, and C' the candidate's top edges of
the same number:

* mass lost: 1 - sum over C of a_e(candidate) / sum over C of a_e(original);
* retained mass: sum over C of sign(original) * score(candidate) / sum over C of a_e(original), by
  entity. The scores of an answer that was never learned have either sign and cancel, which their
  absolute values do not;
* shape: Jensen-Shannon divergence, in bits, of the normalized a_e over C and C';
* rank: Spearman correlation of a_e over all edges;
* overlap: Jaccard index of C and C'.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import rankdata

from evidence.errors import InputError


@dataclass(frozen=True)
class Divergence:
    """Distances of a candidate's edge scores from the original's.

    Attributes:
        mass_lost: 0 if the circuit carries as much as before, 1 if it carries nothing.
        shape: Jensen-Shannon divergence, 0 to 1 bit.
        rank: Spearman correlation, -1 to 1.
        overlap: Jaccard index, 0 to 1.
    """

    mass_lost: float
    shape: float
    rank: float
    overlap: float


def retained_mass(scores: np.ndarray, original: np.ndarray, edge_mask: np.ndarray) -> np.ndarray:
    """(entity,) share of the circuit's mass that keeps the original's sign.

    1 if the edges act as in the original, 0 if they have no effect on the answer, negative if they
    now oppose it.

    Args:
        scores: (entity, edge) of the candidate.
        original: (edge,) mean scores of the original.
        edge_mask: (edge,) bool, the original's circuit.

    Raises:
        InputError: The circuit is empty or all its scores are 0.

    Examples:
        >>> pairs = exhume.pair_items(tokenizer, births[:8], np.random.default_rng(0))
        >>> scores = exhume.score_edges(model, pairs)
        >>> circuit = exhume.select_circuit(model, pairs, scores, target=0.5)
        >>> mass = exhume.retained_mass(scores.by_entity(), scores.mean, circuit.edge_mask)
        >>> round(float(mass.mean()), 6)
        1.0
    """
    _check(scores, original, edge_mask)
    circuit_scores = original[edge_mask]
    return scores[:, edge_mask] @ np.sign(circuit_scores) / np.abs(circuit_scores).sum()


def divergence(scores: np.ndarray, original: np.ndarray, edge_mask: np.ndarray) -> Divergence:
    """The four distances of a candidate from the original.

    Args:
        scores: (entity, edge) of the candidate.
        original: (edge,) mean scores of the original.
        edge_mask: (edge,) bool, the original's circuit.

    Raises:
        InputError: The circuit is empty or all its scores are 0.

    Examples:
        >>> pairs = exhume.pair_items(tokenizer, births[:8], np.random.default_rng(0))
        >>> scores = exhume.score_edges(model, pairs)
        >>> circuit = exhume.select_circuit(model, pairs, scores, target=0.5)
        >>> exhume.divergence(scores.by_entity(), scores.mean, circuit.edge_mask).overlap
        1.0
    """
    _check(scores, original, edge_mask)
    before, after = np.abs(original), np.abs(scores.mean(0))
    candidate_mask = np.zeros_like(edge_mask)
    candidate_mask[np.argsort(-after, kind="stable")[: edge_mask.sum()]] = True
    union = edge_mask | candidate_mask
    # If all scores are 0 the shape is undefined; count it as fully changed.
    no_mass = after[union].sum() == 0
    shape = 1.0 if no_mass else jensenshannon(before[union], after[union], base=2) ** 2
    # Spearman's correlation is Pearson's of the ranks; it is undefined for constants.
    constant = after.std() == 0 or before.std() == 0
    correlation = np.corrcoef(rankdata(before), rankdata(after))[0, 1] if not constant else 0.0
    return Divergence(
        mass_lost=float(1 - after[edge_mask].sum() / before[edge_mask].sum()),
        shape=float(shape),
        rank=float(correlation),
        overlap=float((edge_mask & candidate_mask).sum() / union.sum()),
    )


def _check(scores: np.ndarray, original: np.ndarray, edge_mask: np.ndarray) -> None:
    if scores.shape[1:] != original.shape or edge_mask.shape != original.shape:
        raise InputError(
            "scores, original and circuit belong to different graphs",
            expected=str(original.shape),
            got=f"{scores.shape[1:]} and {edge_mask.shape}",
        )
    if not np.abs(original[edge_mask]).sum() > 0:
        raise InputError(
            "the original's circuit carries nothing, so nothing can be lost",
            expected="a circuit of one edge or more with a score that is not 0",
            got=f"{int(edge_mask.sum())} edges",
        )
