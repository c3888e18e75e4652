"""Compare a candidate's entity scores with a floor and a ceiling, column by column."""

from collections.abc import Sequence

import numpy as np

from evidence import moved
from evidence.errors import InputError
from evidence.hypothesis_tests import MaxTest, paired_max_test, unpaired_max_test
from evidence.intervals import (
    EntityValues,
    Interval,
    difference_interval,
    paired_correlation,
    rate_interval,
)
from evidence.results import MIN_RANGE, Column, Reading


def compare(
    name: str,
    candidate: EntityValues,
    floor: EntityValues,
    ceiling: EntityValues,
    *,
    columns: Sequence[str],
    floor_kind: str,
    rng: np.random.Generator,
    n_permutations: int = 2000,
    mask: Sequence[bool] | None = None,
    min_residual: float = 0.0,
    metric: str = "",
) -> Reading:
    """Rescale a candidate between floor (0) and original (1), with a test and intervals.

    Superiority over the floor is tested by permuting entities (never-taught floor) or by
    swapping the two scores within an entity (reference floor), with the maximum over columns
    as the statistic. Equivalence uses the union of the 90 % intervals of all used columns: the
    union lies within a margin only if every interval does (intersection-union test).

    Args:
        candidate: (entity, column) scores of the model under audit.
        floor: (entity, column) scores without knowledge: other entities (``floor_kind``
            "never_taught"), or the same entities in a reference model ("reference").
        ceiling: (entity, column) scores of the original.
        floor_kind: "never_taught" or "reference".
        mask: (column,) columns to use; by default all. A column in which the original itself
            does not exceed the floor is not informative.
        min_residual: Superiority is tested against the floor raised by this share of the
            distance to the original, for statistics whose floor lies slightly below that of a
            model without the knowledge.
        metric: Stable id of the metric.

    Raises:
        InputError: shapes differ, or the mask selects no column.
    """
    used = np.ones(len(columns), bool) if mask is None else np.asarray(mask, bool)
    widths = {group.values.shape[1] for group in (candidate, floor, ceiling)}
    if widths != {len(columns)} or not used.any():
        raise InputError(
            f"{name}: candidate, floor and ceiling need the same columns, one in use",
            expected=str(len(columns)),
            got=str(sorted(widths)),
        )
    paired = floor_kind == "reference"
    spans = np.maximum(ceiling.mean - floor.mean, MIN_RANGE)

    def permutation_test(raised: float) -> MaxTest:
        return (paired_max_test if paired else unpaired_max_test)(
            candidate.values[:, used] - raised * spans[used],
            floor.values[:, used],
            rng,
            n_permutations,
        )

    test = permutation_test(min_residual)
    p_below = permutation_test(0.0).p_below if min_residual else test.p_below
    rows, p_used = [], iter(test.p_column)
    for index, column in enumerate(columns):
        rows.append(
            _column_statistics(
                column,
                index,
                candidate,
                floor,
                float(ceiling.mean[index]),
                float(next(p_used)) if used[index] else None,
                paired,
            )
        )
    used_rows = [row for row in rows if row.used]
    best = max(used_rows, key=lambda row: row.difference)
    scaled = [
        tuple(bound / spans[columns.index(row.name)] for bound in row.tost) for row in used_rows
    ]
    return Reading(
        name=name,
        metric=metric,
        statistic=best.statistic,
        interval=best.interval,
        floor=best.floor,
        floor_kind=floor_kind,
        ceiling=best.ceiling,
        residual=best.difference / spans[columns.index(best.name)],
        residual_interval=(
            float(min(low for low, _ in scaled)),
            float(max(high for _, high in scaled)),
        ),
        p_value=test.p_value,
        p_below=p_below,
        smallest_p=test.smallest_p,
        where=best.name,
        columns=tuple(rows),
    )


def below_floor_notes(readings: Sequence[Reading], alpha: float) -> list[str]:
    """One sentence for each reading that is significantly *below* its floor."""
    return [
        f"{reading.name} reads below its floor (p {reading.p_below:.4f}): that is "
        "information or leakage, not forgetting."
        for reading in readings
        if reading.p_below < alpha / 2
    ]


def explain_no_power(readings: Sequence[Reading], margin: float) -> str:
    """Name the widest reading, and the number of entities that would give enough power.

    The half-width of an interval shrinks with the square root of the number of entities. If
    the center of the interval lies outside the margin, no number can be given.
    """
    widest = max(readings, key=lambda each: max(map(abs, each.residual_interval)))
    low, high = widest.residual_interval
    text = (
        f"{widest.name}: neither beyond the floor nor equivalent to it; the residual "
        f"lies within [{low:.2f}, {high:.2f}], the margin is {margin}"
    )
    center, half = (low + high) / 2, (high - low) / 2
    if abs(center) >= margin:
        return f"{text}. More entities would show which."
    factor = (half / (margin - abs(center))) ** 2
    if factor > 10:
        return f"{text}. More than ten times as many entities would be needed."
    return f"{text}. About {factor:.1f} times as many entities would settle it."


def _column_statistics(
    name: str,
    index: int,
    candidate: EntityValues,
    floor: EntityValues,
    ceiling: float,
    p_value: float | None,
    paired: bool,
) -> Column:
    """Statistics of one column."""

    def interval(group: EntityValues, level: float) -> Interval:
        return rate_interval(group, index, level)

    x, y = float(candidate.mean[index]), float(floor.mean[index])
    low, high = interval(candidate, 0.95)
    correlation = (
        paired_correlation(candidate.values[:, index], floor.values[:, index]) if paired else 0.0
    )
    tost = difference_interval(x, interval(candidate, 0.9), y, interval(floor, 0.9), correlation)
    return Column(name, p_value is not None, x, (low, high), y, ceiling, x - y, tost, p_value)


__getattr__ = moved.names_of("evidence.comparison")
