"""The published evaluation of probe-geometry alignment, reproduced exactly.

It is a reproduction, not evidence: contexts count as samples, the eraser has seen the probe's
test items, and the headline is one difference of two noisy scores. Claims rest on
``probes.sweeps.membership_test``.

Source: arXiv 2605.01699, from its public code and results.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from erasure.concept.md_pga import fit_md_pga
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import numpy_rng
from probes.estimators.classifier_battery import held_out_scores
from probes.estimators.logistic import LogisticProbe
from probes.splits.folds import Folds, leave_one_group_out

SHUFFLES = 5
SIGNAL, NO_SIGNAL, SHUFFLED_BELOW = 0.15, 0.05, 0.6
PROBE_TARGET = 0.72
RECALL_TARGET = 1e-3
PERPLEXITY_TARGET = 1.1


@dataclass(frozen=True, eq=False)
class CrossSequence:
    """Leave-one-key-out probes at every depth.

    Attributes:
        correct: (key, depth) accuracy on the held-out key's rows, at the probe's own threshold.
        concordance: (key, depth) share of the held-out key's pairs of one row of either class
            in which the first class scores higher; 0 is inverted.
        uncertified: Number of logistic fits, including those of shuffled labels, without a
            certificate of optimality; their scores count.
    """

    correct: NDArray[np.float64]
    concordance: NDArray[np.float64]
    uncertified: int = 0

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """(depth,) mean over keys, the published score."""
        return self.correct.mean(0)

    @property
    def spread(self) -> NDArray[np.float64]:
        """(depth,) standard deviation over keys, as published."""
        return self.correct.std(0)

    @property
    def oriented(self) -> NDArray[np.float64]:
        """(depth,) the accuracy or one minus it, whichever is larger."""
        return np.maximum(self.accuracy, 1 - self.accuracy)


@dataclass(frozen=True, eq=False)
class Published:
    """Scores of one model under the published protocol.

    Attributes:
        true: Memorized against clean.
        pure: Clean against the second clean pool; None where there is none.
        shuffled: (shuffle, depth) accuracies with labels exchanged within keys.
    """

    true: CrossSequence
    pure: CrossSequence | None
    shuffled: NDArray[np.float64]

    @property
    def gap(self) -> NDArray[np.float64] | None:
        """(depth,) the memorization-specific gap: true minus pure."""
        if self.pure is None:
            return None
        return self.true.accuracy - self.pure.accuracy

    @property
    def mean_gap(self) -> float | None:
        """The published headline: the mean gap over depths 1 to L."""
        return None if self.gap is None else float(self.gap[1:].mean())

    @property
    def uncertified(self) -> int:
        """Number of logistic fits without a certificate of optimality."""
        return self.true.uncertified + (self.pure.uncertified if self.pure else 0)

    @property
    def reading(self) -> str:
        """Outcome by the published rule: signal, none or unclear."""
        gap = self.mean_gap
        if gap is None:
            return "not defined without a second clean pool"
        if gap > SIGNAL and float(self.shuffled.mean(0).max()) < SHUFFLED_BELOW:
            return "signal"
        return "none" if gap < NO_SIGNAL else "unclear"


def published_scores(
    memorized: Tensor,
    clean: Tensor,
    others: Tensor | None = None,
    *,
    C: float = 1.0,
    shuffles: int = SHUFFLES,
    seed: int = 42,
) -> Published:
    """True, pure and shuffled scores.

    Args:
        memorized: (depth, key, context, d) states.
        clean: The same for clean texts, key by key.
        others: The same for a second clean pool.
        C: Inverse regularization strength of the probe.
        shuffles: Number of random exchanges of labels within keys.
    """
    true, shuffled = _scored(memorized, clean, C, shuffles, seed)
    pure = None if others is None else _scored(clean, others, C, 0, seed)[0]
    return Published(true, pure, shuffled)


def _scored(
    first: Tensor, second: Tensor, C: float, shuffles: int, seed: int
) -> tuple[CrossSequence, NDArray[np.float64]]:
    x, codes, keys = paired_rows(first, second)
    folds = leave_one_group_out(keys, len(keys))
    flips = np.zeros((1 + shuffles, int(keys.max()) + 1), dtype=np.int64)
    for shuffle in range(shuffles):
        rng = numpy_rng(seed, "published shuffle", str(shuffle))
        flips[1 + shuffle] = rng.integers(0, 2, flips.shape[1])
    labels = torch.from_numpy(codes[None] ^ flips[:, keys])
    probe = LogisticProbe(C, standardize="fold")
    results = [probe.held_out(rows, labels, 2, folds) for rows in x]
    held = torch.stack([result.scores[:, 0] for result in results]).numpy()
    n_uncertified = sum(len(result.uncertified) for result in results)
    right = (held > 0) == labels.numpy().astype(bool)
    by_key = np.stack([right[:, 1:, keys == key].mean(-1) for key in np.unique(keys)])
    return (
        replace(_by_key(held[:, 0], codes, keys), uncertified=n_uncertified),
        by_key.mean(0).T if shuffles else np.zeros((0, len(x))),
    )


def paired_rows(
    first: Tensor, second: Tensor
) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """(depth, row, d) rows of both pools, their labels (1 for the first) and keys.

    Raises:
        InputError: pools that do not pair up.
    """
    if first.ndim != 4 or first.shape[:2] != second.shape[:2]:
        raise InputError(
            "the pools do not pair up key by key",
            expected="two of (depth, key, context, d) with as many depths and keys",
            got=f"{tuple(first.shape)} and {tuple(second.shape)}",
        )
    parts = [pool.double().flatten(1, 2) for pool in (first, second)]
    key_count, n_contexts = first.shape[1], (first.shape[2], second.shape[2])
    keys = np.concatenate([np.repeat(np.arange(key_count), n) for n in n_contexts])
    codes = np.repeat([1, 0], [part.shape[1] for part in parts])
    return torch.cat(parts, 1), codes, keys


def _by_key(
    scores: NDArray[np.float64], codes: NDArray[np.int64], keys: NDArray[np.int64]
) -> CrossSequence:
    """Accuracy and concordance of every key from held-out (depth, row) scores."""
    right = (scores > 0) == codes.astype(bool)
    correct, concordance = [], []
    for key in np.unique(keys):
        inside = keys == key
        high = scores[:, inside & (codes == 1)][:, :, None]
        low = scores[:, inside & (codes == 0)][:, None]
        correct.append(right[:, inside].mean(1))
        concordance.append(((high > low) + 0.5 * (high == low)).mean((1, 2)))
    return CrossSequence(np.stack(correct), np.stack(concordance))


VARIANTS = (
    "logistic C=1, seed 42",
    "logistic C=1, seed 7",
    "logistic C=0.1",
    "logistic C=10",
    "network 16",
    "network 32-16",
)
"""The six adversarial probes. The first two are equal: an optimum does not depend on a seed."""


def adversarial_probes(
    memorized: Tensor, clean: Tensor, *, progress: Progress = AUTO
) -> dict[str, CrossSequence]:
    """The six published probe variants, on the eraser's own items.

    Args:
        memorized: (depth, key, context, d) states.
        clean: The same for clean texts.
    """
    x, codes, keys = paired_rows(memorized, clean)
    folds = leave_one_group_out(keys, len(keys))
    labels = torch.from_numpy(codes)[None]
    by_variant: dict[str, CrossSequence] = {}
    with as_progress(progress).task("adversarial probes", len(VARIANTS)) as advance:
        for name, C in zip(VARIANTS[:4], (1.0, 1.0, 0.1, 10.0), strict=True):
            probe = LogisticProbe(C, standardize="fold")
            results = [probe.held_out(rows, labels, 2, folds) for rows in x]
            held = torch.stack([result.scores[0, 0] for result in results]).numpy()
            n_uncertified = sum(len(result.uncertified) for result in results)
            by_variant[name] = replace(_by_key(held, codes, keys), uncertified=n_uncertified)
            advance(1)
        for name, layers, seed in zip(VARIANTS[4:], ((16,), (32, 16)), (42, 7), strict=True):
            network = make_pipeline(
                StandardScaler(), MLPClassifier(layers, max_iter=500, random_state=seed)
            )
            held = [held_out_scores(network, rows.numpy(), codes, 2, folds)[0] for rows in x]
            by_variant[name] = _by_key(np.stack(held), codes, keys)
            advance(1)
    return by_variant


def token_split(
    memorized: Tensor,
    clean: Tensor,
    k: int,
    *,
    leak: bool = True,
    share: float = 0.7,
    seed: int = 42,
) -> tuple[float, float]:
    """MD-PGA's published score: balanced accuracy on a random split of tokens.

    Args:
        memorized: (token, d) states of one memorized text.
        clean: (token, d) states of clean texts.
        k: Number of directions removed.
        leak: Fit the eraser on all tokens, including the probe's test tokens, as published;
            else on the probe's training tokens alone.
        share: Share of training tokens.

    Returns:
        Balanced accuracy before and after the projection.
    """
    x = torch.cat([memorized, clean]).double()
    codes = np.repeat([1, 0], [len(memorized), len(clean)])
    train = np.zeros(len(x), dtype=bool)
    rng = numpy_rng(seed, "token split")
    for code in (0, 1):
        rows = rng.permutation(np.flatnonzero(codes == code))
        train[rows[: round(share * len(rows))]] = True
    fitted = np.ones_like(train) if leak else train
    eraser = fit_md_pga(x[None, fitted], torch.from_numpy(codes[fitted]), k)
    folds = Folds(train[None], ~train[None], "token split")
    probe = LogisticProbe(class_weight="balanced", standardize="fold")
    accuracies = []
    for rows in (x, eraser.transform(x, 0)):
        labels = torch.from_numpy(codes)[None]
        held = probe.held_out(rows, labels, 2, folds).scores[0, 0].numpy()
        predicted = held[~train] > 0
        truth = codes[~train] == 1
        accuracies.append(0.5 * float(predicted[truth].mean() + (~predicted[~truth]).mean()))
    return accuracies[0], accuracies[1]


def toy_verdict(
    least: float, perplexities: tuple[float, float], probes: Sequence[float]
) -> dict[str, bool]:
    """The published criterion of success on the toy model, term by term.

    Args:
        least: Probability of the least probable memorized code.
        perplexities: Of the clean texts, before and after.
        probes: Accuracy by depth.
    """
    return {
        "recall": least <= RECALL_TARGET,
        "probe": max(probes) <= PROBE_TARGET,
        "probe, orientation ignored": max(max(p, 1 - p) for p in probes) <= PROBE_TARGET,
        "perplexity": perplexities[1] <= PERPLEXITY_TARGET * perplexities[0],
    }
