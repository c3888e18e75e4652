"""Are stated probabilities true? Reliability, calibration error, coverage."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evidence.errors import InputError
from evidence.intervals import Interval, wilson_interval


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers given with about the same confidence.

    Attributes:
        low: Least confidence of the bin.
        high: Most.
        n: Answers in it.
        confidence: Their mean confidence.
        right: Share of them that were right.
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
    """Answers by confidence, in bins of equal width; empty ones are left out.

    Raises:
        InputError: a confidence is no probability, or lengths differ.
    """
    given, true = _checked(confidence, correct)
    place = np.minimum((given * n_bins).astype(int), n_bins - 1)
    found = []
    for each in np.unique(place):
        here = place == each
        share, n = float(true[here].mean()), int(here.sum())
        found.append(
            ReliabilityBin(
                float(each / n_bins),
                float((each + 1) / n_bins),
                n,
                float(given[here].mean()),
                share,
                wilson_interval(share, n, 1.96),
            )
        )
    return found


def expected_calibration_error(
    confidence: Sequence[float], correct: Sequence[bool], n_bins: int = 10
) -> float:
    """Expected calibration error of the answers given, between 0 and 1.

    The mean distance between confidence and share right over bins of equal width,
    weighted by their answers (Guo et al., arXiv 1706.04599).
    """
    found = reliability(confidence, correct, n_bins)
    total = sum(each.n for each in found)
    return sum(each.n * abs(each.confidence - each.right) for each in found) / total


def risk_coverage_curve(
    confidence: Sequence[float], correct: Sequence[bool]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Error among the answers kept, where only the surest are.

    Answers of equal confidence are kept or dropped together.

    Returns:
        (point,) share of answers kept, ascending, and (point,) share wrong among them.
    """
    given, true = _checked(confidence, correct)
    order = np.argsort(-given, kind="stable")
    given, wrong = given[order], ~true[order]
    last = np.append(given[1:] < given[:-1], True)
    kept = np.arange(1, len(given) + 1)
    return (kept / len(given))[last], (np.cumsum(wrong) / kept)[last]


def _checked(
    confidence: Sequence[float], right: Sequence[bool]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    given, true = np.asarray(confidence, dtype=float), np.asarray(right, dtype=bool)
    if given.ndim != 1 or given.shape != true.shape or len(given) == 0:
        raise InputError(
            "confidence and outcome do not match",
            expected="one of each for every answer, at least one answer",
            got=f"shapes {given.shape} and {true.shape}",
        )
    if not ((given >= 0) & (given <= 1)).all():
        raise InputError(
            "a confidence is no probability",
            expected="numbers between 0 and 1",
            got=f"{given[~((given >= 0) & (given <= 1))][0]}",
        )
    return given, true
