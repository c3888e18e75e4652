"""Description length of labels given activations, by online coding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from evidence.arrays import as_tensor, validate_labels
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng
from probes.estimators.base import LinearProbe, ProbabilityMixin
from probes.estimators.logistic import LogisticProbe
from probes.solvers.uncertified import UncertifiedFit, warn_uncertified
from probes.splits import metrics
from probes.splits.folds import Folds, group_codes

FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class CodeLength:
    """How many bits the labels cost, sent block by block.

    Attributes:
        bits: Total.
        uniform_bits: The cost without looking at activations, rows x log2(classes).
        blocks: Bits of each block after the first.
        uncertified: Fits that are not certified to be at their optimum, by block; the
            bits are what they cost.
    """

    bits: float
    uniform_bits: float
    blocks: tuple[float, ...]
    uncertified: tuple[UncertifiedFit, ...] = ()

    @property
    def compression(self) -> float:
        """``uniform_bits`` / ``bits``; 1 or less means the activations do not help."""
        return self.uniform_bits / self.bits


def online_code(
    x: ArrayLike | torch.Tensor,
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    probe: LinearProbe | None = None,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    progress: Progress = SILENT,
) -> CodeLength:
    """Send the first block uniformly, each next by a probe fitted on all before it.

    Args:
        x: (row, d).
        labels: (row,).
        groups: (row,); a group is never split between blocks.
        probe: One whose scores are log-odds; ``LogisticProbe(0.1, standardize="fold")``
            by default.
        fractions: Rising shares of the groups at which blocks end, the last 1.
        seed: Of the order in which groups are sent.
        progress: Shows blocks.

    Raises:
        InputError: the first blocks lack a class, or the probe has no log-odds.

    Warns:
        UncertifiedWarning: fits that are not certified to be at their optimum.

    Source: Voita and Titov (2020), arXiv 2003.12298.
    """
    probe = LogisticProbe(0.1, standardize="fold") if probe is None else probe
    if not isinstance(probe, ProbabilityMixin):
        raise InputError(f"{type(probe).__name__} gives no probabilities to code with")
    rows = (
        x.detach().double() if isinstance(x, torch.Tensor) else as_tensor(np.asarray(x))
    )
    classes, codes = validate_labels(labels, len(rows))
    group = group_codes(groups, len(rows))
    count = int(group.max()) + 1
    ends = [max(1, round(share * count)) for share in fractions]
    if ends[-1] != count or ends != sorted(set(ends)) or len(ends) < 2:
        raise InputError(
            "fractions must rise to 1 by at least one group each", got=str(fractions)
        )
    turn = numpy_rng(seed, "online_code").permutation(count)[group]
    first = 0
    while len(np.unique(codes[turn < ends[first]])) < len(classes):
        first += 1
        if first == len(ends) - 1:
            raise InputError(
                "the blocks before the last lack a class",
                fix="Give more rows or fewer classes",
            )
    bits_each = float(np.log2(len(classes)))
    sent = int((turn < ends[first]).sum())
    lengths, uncertified = [], []
    total = sent * bits_each
    y = torch.from_numpy(codes)[None].to(rows.device)
    with progress.task("online code", len(ends) - 1 - first) as advance:
        for start, end in zip(ends[first:-1], ends[first + 1 :], strict=True):
            train, test = turn < start, (turn >= start) & (turn < end)
            fold = Folds(train[None], test[None], "online block")
            result = probe.held_out(rows, y, len(classes), fold)
            scored = torch.from_numpy(test).to(rows.device)
            loss = metrics.log_loss(result.scores[:, :, scored], y[:, scored])
            for fit in result.uncertified:
                uncertified.append(replace(fit, fold=len(lengths), name="blocks"))
            lengths.append(float(loss.sum() / np.log(2)))
            total += lengths[-1]
            advance(1)
    warn_uncertified(uncertified)
    return CodeLength(total, len(codes) * bits_each, tuple(lengths), tuple(uncertified))
