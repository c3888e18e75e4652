"""Compare a candidate's entities with a floor and a ceiling, column by column."""

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
from evidence.results import MIN_RANGE, Reading


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
) -> Reading:
    """Place a candidate between floor and original, with a test and intervals.

    Superiority over the floor is tested by exchanging entities (never-taught floor)
    or swapping scores within an entity (reference floor), with the maximum over
    columns. For equivalence the 90 % interval of *every* used column counts: their
    union lies within a margin only if each does (intersection-union test).

    Args:
        name: Name of the reading.
        candidate: (entity, column) of the model under audit.
        floor: (entity, column) where nothing was known: other entities
            (``floor_kind`` "never_taught") or the same ones in a reference model.
        ceiling: (entity, column) of the original.
        columns: Their names.
        floor_kind: "never_taught" or "reference".
        rng: Generator of the permutations.
        n_permutations: How many are drawn.
        mask: Which columns count; those where the original itself is not beyond the
            floor say nothing about the candidate. Default: all.
        min_residual: Superiority is tested over the floor raised by this share of the way to
            the original: for a statistic whose floor is not quite that of a model that
            never knew.

    Raises:
        InputError: shapes differ, or no column is used.
    """
    used = np.ones(len(columns), bool) if mask is None else np.asarray(mask, bool)
    widths = {each.values.shape[1] for each in (candidate, floor, ceiling)}
    if widths != {len(columns)} or not used.any():
        raise InputError(
            f"{name}: candidate, floor and ceiling need the same columns, one in use",
            expected=str(len(columns)),
            got=str(sorted(widths)),
        )
    paired = floor_kind == "reference"
    spans = np.maximum(ceiling.mean - floor.mean, MIN_RANGE)

    def exchange(raised: float) -> MaxTest:
        return (paired_max_test if paired else unpaired_max_test)(
            candidate.values[:, used] - raised * spans[used],
            floor.values[:, used],
            rng,
            n_permutations,
        )

    test = exchange(min_residual)
    p_below = exchange(0.0).p_below if min_residual else test.p_below
    rows, p_used = [], iter(test.p_column)
    for index, column in enumerate(columns):
        rows.append(
            _column(
                column,
                index,
                candidate,
                floor,
                float(ceiling.mean[index]),
                float(next(p_used)) if used[index] else None,
                paired,
            )
        )
    kept = [row for row in rows if row["used"]]
    best = max(kept, key=lambda row: row["difference"])
    scaled = [
        tuple(bound / spans[columns.index(row["name"])] for bound in row["tost"])
        for row in kept
    ]
    return Reading(
        name=name,
        statistic=best["statistic"],
        interval=tuple(best["interval"]),
        floor=best["floor"],
        floor_kind=floor_kind,
        ceiling=best["ceiling"],
        residual=best["difference"] / spans[columns.index(best["name"])],
        residual_interval=(
            float(min(low for low, _ in scaled)),
            float(max(high for _, high in scaled)),
        ),
        p_value=test.p_value,
        p_below=p_below,
        smallest_p=test.smallest_p,
        where=best["name"],
        columns=tuple(rows),
    )


def below_floor_notes(readings: Sequence[Reading], alpha: float) -> list[str]:
    """A sentence for each reading that is significantly *below* its floor."""
    return [
        f"{each.name} reads below its floor (p {each.p_below:.4f}): that is "
        "information or leakage, not forgetting."
        for each in readings
        if each.p_below < alpha / 2
    ]


def explain_no_power(readings: Sequence[Reading], margin: float) -> str:
    """Which reading binds, and how many entities would settle it at this spread.

    An interval shrinks with the square root of the number of entities, around where
    it stands now; where the centre itself lies outside the margin, more entities are
    as likely to show the difference as to remove it.
    """
    widest = max(readings, key=lambda each: max(map(abs, each.residual_interval)))
    low, high = widest.residual_interval
    text = (
        f"{widest.name}: neither beyond the floor nor equivalent to it; the residual "
        f"lies within [{low:.2f}, {high:.2f}], the margin is {margin}"
    )
    centre, half = (low + high) / 2, (high - low) / 2
    if abs(centre) >= margin:
        return f"{text}. More entities would show which."
    factor = (half / (margin - abs(centre))) ** 2
    if factor > 10:
        return f"{text}. More than ten times as many entities would be needed."
    return f"{text}. About {factor:.1f} times as many entities would settle it."


def _column(
    name: str,
    index: int,
    candidate: EntityValues,
    floor: EntityValues,
    ceiling: float,
    p_value: float | None,
    paired: bool,
) -> dict:
    """One column's figures; ``tost`` is the 90 % interval of the difference."""

    def around(group: EntityValues, level: float) -> Interval:
        return rate_interval(group, index, level)

    x, y = float(candidate.mean[index]), float(floor.mean[index])
    low, high = around(candidate, 0.95)
    together = (
        paired_correlation(candidate.values[:, index], floor.values[:, index])
        if paired
        else 0.0
    )
    tost = difference_interval(
        x, around(candidate, 0.9), y, around(floor, 0.9), together
    )
    return {
        "name": name,
        "used": p_value is not None,
        "statistic": x,
        "interval": [low, high],
        "floor": y,
        "ceiling": ceiling,
        "difference": x - y,
        "tost": list(tost),
        "p_value": p_value,
    }


__getattr__ = moved.names_of("evidence.comparison")
