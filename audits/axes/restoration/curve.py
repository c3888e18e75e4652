"""Restoration as a function of steering strength, with its controls."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evidence.intervals import average_by_entity, rate_interval

STRENGTHS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
Curve = dict[str, tuple[list[str], np.ndarray]]
"""By arm: (entity of each row, exact match (strength, row))."""


def pool_curves(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Exact match by strength, both halves pooled, with intervals over entities.

    Returns:
        One dict a strength: ``strength``, and [share, low, high] of the edit, each control,
        never-taught and retain questions.
    """
    table: list[dict[str, Any]] = [
        {"strength": strength} for strength in (0.0, *STRENGTHS)
    ]
    for arm in curves[0]:
        names = [name for curve in curves for name in curve[arm][0]]
        matches = np.concatenate([curve[arm][1] for curve in curves], axis=1)
        group = average_by_entity(matches.T, names)
        for index, row in enumerate(table):
            low, high = rate_interval(group, index)
            row[arm] = [float(group.mean[index]), low, high]
    return table
