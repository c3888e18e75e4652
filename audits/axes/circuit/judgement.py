"""From circuit mass per couple to readings, controls and a status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from attribution.circuits.graph import EdgeGraph
from audits.axes.judgement import planted_control, status_from_readings
from audits.core.config import AuditConfig
from audits.core.context import reference_roles
from evidence.hypothesis_tests import paired_max_test, unpaired_max_test
from evidence.intervals import Interval
from evidence.results import MIN_RANGE, Control, Reading, Status
from evidence.seeds import numpy_rng

TRANSPLANTED = "original's readout"
LAST_BLOCK = "original's last block and readout"
TITLES = {
    TRANSPLANTED: "circuit mass kept, original's readout",
    LAST_BLOCK: "circuit mass kept, original's last block and readout",
    "native": "circuit mass kept, own readout",
}
# Minimum distance of ceiling and floor: below it, a residual is noise divided by noise.
MIN_SPAN = 0.25
# A head is listed where its direct effect against the answer is at least this share of the
# effect of corrupting the whole prompt in the original.
MIN_EFFECT_SHARE = 0.05
RESAMPLES = 2000

MassKey = tuple[str, str, str]


@dataclass(frozen=True)
class CircuitMass:
    """Measured circuit mass.

    Attributes:
        values: (couple,) mass kept of each pair of entities, by role, part ("forget" or
            "never_taught") and readout.
        faithfulness: Of each circuit, under real ablation.
    """

    values: Mapping[MassKey, np.ndarray]
    faithfulness: Sequence[float]


@dataclass(frozen=True)
class AxisJudgement:
    """The axis result without its name and the measured details."""

    status: Status
    readings: tuple[Reading, ...]
    controls: tuple[Control, ...]
    details: dict[str, Any]
    notes: tuple[str, ...]


def judge(mass: CircuitMass, config: AuditConfig, min_faithfulness: float) -> AxisJudgement:
    """Compute controls, readings and status.

    Args:
        min_faithfulness: Minimum share of the metric that a circuit must keep.
    """
    controls = _controls(mass, config, min_faithfulness)
    power = controls[0]
    if not power.passed:
        return AxisJudgement(
            "no_power",
            (),
            tuple(controls),
            {},
            ("The original's own circuit does not tell what it knows.",),
        )
    readings = _readings(mass, config)
    status, notes = _status(readings, controls, config)
    cad = {
        reading.name: {
            "floor_kind": reading.floor_kind,
            "normalised_cad": 1 - reading.residual,
            "interval_90": [1 - bound for bound in reversed(reading.residual_interval)],
        }
        for reading in readings
    }
    return AxisJudgement(
        status, tuple(readings), tuple(controls), {"normalised": cad}, tuple(notes)
    )


def _controls(mass: CircuitMass, config: AuditConfig, faithful: float) -> list[Control]:
    alpha = config.rule.alpha
    known_mass = mass.values["original", "forget", "native"]
    never_taught_mass = mass.values["original", "never_taught", "native"]
    span = float(known_mass.mean() - never_taught_mass.mean())
    test = _unpaired(known_mass, never_taught_mass, config, "original")
    controls = [
        Control(
            "the original's circuit carries its answers beyond never-taught ones",
            test.p_value,
            f"p < {alpha} and at least {MIN_SPAN} apart",
            test.p_value < alpha and span >= MIN_SPAN,
        ),
        Control(
            "the circuit carries the answers when nothing else does",
            float(min(mass.faithfulness)),
            f"faithfulness at least {faithful} under real ablation",
            min(mass.faithfulness) >= faithful,
        ),
        Control(
            "the circuit of one half carries the other half's answers",
            float(known_mass.mean()),
            "at least 0.5 of its mass",
            bool(known_mass.mean() >= 0.5),
        ),
        Control(
            "never-taught answers are not carried by the original's circuit",
            float(never_taught_mass.mean()),
            "below 0.25 either way",
            bool(abs(never_taught_mass.mean()) < 0.25),
        ),
    ]
    if ("planted", "forget", TRANSPLANTED) in mass.values:
        test = _unpaired(
            mass.values["planted", "forget", TRANSPLANTED],
            mass.values["planted", "never_taught", TRANSPLANTED],
            config,
            "planted",
        )
        controls.append(planted_control(test.p_value, alpha))
    return controls


def _unpaired(x: np.ndarray, y: np.ndarray, config: AuditConfig, *names: str):
    rng = numpy_rng(config.seed, "circuit", *names)
    permutations = config.budget.permutations
    return unpaired_max_test(x[:, None], y[:, None], rng, permutations)


def _readings(mass: CircuitMass, config: AuditConfig) -> list[Reading]:
    """One reading a readout, against references (if any) and never-taught items."""
    references = sorted(reference_roles({role for role, _, _ in mass.values}))
    kinds = ["reference", "never_taught"] if references else ["never_taught"]
    readings = []
    for kind in kinds:
        for readout, title in TITLES.items():
            if kind == "reference":
                reference_mass = [mass.values[role, "forget", readout] for role in references]
                floor = np.mean(reference_mass, axis=0)
            else:
                floor = mass.values["unlearned", "never_taught", readout]
            second = references and kind == "never_taught"
            readings.append(
                _reading(
                    f"{title}, against never-taught items" if second else title,
                    mass.values["unlearned", "forget", readout],
                    floor,
                    mass.values["original", "forget", "native"],
                    kind,
                    config,
                )
            )
    return readings


def _reading(
    name: str,
    candidate: np.ndarray,
    floor: np.ndarray,
    ceiling: np.ndarray,
    kind: str,
    config: AuditConfig,
) -> Reading:
    """One comparison, with couples as the bootstrap unit; paired where both share couples.

    Intervals are Student t intervals around the estimate with the bootstrap standard error:
    bootstrap percentiles of a handful of couples would be too narrow.
    """
    paired = kind == "reference"
    rng = numpy_rng(config.seed, "circuit", kind, name)
    if paired:
        test = paired_max_test(candidate[:, None], floor[:, None], rng, config.budget.permutations)
    else:
        test = unpaired_max_test(
            candidate[:, None], floor[:, None], rng, config.budget.permutations
        )

    def residual(c: np.ndarray, f: np.ndarray, o: np.ndarray) -> np.ndarray:
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
    span = max(float(ceiling.mean() - floor.mean()), MIN_RANGE)
    mean = float(candidate.mean())
    error = candidate.std(ddof=1) / np.sqrt(count)
    half_width = float(error * stats.t.ppf(0.975, count - 1))
    interval: Interval = (mean - half_width, mean + half_width)
    column = {
        "name": "circuit",
        "used": True,
        "statistic": mean,
        "interval": list(interval),
        "floor": float(floor.mean()),
        "ceiling": float(ceiling.mean()),
        "difference": mean - float(floor.mean()),
        "tost": [(center - residual_half_width) * span, (center + residual_half_width) * span],
        "p_value": test.p_value,
    }
    return Reading(
        name=name,
        statistic=mean,
        interval=interval,
        floor=float(floor.mean()),
        floor_kind=kind,
        ceiling=float(ceiling.mean()),
        residual=center,
        residual_interval=(center - residual_half_width, center + residual_half_width),
        p_value=test.p_value,
        p_below=test.p_below,
        smallest_p=test.smallest_p,
        where="circuit",
        columns=(column,),
    )


def _status(
    readings: Sequence[Reading], controls: Sequence[Control], config: AuditConfig
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither.

    A reading beyond the floor is not enough: the original's readout was itself trained on the
    forgotten entities and gives a model that never knew them a small advantage.
    """
    planted = [c.name for c in controls if "planted" in c.name and not c.passed]
    failed = [c.name for c in controls if not c.passed and c.name not in planted]
    if failed:
        return "control_failed", [f"Control failed: {name}." for name in failed]
    # There are half as many couples as entities, too few for the level of a verdict, and this
    # axis decides none.
    rule = config.rule
    return status_from_readings(readings[: len(TITLES)], rule, failed=planted, alpha=rule.alpha)


def copy_suppression(graph: EdgeGraph, scores: np.ndarray, drop: float) -> list[dict[str, Any]]:
    """Heads whose direct effect on the logits works against the answer.

    A head is listed where corrupting its edge into the logits *raises* the metric by at least
    ``MIN_EFFECT_SHARE`` times ``drop``, significantly over couples (one-sided t, Bonferroni over
    heads). Named after copy suppression (McDougall et al., arXiv 2310.04625).

    Args:
        scores: (couple, edge).
        drop: Fall of the original's metric when the whole prompt is corrupted.
    """
    into = graph.edges_into(len(graph.readers) - 1)
    direct = scores[:, into]
    heads = [p for p, name in enumerate(graph.writers) if name.startswith("head.")]
    suppressors = []
    for head in heads:
        values = direct[:, head]
        mean = float(values.mean())
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        level = stats.t.ppf(1 - 0.05 / len(heads), len(values) - 1)
        if mean >= MIN_EFFECT_SHARE * drop and mean > level * error:
            suppressors.append({"head": graph.writers[head], "effect": mean, "share": mean / drop})
    return sorted(suppressors, key=lambda entry: -entry["effect"])
