"""The published interventions on a live model: projection test and re-fit attacker.

Source: arXiv 2605.01699 and its public code. Both fit directions on the very sequences
that are scored afterwards, so what they report below one half is no erasure.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capture.network.hooks import project_out
from evidence.errors import InputError
from experiments.pga.published_protocol import (
    CrossSequence,
    paired_rows,
    published_scores,
)
from experiments.pga.readouts import logistic_readouts
from probes.cka import debiased_cka

Read = Callable[[], tuple[Tensor, Tensor]]
"""States of both pools, (depth, key, context, d), of the model as it is now."""


@dataclass(frozen=True, eq=False)
class ProjectionTest:
    """What goes when the probe's direction at one depth is projected out.

    Attributes:
        depth: Where.
        before: Probes at every depth.
        after: The same with the direction gone.
        recall_drop: Fall of the memorised texts' log-probability, in nats.
        other_drop: Fall of the held-out texts', in nats.
        reading: What the published rule makes of it.
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
    """Project the probe's direction out of one site at all positions, and look again.

    Args:
        model: What ``read``, ``recall`` and ``others`` run.
        sites: Site name of every depth.
        depth: Where the direction is fitted and removed.
        read: States of memorised and clean pools.
        recall: Log-probability of the memorised texts, in nats.
        others: The same of held-out texts.
        C: Inverse penalty.

    Raises:
        InputError: no such depth.
    """
    if not 0 <= depth < len(sites):
        raise InputError(
            "the model has no such depth",
            expected=f"0 to {len(sites) - 1}",
            got=str(depth),
        )
    memorised, clean = read()
    before = published_scores(memorised, clean, C=C, shuffles=0).true
    known, rest = recall(), others()
    x, codes, _ = paired_rows(memorised, clean)
    labels = torch.from_numpy(codes)
    direction = logistic_readouts(C)(x[depth : depth + 1], labels)[0]
    with project_out(model, {sites[depth]: direction}):
        after = published_scores(*read(), C=C, shuffles=0).true
        drops = known - recall(), rest - others()
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
    """A re-fitting attacker against a growing projection.

    Attributes:
        accuracy: (round, depth) fresh probes on what is left, round 0 untouched.
        rank: Directions removed at each depth in the end.
        recall_drop: Fall of the memorised texts' log-probability, in nats.
        cka: (depth,) debiased CKA between the states before and after.
        beaten: Whether the best probe ended under the published bound.
        uncertified: How many fresh probes are not certified to be at their optimum.
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
    """Project out, let a fresh probe find what is left, project that out as well.

    Args:
        model: What ``read`` and ``recall`` run.
        sites: Site name of every depth.
        read: States of memorised and clean pools.
        recall: Log-probability of the memorised texts, in nats.
        depths: Where directions are removed and probes are fitted.
        rounds: Most rounds.
        bound: The attack is beaten once no depth's accuracy reaches this.
        C: Inverse penalty.
    """
    fit = logistic_readouts(C)
    basis: dict[int, Tensor] = {}
    scores: list[NDArray[np.float64]] = []
    states: list[Tensor] = []
    known = left = recall()
    lost = 0
    for turn in range(rounds + 1):
        with project_out(model, {sites[depth]: b for depth, b in basis.items()}):
            memorised, clean = read()
            x, codes, _ = paired_rows(memorised, clean)
            scored = published_scores(
                memorised[depths], clean[depths], C=C, shuffles=0
            ).true
            scores.append(scored.accuracy)
            lost += scored.uncertified
            left = recall()
        states = [*states[:1], x]
        if float(scored.accuracy.max()) < bound or turn == rounds:
            break
        new = fit(x[depths], torch.from_numpy(codes))
        for place, depth in enumerate(depths):
            known_basis = basis.get(depth, new.new_zeros((0, new.shape[1])))
            rest = new[place] - known_basis.T @ (known_basis @ new[place])
            basis[depth] = torch.cat(
                [known_basis, (rest / rest.norm().clamp(min=1e-300))[None]]
            )
    same = [_cka(states[0][depth], states[-1][depth]) for depth in depths]
    rank = len(next(iter(basis.values()))) if basis else 0
    beaten = float(scores[-1].max()) < bound
    return RefitAttack(
        np.stack(scores), rank, known - left, np.array(same), beaten, lost
    )


def _cka(before: Tensor, after: Tensor) -> float:
    if float((after - after.mean(0)).abs().max()) == 0:
        return 0.0
    return debiased_cka(before, after)
