"""Minimum description length of labels given activations, by online (prequential) coding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from evidence.arrays import as_tensor, check_finite, validate_labels
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import numpy_rng
from probes.estimators.base import LinearProbe
from probes.estimators.logistic import LogisticProbe
from probes.estimators.scikit_learn import as_probe, gives_log_odds
from probes.solvers.uncertified import UncertifiedFit, warn_uncertified
from probes.splits import metrics
from probes.splits.folds import Folds, group_codes

FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class CodeLength:
    """Bits needed to transmit the labels block by block.

    Attributes:
        bits: Total.
        uniform_bits: Bits without the activations, rows x log2(classes).
        blocks: Bits of each block after the first.
        uncertified: Fits that are not certified to be at their optimum, by block; their bits are
            included.
    """

    bits: float
    uniform_bits: float
    blocks: tuple[float, ...]
    uncertified: tuple[UncertifiedFit, ...] = ()


def online_code(
    x: ArrayLike | torch.Tensor,
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    probe: LinearProbe | BaseEstimator | None = None,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    progress: Progress = AUTO,
) -> CodeLength:
    """Transmit the first block uniformly, each next one with a probe fitted on all before it.

    Args:
        x: (row, d).
        labels: (row,).
        groups: (row,); a group is never split between blocks.
        probe: One whose scores are log-odds; ``LogisticProbe(0.1, standardize="fold")`` by default.
        fractions: Increasing shares of the groups at which blocks end, the last 1.
        seed: Seed of the order of groups.
        progress: One unit a block.

    Raises:
        InputError: the first blocks lack a class, or the probe has no log-odds.

    Warns:
        UncertifiedWarning: fits that are not certified to be at their optimum.

    Source: Voita and Titov (2020), arXiv 2003.12298.
    """
    probe = LogisticProbe(0.1, standardize="fold") if probe is None else as_probe(probe)
    if not gives_log_odds(probe):
        raise InputError("the probe gives no probabilities to code with", got=repr(probe))
    rows = as_tensor(x)
    if rows.ndim != 2:
        raise InputError("the code needs one vector a row", got=f"shape {tuple(rows.shape)}")
    check_finite(rows)
    classes, codes = validate_labels(labels, len(rows))
    entities = group_codes(groups, len(rows))
    n_groups = int(entities.max()) + 1
    ends = [max(1, round(share * n_groups)) for share in fractions]
    if ends[-1] != n_groups or ends != sorted(set(ends)) or len(ends) < 2:
        raise InputError(
            "fractions must increase to 1 by at least one group each", got=str(fractions)
        )
    order = numpy_rng(seed, "online_code").permutation(n_groups)[entities]
    first_block = 0
    while len(np.unique(codes[order < ends[first_block]])) < len(classes):
        first_block += 1
        if first_block == len(ends) - 1:
            raise InputError(
                "the blocks before the last lack a class", fix="Give more rows or fewer classes"
            )
    bits_per_label = float(np.log2(len(classes)))
    n_sent = int((order < ends[first_block]).sum())
    block_bits, uncertified = [], []
    total_bits = n_sent * bits_per_label
    y = torch.from_numpy(codes)[None].to(rows.device)
    with as_progress(progress).task("online code", len(ends) - 1 - first_block) as advance:
        for start, end in zip(ends[first_block:-1], ends[first_block + 1 :], strict=True):
            train, test = order < start, (order >= start) & (order < end)
            fold = Folds(train[None], test[None], "online block")
            held_out = probe.held_out(rows, y, len(classes), fold)
            scored = torch.from_numpy(test).to(rows.device)
            loss = metrics.log_loss(held_out.scores[:, :, scored], y[:, scored])
            for fit in held_out.uncertified:
                uncertified.append(replace(fit, fold=len(block_bits), name="blocks"))
            block_bits.append(float(loss.sum() / np.log(2)))
            total_bits += block_bits[-1]
            advance(1)
    warn_uncertified(uncertified)
    return CodeLength(
        total_bits, len(codes) * bits_per_label, tuple(block_bits), tuple(uncertified)
    )
