"""What one axis of evidence found: readings against a floor, controls, status."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import pandas as pd

from evidence.errors import InputError
from evidence.intervals import Interval

# Below this distance between original and floor a residual has no meaning.
MIN_RANGE = 0.05

Status = Literal["retained", "absent", "no_power", "control_failed", "error"]


@dataclass(frozen=True)
class Control:
    """A check that must come out as expected before the axis may vote.

    Attributes:
        name: Short name, e.g. "original is read".
        value: What was measured.
        expected: What should have been, in words.
        passed: Whether it was.
        required: False for a control that is shown but does not silence the axis.
    """

    name: str
    value: float
    expected: str
    passed: bool
    required: bool = True


@dataclass(frozen=True)
class Reading:
    """One statistic of the candidate, rescaled between floor (0) and original (1).

    Attributes:
        name: What was read, e.g. "refitted probe".
        statistic: Largest value over columns (layers or checkpoints).
        interval: 95 % interval of ``statistic``.
        floor: The same statistic where nothing was ever known.
        floor_kind: "never_taught" or "reference".
        ceiling: The same statistic on the original.
        residual: (statistic - floor) / (ceiling - floor), at the column of the
            largest difference.
        residual_interval: Union over columns of the 90 % intervals, for TOST.
        p_value: One-sided, corrected for the maximum over columns.
        p_below: The same in the other direction; small means leakage.
        smallest_p: The least p-value that could have come out.
        where: Name of the column with the largest difference.
        columns: One dict a column: name, statistic, floor, ceiling, p, intervals.
    """

    name: str
    statistic: float
    interval: Interval
    floor: float
    floor_kind: str
    ceiling: float
    residual: float
    residual_interval: Interval
    p_value: float
    p_below: float
    smallest_p: float
    where: str
    columns: tuple[dict[str, Any], ...] = ()

    @property
    def residual_interval_at_peak(self) -> Interval:
        """90 % interval of ``residual`` alone: each end is a one-sided 95 % bound.

        Not corrected for the choice of the column; ``p_value`` is.
        """
        found = next(each for each in self.columns if each["name"] == self.where)
        span = max(self.ceiling - self.floor, MIN_RANGE)
        low, high = found["tost"]
        return low / span, high / span


@dataclass(frozen=True)
class AxisResult:
    """The finding of one axis.

    The numbers of the first reading are repeated at the top level, so that tables of
    axes need no knowledge of readings.

    Attributes:
        name: Axis name, e.g. "decodability".
        question: The question it answers, in one sentence.
        status: "retained" (beyond floor), "absent" (equivalent to floor), "no_power"
            (could not have told), "control_failed" or "error".
        statistic_name: What the statistic is, with its unit or chance level.
        readings: Every comparison with a floor; empty where none could be made.
        controls: What must hold for the axis to vote.
        n_entities: Forgotten entities that were scored.
        details: JSON-ready extras: curves, items, settings.
        seconds: Wall time.
        peak_memory_bytes: Peak resident memory of the process up to then.
        notes: Limits and oddities, in sentences.
    """

    name: str
    question: str
    status: Status
    statistic_name: str = ""
    readings: tuple[Reading, ...] = ()
    controls: tuple[Control, ...] = ()
    n_entities: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise InputError(
                "status is not one of an axis",
                expected=", ".join(get_args(Status)),
                got=repr(self.status),
            )

    @property
    def votes(self) -> bool:
        """Whether the finding may enter a verdict."""
        return self.status in ("retained", "absent")

    @property
    def main_reading(self) -> Reading | None:
        """The reading the axis is judged by."""
        return self.readings[0] if self.readings else None

    def reading(self, name: str) -> Reading | None:
        """The reading called ``name``, or None."""
        return next((each for each in self.readings if each.name == name), None)

    def __str__(self) -> str:
        main = self.main_reading
        if main is None:
            return f"{self.name}: {self.status}"
        low, high = main.residual_interval
        return (
            f"{self.name}: {self.status}, {self.statistic_name} {main.statistic:.2f} "
            f"(floor {main.floor:.2f}, original {main.ceiling:.2f}), "
            f"residual {main.residual:.2f} [{low:.2f}, {high:.2f}], "
            f"p {main.p_value:.4f}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a reading and column (layer or checkpoint)."""
        rows = [
            {"axis": self.name, "reading": reading.name, **column}
            for reading in self.readings
            for column in reading.columns
        ]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; cost (seconds, memory) is left out, as it differs by run."""
        main = self.main_reading
        top = {
            "statistic": main.statistic if main else None,
            "interval": list(main.interval) if main else None,
            "p_value": main.p_value if main else None,
            "floor": main.floor if main else None,
            "ceiling": main.ceiling if main else None,
            "residual": main.residual if main else None,
            "residual_interval": list(main.residual_interval) if main else None,
            "per_layer": list(main.columns) if main else [],
        }
        whole = asdict(self)
        del whole["seconds"], whole["peak_memory_bytes"]
        return whole | top

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "AxisResult":
        """The inverse of ``to_dict``, cost aside."""
        readings = tuple(
            replace(
                Reading(**each),
                interval=tuple(each["interval"]),
                residual_interval=tuple(each["residual_interval"]),
                columns=tuple(each["columns"]),
            )
            for each in saved["readings"]
        )
        return cls(
            name=saved["name"],
            question=saved["question"],
            status=saved["status"],
            statistic_name=saved["statistic_name"],
            readings=readings,
            controls=tuple(Control(**each) for each in saved["controls"]),
            n_entities=saved["n_entities"],
            details=saved["details"],
            notes=tuple(saved["notes"]),
        )
