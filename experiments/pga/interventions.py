"""The published interventions: projection test and refit attack.

Source: arXiv 2605.01699 and its public code. Both fit directions on the very sequences that are
scored afterwards, so a score below one half is no erasure.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capture.network.hooks import project_out
from evidence.errors import InputError
from experiments.pga.published_protocol import CrossSequence, paired_rows, published_scores
from experiments.pga.readouts import logistic_readouts
from probes.cka import debiased_cka

Read = Callable[[], tuple[Tensor, Tensor]]
"""Returns the states of both pools, (depth, key, context, d), of the model as it runs."""


@dataclass(frozen=True, eq=False)
class ProjectionTest:
    """Effect of projecting out the probe's direction at one depth.

    Attributes:
        depth: Where.
        before: Probes at every depth.
        after: The same under the projection.
        recall_drop: Fall of the memorized texts' log-probability, in nats.
        other_drop: Fall of the held-out texts', in nats.
        reading: Outcome by the published rule.
    """

    depth: int
    before: CrossSequence
    after: CrossSequence
    recall_drop: float
    other_drop: float
    reading: str


def projection_test(
    model: nn.Module,
    sites: list[str],
    depth: int,
    read: Read,
    recall: Callable[[], float],
    others: Callable[[], float],
    C: float = 1.0,
) -> ProjectionTest:
    """Project the probe's direction out of one site at all positions, and probe again.

    Args:
        model: The model that ``read``, ``recall`` and ``others`` run.
        sites: Site name of every depth.
        depth: Where the direction is fitted and removed.
        read: Returns the states of the memorized and clean pools.
        recall: Returns the log-probability of the memorized texts, in nats.
        others: The same for held-out texts.
        C: Inverse regularization strength.

    Raises:
        InputError: no such depth.
    """
    if not 0 <= depth < len(sites):
        raise InputError(
            "the model has no such depth", expected=f"0 to {len(sites) - 1}", got=str(depth)
        )
    memorized, clean = read()
    before = published_scores(memorized, clean, C=C, shuffles=0).true
    recall_before, others_before = recall(), others()
    x, codes, _ = paired_rows(memorized, clean)
    labels = torch.from_numpy(codes)
    direction = logistic_readouts(C)(x[depth : depth + 1], labels)[0]
    with project_out(model, {sites[depth]: direction}):
        after = published_scores(*read(), C=C, shuffles=0).true
        drops = recall_before - recall(), others_before - others()
    fall = float(before.accuracy[depth] - after.accuracy[depth])
    return ProjectionTest(depth, before, after, *drops, _rule(fall, *drops))


def _rule(fall: float, recall_drop: float, other_drop: float) -> str:
    if fall < 0.05:
        return "distributed"
    if fall > 0.1 and recall_drop < 0.2:
        return "epiphenomenal"
    if fall > 0.1 and recall_drop > 0.5 and other_drop < 0.3:
        return "causal"
    return "unclear"


@dataclass(frozen=True, eq=False)
class RefitAttack:
    """An attacker that refits probes against a growing projection.

    Attributes:
        accuracy: (round, depth) of refitted probes; round 0 without projection.
        rank: Directions removed at each depth in the end.
        recall_drop: Fall of the memorized texts' log-probability, in nats.
        cka: (depth,) debiased CKA between the states before and after.
        beaten: Whether the best probe ended below the published bound.
        uncertified: Number of probes without a certificate of optimality.
    """

    accuracy: NDArray[np.float64]
    rank: int
    recall_drop: float
    cka: NDArray[np.float64]
    beaten: bool
    uncertified: int = 0


def refit_attack(
    model: nn.Module,
    sites: list[str],
    read: Read,
    recall: Callable[[], float],
    *,
    depths: list[int],
    rounds: int = 7,
    bound: float = 0.55,
    C: float = 1.0,
) -> RefitAttack:
    """Repeatedly fit probes and project their directions out.

    Args:
        model: The model that ``read`` and ``recall`` run.
        sites: Site name of every depth.
        read: Returns the states of the memorized and clean pools.
        recall: Returns the log-probability of the memorized texts, in nats.
        depths: Where directions are fitted and removed.
        rounds: Maximum number of rounds.
        bound: The attack is beaten once every depth's accuracy is below this.
        C: Inverse regularization strength.
    """
    fit = logistic_readouts(C)
    basis: dict[int, Tensor] = {}
    scores: list[NDArray[np.float64]] = []
    states: list[Tensor] = []
    recall_before = recall_after = recall()
    n_uncertified = 0
    for round_ in range(rounds + 1):
        with project_out(model, {sites[depth]: b for depth, b in basis.items()}):
            memorized, clean = read()
            x, codes, _ = paired_rows(memorized, clean)
            scored = published_scores(memorized[depths], clean[depths], C=C, shuffles=0).true
            scores.append(scored.accuracy)
            n_uncertified += scored.uncertified
            recall_after = recall()
        states = [*states[:1], x]
        if float(scored.accuracy.max()) < bound or round_ == rounds:
            break
        new = fit(x[depths], torch.from_numpy(codes))
        for row, depth in enumerate(depths):
            known_basis = basis.get(depth, new.new_zeros((0, new.shape[1])))
            residual = new[row] - known_basis.T @ (known_basis @ new[row])
            basis[depth] = torch.cat(
                [known_basis, (residual / residual.norm().clamp(min=1e-300))[None]]
            )
    same = [_cka(states[0][depth], states[-1][depth]) for depth in depths]
    rank = len(next(iter(basis.values()))) if basis else 0
    beaten = float(scores[-1].max()) < bound
    return RefitAttack(
        np.stack(scores), rank, recall_before - recall_after, np.array(same), beaten, n_uncertified
    )


def _cka(before: Tensor, after: Tensor) -> float:
    if float((after - after.mean(0)).abs().max()) == 0:
        return 0.0
    return debiased_cka(before, after)
