"""Calibration of probabilities: reliability bins, calibration error, risk-coverage curve."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    confidence: Sequence[float], correct: Sequence[bool], n_bins: int = 10
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
    confidence: Sequence[float], correct: Sequence[bool], n_bins: int = 10
) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599), between 0 and 1.

    The mean of |confidence - accuracy| over bins of equal width, weighted by bin size.
    """
    found = reliability(confidence, correct, n_bins)
    total = sum(each.n for each in found)
    return sum(each.n * abs(each.confidence - each.right) for each in found) / total


def risk_coverage_curve(
    confidence: Sequence[float], correct: Sequence[bool]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Risk-coverage curve: error rate among the most confident answers.

    Answers of equal confidence are kept or dropped together.

    Returns:
        (point,) share of answers kept, ascending, and (point,) error rate among them.
    """
    given, true = _validate(confidence, correct)
    order = np.argsort(-given, kind="stable")
    given, wrong = given[order], ~true[order]
    last = np.append(given[1:] < given[:-1], True)
    kept = np.arange(1, len(given) + 1)
    return (kept / len(given))[last], (np.cumsum(wrong) / kept)[last]


def _validate(
    confidence: Sequence[float], correct: Sequence[bool]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    given, true = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool)
    if given.ndim != 1 or given.shape != true.shape or len(given) == 0:
        raise InputError(
            "confidence and outcome do not match",
            expected="one of each for every answer, at least one answer",
            got=f"shapes {given.shape} and {true.shape}",
        )
    if not ((given >= 0) & (given <= 1)).all():
        raise InputError(
            "a confidence is not a probability",
            expected="numbers between 0 and 1",
            got=f"{given[~((given >= 0) & (given <= 1))][0]}",
        )
    return given, true
