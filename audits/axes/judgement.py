"""Judge an axis: readings against floors, and a status from readings and controls."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from audits.core.config import AuditConfig, Rule
from evidence.comparison import below_floor_notes, compare, explain_no_power
from evidence.hypothesis_tests import (
    MaxTest,
    is_equivalent,
    readings_above_floor,
    unpaired_max_test,
)
from evidence.intervals import EntityValues, average_models
from evidence.results import Control, ControlId, OnFailure, Reading, Status
from evidence.seeds import numpy_rng

# Minimum distance of ceiling and floor: below it, a residual is noise divided by noise.
MIN_SPAN = 0.15


@dataclass(frozen=True)
class MetricComparison:
    """One figure of the candidate, with what it is compared to.

    Attributes:
        name: Name of the reading.
        stream: Name of the random stream of its permutations.
        candidate: (entity, column) of the forgotten entities.
        ceiling: The same of the original.
        references: The same of each reference.
        never_taught: (never-taught entity, column) of the candidate.
        min_residual: As in ``evidence.comparison.compare``.
        metric: Id of the metric.
    """

    name: str
    stream: str
    candidate: EntityValues
    ceiling: EntityValues
    references: Sequence[EntityValues]
    never_taught: EntityValues
    min_residual: float = 0.0
    metric: str = ""


def compare_to_floors(
    axis: str,
    comparisons: Sequence[MetricComparison],
    columns: Sequence[str],
    config: AuditConfig,
    mask: NDArray[np.bool_] | None = None,
) -> list[Reading]:
    """Compare each figure with the primary floor, then with the other.

    The primary floor is the mean of the references where there are any; never-taught items are
    then reported as well.

    Args:
        axis: Name of the axis, for its random streams.
        mask: (column,) mask of the columns that count; all by default.
    """
    paired = bool(comparisons[0].references)
    readings = []
    for kind in ("reference", "never_taught") if paired else ("never_taught",):
        for comparison in comparisons:
            second = paired and kind == "never_taught"
            label = comparison.name
            reading = compare(
                f"{label}, against never-taught items" if second else label,
                comparison.candidate,
                average_models(comparison.references)
                if kind == "reference"
                else comparison.never_taught,
                comparison.ceiling,
                columns=columns,
                floor_kind=kind,
                rng=numpy_rng(config.seed, axis, kind, comparison.stream),
                n_permutations=config.budget.permutations,
                mask=None if mask is None else mask.tolist(),
                min_residual=comparison.min_residual,
                metric=comparison.metric,
            )
            readings.append(replace(reading, primary=not second))
    return readings


def informative_columns(power: MaxTest, rule: Rule) -> NDArray[np.bool_]:
    """(column,) mask where the original itself is read, so that a null result is evidence.

    Args:
        power: Test of the original's forgotten entities against never-taught ones.
    """
    large = power.difference >= 0.5 * power.difference.max()
    return large & (power.p_column < rule.alpha) & (power.difference > MIN_SPAN)


def unpaired_test(
    group: EntityValues,
    other: EntityValues,
    config: AuditConfig,
    *stream: str,
    mask: NDArray[np.bool_] | None = None,
) -> MaxTest:
    """Max test of two unpaired groups of entities, over the columns of ``mask``.

    Args:
        stream: Names of the random stream of its permutations.
    """
    columns = slice(None) if mask is None else mask
    return unpaired_max_test(
        group.values[:, columns],
        other.values[:, columns],
        numpy_rng(config.seed, *stream),
        config.budget.permutations,
    )


def power_control(name: str, power: MaxTest, alpha: float, passed: bool) -> Control:
    """The original must be read where it knows the facts."""
    expected = f"p < {alpha} and at least {MIN_SPAN} apart"
    return Control(ControlId.POWER, name, power.p_value, expected, passed, kind="p_value")


def significance_control(
    id: ControlId,
    name: str,
    p_value: float,
    alpha: float,
    on_failure: OnFailure = OnFailure.SILENCE,
) -> Control:
    """A test must be significant; otherwise a null result is no evidence."""
    return Control(id, name, p_value, f"p < {alpha}", p_value < alpha, on_failure, kind="p_value")


def planted_control(
    p_value: float,
    alpha: float,
    name: str = "the planted late suppression is found",
    on_failure: OnFailure = OnFailure.SILENCE,
) -> Control:
    """A planted suppression must be found: the late one, or another by its name."""
    return significance_control(ControlId.PLANTED, name, p_value, alpha, on_failure)


def attack_control(learned: float, minimum: float, expected: str, failure: str) -> Control:
    """The attack must learn what it teaches.

    Args:
        learned: Share of the training items learned.
        failure: Note of the axis where it did not.
    """
    return Control(
        ControlId.ATTACK,
        "the attack learns its training items",
        learned,
        expected,
        learned >= minimum,
        OnFailure.NO_POWER,
        failure=failure,
    )


def failed_controls(controls: Sequence[Control], *effects: OnFailure) -> list[str]:
    """Names of the failed controls with one of these effects; by default, with any."""
    wanted = effects or tuple(effect for effect in OnFailure if effect is not OnFailure.INFORM)
    return [
        control.name for control in controls if not control.passed and control.on_failure in wanted
    ]


def status_with_controls(
    readings: Sequence[Reading],
    controls: Sequence[Control],
    rule: Rule,
    *,
    alpha: float | None = None,
) -> tuple[Status, list[str]]:
    """``status_from_readings``, unless a failed control forbids it.

    Args:
        readings: Those that decide; empty where the axis could not measure, which is no failure
            of a control.
        alpha: As in ``status_from_readings``.
    """
    failed = failed_controls(controls)
    if failed and (not readings or failed_controls(controls, OnFailure.SILENCE)):
        status: Status = "control_failed" if readings else "no_power"
        return status, [f"Control failed: {name}." for name in failed]
    without_power = [
        control.failure or f"Control failed: {control.name}."
        for control in controls
        if not control.passed and control.on_failure is OnFailure.NO_POWER
    ]
    if without_power:
        return "no_power", without_power
    return status_from_readings(
        readings, rule, failed=failed_controls(controls, OnFailure.NO_ABSENCE), alpha=alpha
    )


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
    if readings_above_floor(named, rule.recovery if alpha is None else alpha, rule.min_residual):
        return "retained", notes
    if failed:
        return "no_power", [*notes, *(f"Control failed: {name}." for name in failed)]
    if all(is_equivalent(reading.residual_interval, rule.margin) for reading in readings):
        return "absent", notes
    return "no_power", [*notes, explain_no_power(readings, rule.margin)]
