"""One contract for every axis: what it asks, what it measures, and how it is judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from audits.axes.judgement import MetricComparison, compare_to_floors, status_with_controls
from audits.core.config import AuditConfig, Rule
from audits.core.context import AuditContext
from audits.core.cost import Cost, PlanInputs
from audits.core.preflight import Damage
from audits.core.registry import ModalityName
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores
from evidence.results import AxisResult, Control, Reading, Status
from evidence.typed_json import Json

Judge = Callable[[Sequence[Reading], Sequence[Control], Rule], tuple[Status, list[str]]]
"""Status and notes of an axis, from its readings (those against the primary floor first)."""


def no_minimum(rule: Rule) -> float:
    """Test against the floor itself."""
    return 0.0


def margin(rule: Rule) -> float:
    """Test against the equivalence margin."""
    return rule.margin


def within_variance(rule: Rule) -> float:
    """Test against the residual that lies within the variance of seeds."""
    return rule.min_residual


@dataclass(frozen=True)
class MetricSpec:
    """One metric of an axis: a reading of its result.

    Attributes:
        id: Stable name in ``audit.json``, such as "exact_match".
        label: Name of the reading, shown in tables.
        stream: Name of the random stream of its permutations. Never change it: p-values would.
        finding: Sentence of the verdict where the metric shows recovery, with ``{it}``,
            ``{where}`` and ``{value}``; empty where it cannot make ``suppressed`` by itself.
        trace: What the metric finds where it is recovered but makes no verdict, with ``{short}``:
            a residual trace, which blocks ``deleted``.
        names_sites: Whether the columns are layers, so that a finding says where.
        unit: Unit of the statistic; the axis's own where empty.
        is_share: Whether it is written as a percentage.
        min_residual: Share of the way from the floor to the original that must be exceeded, for
            metrics whose floor lies slightly below that of a model without the knowledge.
    """

    id: str
    label: str
    stream: str
    finding: str = ""
    trace: str = ""
    names_sites: bool = False
    unit: str = ""
    is_share: bool = False
    min_residual: Callable[[Rule], float] = no_minimum


@dataclass(frozen=True)
class AxisForm:
    """An axis in one modality.

    Attributes:
        question: The question that it answers, in one sentence.
        statistic: Its statistic, with unit or chance level.
        metrics: Its metrics; the first decides what is shown first.
        n_deciding: Number of readings that decide the status.
        status_of: Decides the status.
    """

    question: str
    statistic: str
    metrics: tuple[MetricSpec, ...]
    n_deciding: int = 2
    status_of: Judge | None = None

    def status(
        self, readings: Sequence[Reading], controls: Sequence[Control], rule: Rule
    ) -> tuple[Status, list[str]]:
        """Status and notes, from readings and controls."""
        if self.status_of is not None:
            return self.status_of(readings, controls, rule)
        return status_with_controls(readings[: self.n_deciding], controls, rule)

    def result(
        self,
        axis: str,
        readings: Sequence[Reading],
        controls: Sequence[Control],
        ctx: "JudgementContext",
        *,
        n_entities: int,
        details: Mapping[str, Json] | None = None,
        notes: Sequence[str] = (),
        unread: str = "",
    ) -> AxisResult:
        """The axis's result, with the status that follows from readings and controls.

        Args:
            notes: Sentences after those about the status.
            unread: Why nothing could be read, where there are no readings: no power.
        """
        status, found = self.status(readings, controls, ctx.rule)
        if unread and not readings:
            status, found = "no_power", [unread]
        return AxisResult(
            axis,
            self.question,
            status,
            self.statistic,
            readings=tuple(readings),
            controls=tuple(controls),
            n_entities=n_entities,
            details=details or {},
            notes=(*found, *notes, *ctx.notes),
        )


@dataclass(frozen=True)
class AxisSpec:
    """What is known of an axis before it runs.

    Attributes:
        id: Its name in settings and in ``audit.json``.
        forms: The axis by modality.
        unavailable: Why it does not run, by modality.
        inside: Whether it looks inside the candidate. Such an axis needs the planted
            suppression and is left out for a damaged or unchanged candidate.
        work: Rough share of the inner axes' time, for the progress bar.
    """

    id: str
    forms: Mapping[ModalityName, AxisForm]
    unavailable: Mapping[ModalityName, str] = field(default_factory=dict)
    inside: bool = True
    work: float = 0.05

    def form(self, modality: ModalityName) -> AxisForm:
        """The axis in one modality."""
        return self.forms[modality]


@dataclass(frozen=True)
class JudgementContext:
    """What an axis is judged with, besides its measurement.

    Attributes:
        config: Rule, seed and number of permutations.
        modality: Modality of the audit.
        damage: Utility of the candidate.
        behaviour: Status of the behaviour axis, or None where it did not run.
        notes: Notes that every inner axis repeats, as that nothing could be planted.
    """

    config: AuditConfig
    modality: ModalityName
    damage: Damage
    behaviour: Status | None = None
    notes: tuple[str, ...] = ()

    @property
    def rule(self) -> Rule:
        """Thresholds of the audit."""
        return self.config.rule


@dataclass(frozen=True)
class Unmeasured:
    """An axis that could not measure, with the reasons in sentences."""

    notes: tuple[str, ...]
    status: Literal["no_power", "error"] = "no_power"


def measured_stage(axis: str) -> str:
    """Name of the stage that holds an axis's measurement."""
    return f"{axis}-measured"


M = TypeVar("M")


def readings(
    axis: str,
    metrics: Sequence[MetricSpec],
    scores: RoleScores,
    config: AuditConfig,
    mask: NDArray[np.bool_] | None = None,
    references: Sequence[Role] | None = None,
) -> list[Reading]:
    """The candidate's scores against the floors, one reading a metric and floor.

    The candidate's forgotten entities are compared with the same entities in the references,
    where there are any, and with never-taught entities in the candidate; the original's give the
    ceiling.

    Args:
        axis: Name of the axis, for its random streams.
        mask: (column,) columns that count; all by default.
        references: References that give a floor; by default all that were measured.
    """
    comparisons = [
        MetricComparison(
            metric.label,
            metric.stream,
            scores.values(metric.id, Role.CANDIDATE),
            scores.values(metric.id, Role.ORIGINAL),
            [
                scores.values(metric.id, role)
                for role in scores.roles(metric.id)
                if role.is_reference and (references is None or role in references)
            ],
            scores.values(metric.id, Role.CANDIDATE, Part.NEVER_TAUGHT),
            metric.min_residual(config.rule),
            metric.id,
        )
        for metric in metrics
    ]
    units = {metric.id: (metric.unit, metric.is_share) for metric in metrics}
    return [
        replace(reading, unit=units[reading.metric][0], is_share=units[reading.metric][1])
        for reading in compare_to_floors(axis, comparisons, list(scores.columns), config, mask)
    ]


@dataclass(frozen=True)
class Axis(Generic[M]):
    """One axis of evidence.

    Attributes:
        spec: What is known of it before it runs.
        measured: Type of its measurement, for reading it back.
        measure: By modality: run the models. Expensive; the result is a stage, and further stages
            inside make it resumable.
        judge: Readings, controls and status from a measurement. Cheap, and without models.
        cost: Upper bound of what the measurement takes.
    """

    spec: AxisSpec
    measured: type[M]
    measure: Mapping[ModalityName, Callable[[AuditContext[Any]], M | Unmeasured]]
    judge: Callable[[M, JudgementContext], AxisResult]
    cost: Callable[[PlanInputs], Cost] = lambda plan: Cost()

    @property
    def stored(self) -> type[M | Unmeasured]:
        """Type of the stored measurement."""
        return cast("type[M | Unmeasured]", self.measured | Unmeasured)

    def result(self, measured: M | Unmeasured, ctx: JudgementContext) -> AxisResult:
        """The judged axis; one that could not measure has no readings."""
        if isinstance(measured, Unmeasured):
            form = self.spec.form(ctx.modality)
            notes = (*measured.notes, *ctx.notes)
            return AxisResult(self.spec.id, form.question, measured.status, notes=notes)
        return self.judge(measured, ctx)
