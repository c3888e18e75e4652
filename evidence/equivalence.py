"""Equivalence tests (TOST) and correction for multiple testing (Holm)."""

from collections.abc import Mapping

import numpy as np

from evidence import moved
from evidence.intervals import Interval
from evidence.results import Reading


def is_equivalent(interval: Interval, margin: float) -> bool:
    """Two one-sided tests (TOST): whether a 90 % interval lies within +-``margin``.

    With a 90 % interval, each of the two tests has level 5 %.

    Source: Schuirmann (1987), J. Pharmacokinetics and Biopharmaceutics 15:657.
    """
    return -margin < interval[0] and interval[1] < margin


def readings_above_floor(
    readings: Mapping[str, Reading], alpha: float, min_residual: float
) -> dict[str, float]:
    """Readings significantly and relevantly above their floor: name to adjusted p-value.

    A reading must be significant and have a residual whose lower bound exceeds
    ``min_residual``. Significance alone is not enough: with many entities the test detects
    irrelevant differences, such as those between two training seeds.

    Args:
        readings: By name; all of them count towards the correction.
        alpha: Level after Holm's correction.
        min_residual: Lower bound that the residual interval at the peak must exceed.
    """
    adjusted = holm_adjusted(
        {name: reading.p_value for name, reading in readings.items()}
    )
    return {
        name: p
        for name, p in adjusted.items()
        if p < alpha and readings[name].residual_interval_at_peak[0] > min_residual
    }


def holm_adjusted(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values, which control the family-wise error rate.

    Source: Holm (1979), Scandinavian Journal of Statistics 6:65.
    """
    if not p_values:
        return {}
    # statsmodels runs a full garbage collection per call (0.1 s), which is too slow for
    # re-evaluating thousands of audits. A test compares the results.
    names = sorted(p_values, key=lambda name: p_values[name])
    steps = [p_values[name] * (len(names) - rank) for rank, name in enumerate(names)]
    adjusted = np.minimum(np.maximum.accumulate(steps), 1.0).tolist()
    by_name = dict(zip(names, adjusted, strict=True))
    return {name: by_name[name] for name in p_values}


__getattr__ = moved.names_of("evidence.equivalence")
