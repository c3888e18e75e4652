"""Calibration of probabilities: reliability bins, calibration error, risk-coverage curve."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evidence.errors import InputError
from evidence.intervals import Interval, wilson_interval


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram.

    Attributes:
        low: Lower edge of the bin.
        high: Upper edge of the bin.
        n: Number of answers.
        confidence: Mean confidence.
        right: Share of correct answers.
        interval: 95 % Wilson interval of ``right``.
    """

    low: float
    high: float
    n: int
    confidence: float
    right: float
    interval: Interval


def reliability(
    confidence: ArrayLike, correct: ArrayLike, n_bins: int = 10
) -> list[ReliabilityBin]:
    """Reliability diagram with bins of equal width; empty bins are left out.

    Raises:
        InputError: a confidence is not a probability, or lengths differ.
    """
    scores, hits = _validate(confidence, correct)
    bin_idx = np.minimum((scores * n_bins).astype(int), n_bins - 1)
    result = []
    for index in np.unique(bin_idx):
        mask = bin_idx == index
        share, n = float(hits[mask].mean()), int(mask.sum())
        result.append(
            ReliabilityBin(
                float(index / n_bins),
                float((index + 1) / n_bins),
                n,
                float(scores[mask].mean()),
                share,
                wilson_interval(share, n, 1.96),
            )
        )
    return result


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, n_bins: int = 10
) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599), between 0 and 1.

    The mean of |confidence - accuracy| over bins of equal width, weighted by bin size.
    """
    bins = reliability(confidence, correct, n_bins)
    total = sum(part.n for part in bins)
    return sum(part.n * abs(part.confidence - part.right) for part in bins) / total


def risk_coverage_curve(
    confidence: ArrayLike, correct: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Risk-coverage curve: error rate among the most confident answers.

    Answers of equal confidence are kept or dropped together.

    Returns:
        (point,) share of answers kept, ascending, and (point,) error rate among them.
    """
    scores, hits = _validate(confidence, correct)
    order = np.argsort(-scores, kind="stable")
    scores, wrong = scores[order], ~hits[order]
    last = np.append(scores[1:] < scores[:-1], True)
    n_kept = np.arange(1, len(scores) + 1)
    return (n_kept / len(scores))[last], (np.cumsum(wrong) / n_kept)[last]


def _validate(
    confidence: ArrayLike, correct: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores, hits = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool)
    if scores.ndim != 1 or scores.shape != hits.shape or len(scores) == 0:
        raise InputError(
            "confidence and outcome do not match",
            expected="one of each for every answer, at least one answer",
            got=f"shapes {scores.shape} and {hits.shape}",
        )
    if not ((scores >= 0) & (scores <= 1)).all():
        raise InputError(
            "a confidence is not a probability",
            expected="numbers between 0 and 1",
            got=f"{scores[~((scores >= 0) & (scores <= 1))][0]}",
        )
    return scores, hits
