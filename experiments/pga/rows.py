"""Measurements of ``exhume pga`` as JSON values."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.sweeps.membership_test import Membership


def numbers(values: NDArray[np.float64]) -> list[Any]:
    """Nested lists of numbers, rounded so that they read back as the same text."""
    return np.asarray(values, float).round(12).tolist()


def membership_row(result: Membership) -> dict[str, Any]:
    """The held-out protocol's entries in a model's row."""
    band = result.null_95
    return {
        "auc": numbers(result.auc),
        "concordance": numbers(result.concordance),
        "interval": numbers(result.interval()),
        "p_column": numbers(result.p_column),
        "best": result.max_auc,
        "worst": result.min_auc,
        "band": None if np.isnan(band) else band,
        "p_above": result.p_above,
        "p_below": result.p_below,
        "p": result.p_value,
        "smallest_p": result.min_p,
        "sequences": result.sequences,
        "reading": result.reading(),
        "uncertified": len(result.uncertified),
    }
