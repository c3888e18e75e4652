"""Measurements of ``exhume pga`` as JSON values."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.sweeps.membership_test import Membership


def numbers(values: NDArray[np.float64]) -> list[Any]:
    """Nested lists of numbers, rounded so that they read back as the same text."""
    return np.asarray(values, float).round(12).tolist()


def membership_row(found: Membership) -> dict[str, Any]:
    """The held-out protocol's entries in a model's row."""
    band = found.null_95
    return {
        "auc": numbers(found.auc),
        "concordance": numbers(found.concordance),
        "interval": numbers(found.interval()),
        "p_column": numbers(found.p_column),
        "best": found.max_auc,
        "worst": found.min_auc,
        "band": None if np.isnan(band) else band,
        "p_above": found.p_above,
        "p_below": found.p_below,
        "p": found.p_value,
        "smallest_p": found.min_p,
        "sequences": found.sequences,
        "reading": found.reading(),
        "uncertified": len(found.uncertified),
    }
