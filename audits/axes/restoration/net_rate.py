"""Restoration rate net of its controls: how much of what was lost does steering restore?"""

from collections.abc import Collection, Mapping
from typing import Any

from evidence.intervals import EntityValues, difference_interval, paired_correlation, rate_interval
from evidence.results import Control

MIN_LOST = 0.1
"""Minimum share of answers lost for a restoration rate to be defined."""
CHANCE_CONTROL = "turned at random, or read from other items, it restores little"
MAX_BY_CHANCE = 0.2
"""Maximum share of the lost answers that a control may restore."""


def net_of_worst_control(
    steered: EntityValues,
    before: float,
    lost: float,
    controls: Mapping[str, tuple[EntityValues, float]],
    paired: Collection[str] = (),
) -> dict[str, Any]:
    """Share of the lost answers that steering restores, minus that of the worst control.

    rate = (steered - before) / lost; controls likewise. The interval is that of the difference
    to the worst control, as a share of the lost answers.

    Args:
        steered: (entity, 1) scores under the edit.
        before: Mean score without an edit.
        lost: Mean score of the original minus ``before``, above 0.
        controls: By name, (entity, 1) scores and the mean score without an edit.
        paired: Controls of the same entities, in the same order.

    Returns:
        ``rate``, ``controls`` (the rate of each), ``worst_control``, ``net``, ``interval`` and
        ``lost``.

    Source: arXiv 2602.18505, whose rate subtracts no control.
    """
    rates = {
        name: (float(scores.mean[0]) - baseline) / lost
        for name, (scores, baseline) in controls.items()
    }
    worst = max(rates, key=lambda name: rates[name])
    scores, baseline = controls[worst]
    correlation = 0.0
    if worst in paired:
        correlation = paired_correlation(steered.values[:, 0], scores.values[:, 0])
    low, high = difference_interval(
        float(steered.mean[0]),
        rate_interval(steered),
        float(scores.mean[0]),
        rate_interval(scores),
        correlation,
    )
    rate = (float(steered.mean[0]) - before) / lost
    shift = baseline - before
    return {
        "rate": rate,
        "controls": rates,
        "worst_control": worst,
        "net": rate - rates[worst],
        "interval": [(low + shift) / lost, (high + shift) / lost],
        "lost": lost,
    }


def chance_control(rate: float, worst: float) -> Control:
    """Edits without information must restore little.

    Noise alone may undo a weak suppression, so they may reach half of the edit's ``rate``.
    """
    return Control(
        CHANCE_CONTROL,
        worst,
        f"below {MAX_BY_CHANCE} of what was lost, or half of what is restored",
        worst < max(MAX_BY_CHANCE, 0.5 * rate),
    )
