"""Axis status from readings and controls. One rule for all axes."""

from collections.abc import Sequence

from audits.core.config import Rule
from evidence.comparison import below_floor_notes, explain_no_power
from evidence.equivalence import is_equivalent, readings_above_floor
from evidence.results import Control, Reading, Status


def failed_controls(controls: Sequence[Control]) -> list[str]:
    """Names of the required controls that failed."""
    return [
        control.name for control in controls if control.required and not control.passed
    ]


def status_with_controls(
    readings: Sequence[Reading], controls: Sequence[Control], rule: Rule
) -> tuple[Status, list[str]]:
    """``status_from_readings``, or no vote where a required control failed.

    Args:
        readings: Those against the primary floor first; empty where the axis could not measure,
            which is no failure of a control.
    """
    failed = failed_controls(controls)
    if failed:
        status: Status = "control_failed" if readings else "no_power"
        return status, [f"Control failed: {name}." for name in failed]
    return status_from_readings(readings[:2], rule)


def status_from_readings(
    readings: Sequence[Reading],
    rule: Rule,
    *,
    failed: Sequence[str] = (),
    alpha: float | None = None,
) -> tuple[Status, list[str]]:
    """Retained, absent, or why neither is decided.

    Args:
        readings: The readings that decide the axis.
        failed: Failed controls that forbid ``absent`` but not ``retained``: a recovery is a
            recovery, whether or not the planted suppression was found.
        alpha: Level of the recovery test, after Holm over the readings; the rule's by default.
    """
    notes = below_floor_notes(readings, rule.alpha)
    named = {reading.name: reading for reading in readings}
    if readings_above_floor(
        named, rule.recovery if alpha is None else alpha, rule.still_there
    ):
        return "retained", notes
    if failed:
        return "no_power", [*notes, *(f"Control failed: {name}." for name in failed)]
    if all(
        is_equivalent(reading.residual_interval, rule.margin) for reading in readings
    ):
        return "absent", notes
    return "no_power", [*notes, explain_no_power(readings, rule.margin)]
