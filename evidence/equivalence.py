"""Equivalence and multiplicity: what absence needs, and what many tests cost."""

from collections.abc import Mapping

import numpy as np

from evidence import moved
from evidence.intervals import Interval
from evidence.results import Reading


def is_equivalent(interval: Interval, margin: float) -> bool:
    """Two one-sided tests (TOST): does a 90 % interval lie within +-``margin``?

    A 90 % interval makes each of the two tests a 5 % one. Failing to find a
    difference is not equivalence; this is.

    Source: Schuirmann (1987), J. Pharmacokinetics and Biopharmaceutics 15:657.
    """
    return -margin < interval[0] and interval[1] < margin


def readings_above_floor(
    readings: Mapping[str, Reading], alpha: float, min_residual: float
) -> dict[str, float]:
    """Readings beyond their floor, by more than could matter: adjusted p by name.

    Two conditions, since each alone misleads. A test alone finds any difference, how
    small whatever, once there are entities enough; a retrain differs from its floor by
    the luck of its seed. An estimate alone may be luck.

    Args:
        readings: By name; all of them count towards the correction.
        alpha: Level after Holm's correction.
        min_residual: What the residual must surely exceed.
    """
    adjusted = holm_adjusted({name: each.p_value for name, each in readings.items()})
    return {
        name: p
        for name, p in adjusted.items()
        if p < alpha and readings[name].residual_interval_at_peak[0] > min_residual
    }


def holm_adjusted(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values that control the chance of any false rejection.

    Source: Holm (1979), Scandinavian Journal of Statistics 6:65.
    """
    if not p_values:
        return {}
    # Not statsmodels' here: it collects all garbage at every call, a tenth of a second
    # each where thousands of audits are decided again. A test holds ours to it.
    names = sorted(p_values, key=lambda name: p_values[name])
    steps = [p_values[name] * (len(names) - place) for place, name in enumerate(names)]
    adjusted = np.minimum(np.maximum.accumulate(steps), 1.0).tolist()
    found = dict(zip(names, adjusted, strict=True))
    return {name: found[name] for name in p_values}


__getattr__ = moved.names_of("evidence.equivalence")
