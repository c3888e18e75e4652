"""Equivalence and multiplicity: what absence needs, and what many tests cost."""

from collections.abc import Mapping

import numpy as np

from evidence.rates import Interval


def equivalent(interval: Interval, margin: float) -> bool:
    """Two one-sided tests (TOST): does a 90 % interval lie within +-``margin``?

    A 90 % interval makes each of the two tests a 5 % one. Failing to find a
    difference is not equivalence; this is.

    Source: Schuirmann (1987), J. Pharmacokinetics and Biopharmaceutics 15:657.
    """
    return -margin < interval[0] and interval[1] < margin


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values that control the chance of any false rejection.

    Source: Holm (1979), Scandinavian Journal of Statistics 6:65.
    """
    if not p_values:
        return {}
    from statsmodels.stats.multitest import multipletests

    names = list(p_values)
    adjusted = multipletests([p_values[name] for name in names], method="holm")[1]
    return dict(zip(names, np.asarray(adjusted, float).tolist(), strict=True))
