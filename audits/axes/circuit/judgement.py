"""From circuit mass per couple to readings, controls and a status."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from attribution.circuits.circuit import Faithfulness
from attribution.circuits.divergence import Divergence
from audits.axes.base import AxisForm, AxisSpec, JudgementContext, MetricSpec
from audits.axes.judgement import planted_control, status_with_controls
from audits.core.config import AuditConfig, Rule
from audits.core.roles import Role
from audits.core.scores import Part
from evidence.hypothesis_tests import MaxTest, paired_max_test, unpaired_max_test
from evidence.intervals import Interval
from evidence.results import (
    MIN_RANGE,
    AxisResult,
    Column,
    Control,
    ControlId,
    OnFailure,
    Reading,
    Status,
)
from evidence.seeds import numpy_rng
from evidence.typed_json import FloatArray, Json, to_json, to_json_object

NAME = "circuit"
NATIVE, TRANSPLANTED = "native", "original's readout"
LAST_BLOCK = "original's last block and readout"
OWN_READOUT = MetricSpec(
    "own_readout",
    "circuit mass kept, own readout",
    stream="circuit mass kept, own readout",
    is_share=True,
)
METRICS = {
    TRANSPLANTED: MetricSpec(
        "original_readout",
        "circuit mass kept, original's readout",
        stream="circuit mass kept, original's readout",
        is_share=True,
    ),
    LAST_BLOCK: MetricSpec(
        "original_last_block",
        "circuit mass kept, original's last block and readout",
        stream="circuit mass kept, original's last block and readout",
        is_share=True,
    ),
    NATIVE: OWN_READOUT,
}
"""Metrics by the readout that a model is read with."""
SECOND_FLOOR = ", against never-taught items"
"""Ends the name and the random stream of a reading that is only reported."""

MIN_FAITHFULNESS = 0.85
"""Minimum share of the metric that a circuit keeps under real ablation of all other edges."""
# Minimum distance of ceiling and floor: below it, a residual is noise divided by noise.
MIN_SPAN = 0.25
RESAMPLES = 2000


@dataclass(frozen=True)
class SelectedCircuit(Faithfulness):
    """Faithfulness of one circuit, with its number of edges."""

    edges: int


@dataclass(frozen=True)
class CircuitSearch:
    """How the original's circuits were found.

    Attributes:
        method: The attribution method, in words.
        metric: The attributed metric.
        pairs: Number of prompt pairs by part.
        edges: Number of edges of the graph.
        circuits: One circuit a half of the couples.
    """

    method: str
    metric: str
    pairs: dict[Part, int]
    edges: int
    circuits: tuple[SelectedCircuit, ...]


@dataclass(frozen=True)
class EdgeLoss:
    """Mean score of one edge in both models."""

    edge: str
    original: float
    unlearned: float


@dataclass(frozen=True)
class SuppressingHead:
    """A head that works against the answer.

    Attributes:
        effect: Rise of the metric when its edge into the logits is corrupted.
        share: The same as a share of the effect of corrupting the whole prompt in the original.
    """

    head: str
    effect: float
    share: float


@dataclass(frozen=True, eq=False)
class ModelScores:
    """How one model's edge scores compare with the original's circuits.

    Attributes:
        mass: Metric to part to (couple,) share of the circuit's mass kept.
        cad: Distances from the original, by role, part and readout in words.
        lost: Edges of the circuits that lost most, with the model's own readout.
        heads: Heads that work against the answer, with the model's own readout.
    """

    mass: dict[str, dict[Part, FloatArray]]
    cad: dict[str, Divergence]
    lost: tuple[EdgeLoss, ...] = ()
    heads: tuple[SuppressingHead, ...] = ()


@dataclass(frozen=True, eq=False)
class Measurement:
    """Edge scores of every model, against the original's circuits.

    Attributes:
        models: Scores by role; the original has its own readout alone.
        notes: Limitations, in sentences.
    """

    models: dict[Role, ModelScores]
    search: CircuitSearch
    notes: tuple[str, ...] = ()

    def mass(self, metric: MetricSpec, role: Role, part: Part = Part.FORGET) -> FloatArray:
        """(couple,) share of the circuit's mass kept."""
        return self.models[role].mass[metric.id][part]


def judge(measured: Measurement, ctx: JudgementContext) -> AxisResult:
    """Compare the circuit mass kept with the floors, with couples as the unit."""
    form, candidate = SPEC.form(ctx.modality), measured.models[Role.CANDIDATE]
    controls = _controls(measured, ctx.config)
    cad = {name: each for found in measured.models.values() for name, each in found.cad.items()}
    heads = {role: measured.models[role].heads for role in (Role.ORIGINAL, Role.CANDIDATE)}
    details: dict[str, Json] = {
        **to_json_object(measured.search),
        "cad": to_json(cad, dict[str, Divergence]),
        "edges_that_lost_most": to_json(candidate.lost, tuple[EdgeLoss, ...]),
        "copy_suppression": to_json(heads, dict[str, tuple[SuppressingHead, ...]]),
    }
    readings: list[Reading] = []
    if controls[0].passed:
        readings = _readings(measured, ctx.config)
        details["normalized"] = {
            reading.name: {
                "floor_kind": reading.floor_kind,
                "normalized_cad": 1 - reading.residual,
                "interval_90": [1 - bound for bound in reversed(reading.residual_interval)],
            }
            for reading in readings
        }
    return form.result(
        NAME,
        readings,
        controls,
        ctx,
        n_entities=2 * len(measured.mass(OWN_READOUT, Role.ORIGINAL)),
        details=details,
        notes=(*_heads_in_words(measured), *measured.notes),
        unread="The original's own circuit does not tell what it knows.",
    )


def _controls(measured: Measurement, config: AuditConfig) -> list[Control]:
    alpha = config.rule.alpha
    known = measured.mass(OWN_READOUT, Role.ORIGINAL)
    never_taught = measured.mass(OWN_READOUT, Role.ORIGINAL, Part.NEVER_TAUGHT)
    power = _unpaired_test(known, never_taught, config, "original")
    faithfulness = min(circuit.faithfulness for circuit in measured.search.circuits)
    controls = [
        Control(
            ControlId.POWER,
            "the original's circuit carries its answers beyond never-taught ones",
            power.p_value,
            f"p < {alpha} and at least {MIN_SPAN} apart",
            power.p_value < alpha and float(known.mean() - never_taught.mean()) >= MIN_SPAN,
            kind="p_value",
        ),
        Control(
            ControlId.FAITHFULNESS,
            "the circuit alone carries the answers",
            faithfulness,
            f"faithfulness at least {MIN_FAITHFULNESS} under real ablation",
            faithfulness >= MIN_FAITHFULNESS,
        ),
        Control(
            ControlId.TRANSFER,
            "the circuit of one half carries the other half's answers",
            float(known.mean()),
            "at least 0.5 of its mass",
            bool(known.mean() >= 0.5),
        ),
        Control(
            ControlId.NEVER_TAUGHT,
            "the original's circuit does not carry never-taught answers",
            float(never_taught.mean()),
            "below 0.25 either way",
            bool(abs(never_taught.mean()) < 0.25),
        ),
    ]
    if Role.PLANTED in measured.models:
        planted = measured.models[Role.PLANTED].mass[METRICS[TRANSPLANTED].id]
        test = _unpaired_test(planted[Part.FORGET], planted[Part.NEVER_TAUGHT], config, "planted")
        controls.append(planted_control(test.p_value, alpha, on_failure=OnFailure.NO_ABSENCE))
    return controls


def _unpaired_test(x: FloatArray, y: FloatArray, config: AuditConfig, stream: str) -> MaxTest:
    rng = numpy_rng(config.seed, NAME, stream)
    return unpaired_max_test(x[:, None], y[:, None], rng, config.budget.permutations)


def _readings(measured: Measurement, config: AuditConfig) -> list[Reading]:
    """One reading a readout, against references (if any) and never-taught items."""
    references = sorted(role for role in measured.models if role.is_reference)
    readings = []
    for kind in ("reference", "never_taught") if references else ("never_taught",):
        suffix = SECOND_FLOOR if references and kind == "never_taught" else ""
        for metric in METRICS.values():
            if kind == "reference":
                floor = np.mean([measured.mass(metric, role) for role in references], axis=0)
            else:
                floor = measured.mass(metric, Role.CANDIDATE, Part.NEVER_TAUGHT)
            candidate = measured.mass(metric, Role.CANDIDATE)
            ceiling = measured.mass(OWN_READOUT, Role.ORIGINAL)
            readings.append(_reading(metric, candidate, floor, ceiling, kind, suffix, config))
    return readings


def _reading(
    metric: MetricSpec,
    candidate: FloatArray,
    floor: FloatArray,
    ceiling: FloatArray,
    kind: str,
    suffix: str,
    config: AuditConfig,
) -> Reading:
    """One comparison, with couples as the bootstrap unit; paired where both share couples.

    Intervals are Student t intervals around the estimate with the bootstrap standard error:
    bootstrap percentiles of a handful of couples would be too narrow.
    """
    paired = kind == "reference"
    rng = numpy_rng(config.seed, NAME, kind, metric.stream + suffix)
    test = (paired_max_test if paired else unpaired_max_test)(
        candidate[:, None], floor[:, None], rng, config.budget.permutations
    )

    def residual(c: FloatArray, f: FloatArray, o: FloatArray) -> FloatArray:
        span = np.maximum(o.mean(-1) - f.mean(-1), MIN_RANGE)
        return (c.mean(-1) - f.mean(-1)) / span

    count, others = len(candidate), len(floor)
    rows = rng.integers(count, size=(RESAMPLES, count))
    floor_rows = rows if paired else rng.integers(others, size=(RESAMPLES, others))
    drawn = residual(candidate[rows], floor[floor_rows], ceiling[rows])
    smallest = min(count, others)
    correction = np.sqrt(smallest / (smallest - 1))
    center = float(residual(candidate, floor, ceiling))
    residual_half_width = float(drawn.std() * correction * stats.t.ppf(0.95, smallest - 1))
    residual_interval = (center - residual_half_width, center + residual_half_width)
    span = max(float(ceiling.mean() - floor.mean()), MIN_RANGE)
    mean = float(candidate.mean())
    error = candidate.std(ddof=1) / np.sqrt(count)
    half_width = float(error * stats.t.ppf(0.975, count - 1))
    interval: Interval = (mean - half_width, mean + half_width)
    low, high = residual_interval
    column = Column(
        name="circuit",
        used=True,
        statistic=mean,
        interval=interval,
        floor=float(floor.mean()),
        ceiling=float(ceiling.mean()),
        difference=mean - float(floor.mean()),
        tost=(low * span, high * span),
        p_value=test.p_value,
    )
    return Reading(
        name=metric.label + suffix,
        statistic=mean,
        interval=interval,
        floor=float(floor.mean()),
        floor_kind=kind,
        ceiling=float(ceiling.mean()),
        residual=center,
        residual_interval=residual_interval,
        p_value=test.p_value,
        p_below=test.p_below,
        smallest_p=test.smallest_p,
        where="circuit",
        columns=(column,),
        metric=metric.id,
        primary=not suffix,
        unit=metric.unit,
        is_share=metric.is_share,
    )


def status_of(
    readings: Sequence[Reading], controls: Sequence[Control], rule: Rule
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither, at the level of a single test.

    There are half as many couples as entities, too few for the level of a verdict, and this axis
    decides none. A reading beyond the floor is not enough: the original's readout was itself
    trained on the forgotten entities and gives a model that never knew them a small advantage.
    """
    return status_with_controls(readings[: len(METRICS)], controls, rule, alpha=rule.alpha)


def _heads_in_words(measured: Measurement) -> list[str]:
    """A note on heads whose direct effect against the answer appeared or disappeared."""
    before, after = (
        {each.head for each in measured.models[role].heads}
        for role in (Role.ORIGINAL, Role.CANDIDATE)
    )
    parts = [
        f"{', '.join(sorted(heads))} ({words})"
        for heads, words in (
            (after - before, "only in the candidate"),
            (after & before, "in both models"),
            (before - after, "only in the original"),
        )
        if heads
    ]
    return [f"Heads that work against the answer: {'; '.join(parts)}."] if parts else []


SPEC = AxisSpec(
    NAME,
    {
        "text": AxisForm(
            "Do the edges that computed the forgotten answers still carry them?",
            "share of the circuit's mass kept (1 - CAD, our definition)",
            tuple(METRICS.values()),
            n_deciding=len(METRICS),
            status_of=status_of,
        )
    },
    unavailable={"images": "its edges are found from pairs of prompts that differ in one name"},
    work=0.2,
)
