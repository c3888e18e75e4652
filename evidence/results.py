"""Result of one evidence axis: readings against a floor, controls, status."""

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd

from evidence.display.html_table import table_html
from evidence.errors import InputError
from evidence.intervals import Interval
from evidence.typed_json import Json, NotStored, from_json, to_json_object

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Minimum distance between original and floor for which a residual is defined.
MIN_RANGE = 0.05

COLORS = {"candidate": "#c8553d", "floor": "#888888", "original": "#2a6fbb"}
"""Line colors of a figure by role."""

Status = Literal["retained", "absent", "no_power", "control_failed", "error"]


class ControlId(StrEnum):
    """What a control checks."""

    POWER = "power"
    """The original itself is read."""
    NEVER_TAUGHT = "never_taught"
    """Nothing is read where nothing was taught."""
    SHUFFLED = "shuffled"
    """Nothing is read from shuffled labels."""
    RANDOM_EDIT = "random_edit"
    """Random directions and edits without information read or restore nothing."""
    PLANTED = "planted"
    """The planted suppression is found."""
    RETAIN = "retain"
    """Retain items are read in the candidate."""
    ATTACK = "attack"
    """The attack learns what it teaches."""
    DAMAGE = "damage"
    """The candidate still works."""
    FORGOTTEN = "forgotten"
    """The candidate does not answer as it is."""
    EMBEDDING = "embedding"
    """The words alone, before any layer, read nothing."""
    OTHER_FACT = "other_fact"
    """States about another fact of the entity do not bring the fact."""
    FAITHFULNESS = "faithfulness"
    """A circuit carries the answers when nothing else does."""
    SCORER = "scorer"
    """Right answers in other words count, and wrong ones do not."""
    TRANSFER = "transfer"
    """A circuit of one half of the items carries the other half."""


class OnFailure(StrEnum):
    """What a failed control means for its axis."""

    SILENCE = "silence"
    """The axis gives no evidence, whatever was read."""
    NO_ABSENCE = "no_absence"
    """A finding stands; finding nothing is no evidence."""
    NO_POWER = "no_power"
    """The axis could not measure."""
    INFORM = "inform"
    """Reported without effect."""


ControlKind = Literal["p_value", "share", "ratio", "difference"]


@dataclass(frozen=True)
class Control:
    """A control that must pass before the axis enters the verdict.

    Attributes:
        id: What it checks.
        name: The same in words, such as "original is read".
        value: Measured value.
        expected: Expected value, in words.
        passed: Whether the value is as expected.
        on_failure: What a failure means for the axis.
        kind: What the value is.
        failure: Note of the axis where the control failed; by default one with its name. Not
            stored.

    Examples:
        >>> control = exhume.load("finished").axes["decodability"].controls[0]
        >>> control.passed
        True
    """

    id: ControlId
    name: str
    value: float
    expected: str
    passed: bool
    on_failure: OnFailure = OnFailure.SILENCE
    kind: ControlKind = "share"
    failure: NotStored = ""

    @property
    def required(self) -> bool:
        """Whether a failure has an effect."""
        return self.on_failure is not OnFailure.INFORM


@dataclass(frozen=True)
class Column:
    """One column of a reading: a layer, a checkpoint, or another condition.

    Attributes:
        name: Name of the column.
        used: Whether it counts: the original itself exceeds the floor there.
        statistic: Value of the candidate.
        interval: 95 % interval of ``statistic``.
        floor: Value without the knowledge.
        ceiling: Value of the original.
        difference: ``statistic`` minus ``floor``.
        tost: 90 % interval of ``difference``, for two one-sided tests.
        p_value: One-sided, corrected for the maximum over columns; None where not used.
    """

    name: str
    used: bool
    statistic: float
    interval: Interval
    floor: float
    ceiling: float
    difference: float
    tost: Interval
    p_value: float | None


@dataclass(frozen=True, repr=False)
class Reading:
    """One statistic of the candidate, rescaled between floor (0) and original (1).

    Attributes:
        name: Name of the metric, such as "refitted probe".
        statistic: Value at the peak, the column (layer or checkpoint) with the largest
            difference to the floor.
        interval: 95 % interval of ``statistic``.
        floor: Statistic without the knowledge, at the peak.
        floor_kind: "never_taught" or "reference".
        ceiling: Statistic of the original, at the peak.
        residual: (statistic - floor) / (ceiling - floor), at the peak.
        residual_interval: Union over columns of the 90 % intervals, for TOST.
        p_value: One-sided, corrected for the maximum over columns.
        p_below: The same in the other direction; a small value means leakage.
        smallest_p: Smallest possible p-value.
        where: Name of the peak column.
        columns: The same, column by column.
        metric: Stable id of the metric, such as "exact_match".
        primary: Whether the floor is the one that decides; other floors are only reported.
        unit: Unit of the statistic; the axis's own where empty.
        is_share: Whether it is written as a percentage.

    Examples:
        >>> reading = exhume.load("finished").axes["behaviour"].main_reading
        >>> reading
        Reading('exact match' at 'output': 0.00, floor 0.14, original 1.00, residual ...)
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
    columns: tuple[Column, ...] = ()
    metric: str = ""
    primary: bool = True
    unit: str = ""
    is_share: bool = False

    def __repr__(self) -> str:
        low, high = self.residual_interval
        return (
            f"Reading({self.name!r} at {self.where!r}: {self.statistic:.2f}, floor "
            f"{self.floor:.2f}, original {self.ceiling:.2f}, residual "
            f"{self.residual:.2f} [{low:.2f}, {high:.2f}], p {self.p_value:.4f})"
        )

    @property
    def residual_interval_at_peak(self) -> Interval:
        """90 % interval of ``residual``; each end is a one-sided 95 % bound.

        Unlike ``p_value``, the interval is not corrected for the choice of the column.
        """
        peak = next(column for column in self.columns if column.name == self.where)
        span = max(self.ceiling - self.floor, MIN_RANGE)
        low, high = peak.tost
        return low / span, high / span


@dataclass(frozen=True, repr=False)
class AxisResult:
    """The result of one axis.

    Attributes:
        name: Axis name, such as "decodability".
        question: The question that the axis answers, in one sentence.
        status: "retained" (above the floor), "absent" (equivalent to the floor), "no_power"
            (undecided), "control_failed" or "error".
        statistic_name: The statistic, with its unit or chance level.
        readings: Comparisons with a floor; may be empty.
        controls: Controls that must pass before the axis enters the verdict.
        n_entities: Number of scored forget entities.
        details: JSON-ready extras: curves, items, settings.
        seconds: Wall time.
        peak_memory_bytes: Peak resident memory of the process so far.
        notes: Limitations, in sentences.

    Examples:
        >>> axis = exhume.load("finished").axes["decodability"]
        >>> axis
        AxisResult(decodability: retained, accuracy 0.89 (floor 0.12, original 0.89), residual ...)
        >>> axis.votes, axis.main_reading.where
        (True, 'resid.0')
        >>> axis.to_frame()[["reading", "name", "statistic", "floor"]].round(2).head(3)
                  reading     name  statistic  floor
        0  refitted probe    embed       0.12   0.12
        1  refitted probe  resid.0       0.89   0.12
        2  refitted probe  resid.1       0.44   0.17
    """

    name: str
    question: str
    status: Status
    statistic_name: str = ""
    readings: tuple[Reading, ...] = ()
    controls: tuple[Control, ...] = ()
    n_entities: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
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
        """Whether the result enters the verdict."""
        return self.status in ("retained", "absent")

    @property
    def main_reading(self) -> Reading | None:
        """The first reading, which decides the status of the axis."""
        return self.readings[0] if self.readings else None

    def metric(self, id: str) -> Reading | None:
        """The reading of a metric against the primary floor, or None."""
        found = (each for each in self.readings if each.metric == id and each.primary)
        return next(found, None)

    def reading(self, name: str) -> Reading | None:
        """The reading called ``name``, or None."""
        return next((reading for reading in self.readings if reading.name == name), None)

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

    def __repr__(self) -> str:
        return f"AxisResult({self})"

    def _repr_html_(self) -> str:
        head = ("reading", "candidate", "floor", "original", "residual", "p", "where")
        rows = [
            (r.name, r.statistic, r.floor, r.ceiling, r.residual, r.p_value, r.where)
            for r in self.readings
        ]
        checks = [(c.name, c.value, c.expected, c.passed) for c in self.controls]
        return table_html(self, head, rows) + table_html(
            "Controls", ("control", "value", "expected", "passed"), checks
        )

    def plot(self) -> "go.Figure":
        """A Plotly figure of every reading over its columns: layers or checkpoints.

        Candidate with its 95 % interval, floor and original.
        """
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        count = max(1, len(self.readings))
        titles = [html.escape(each.name) for each in self.readings]
        figure = make_subplots(rows=count, cols=1, subplot_titles=titles)
        lines = {"statistic": "candidate", "floor": "floor", "ceiling": "original"}
        for row, reading in enumerate(self.readings, start=1):
            names = [html.escape(column.name) for column in reading.columns]
            for key, label in lines.items():
                values = [getattr(column, key) for column in reading.columns]
                trace = go.Scatter(x=names, y=values, name=label, legendgroup=label)
                trace.update(
                    mode="lines+markers", showlegend=row == 1, line={"color": COLORS[label]}
                )
                if key == "statistic":
                    trace.error_y = _error_bars(reading)
                figure.add_trace(trace, row=row, col=1)
        figure.update_layout(
            template="plotly_white", title=html.escape(str(self.name)), height=300 * count
        )
        return figure

    def to_frame(self) -> pd.DataFrame:
        """One row per reading and column (layer or checkpoint)."""
        rows = [
            {"axis": self.name, "reading": reading.name, **asdict(column)}
            for reading in self.readings
            for column in reading.columns
        ]
        return pd.DataFrame(rows)

    def to_json(self) -> dict[str, Json]:
        """JSON object, without cost (seconds, memory), which differs by run."""
        saved = dict(to_json_object(self))
        del saved["seconds"], saved["peak_memory_bytes"]
        return saved

    @classmethod
    def from_json(cls, saved: Mapping[str, Json]) -> "AxisResult":
        """The inverse of ``to_json``.

        Raises:
            InputError: it was not made by ``to_json``.
        """
        return from_json(cls, saved)


def _error_bars(reading: Reading) -> dict[str, Json]:
    """Distances from each column's statistic to the ends of its 95 % interval."""
    pairs = [(each.statistic, each.interval) for each in reading.columns]
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, (_, high) in pairs],
        "arrayminus": [value - low for value, (low, _) in pairs],
    }
