"""Calibrated state probabilities, learned from audits of models of known state.

The verdict is a rule and does not use them. They state, for each state, the share of models
with a similar audit that are in it, under equal priors at each question. Three questions are
asked in the order of the rule, each a logistic regression. Is the model damaged? From its worst
utility over its limit. If not, are the answers still given? From the residual at the output. If
they are absent, is the knowledge inside? From the residuals of the inner axes. The parameters
are fitted on the tuning part of the zoo alone (``benchmarks/suites/verdict/calibration.py``) and
shipped with a version; the held-out part measures their quality (docs/results/verdict.md).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from scipy.special import expit

from audits.core.config import Rule
from audits.core.preflight import LIMITS
from evidence.results import AxisResult, Reading
from evidence.typed_json import Json

STATES = ("not_unlearned", "suppressed", "deleted", "damaged")
# Inner axes: those that ``deleted`` requires, and all.
OUTPUT = "behaviour"
REQUIRED_AXES = ("decodability", "relearning")
INNER_AXES = (*REQUIRED_AXES, "causal_depth")
# Adds to the largest distance alone: after most edits it lies at the floor, as in a retrain.
FRONT = "front_transplant"
# Residuals are clipped to this range.
LOWEST, HIGHEST = -0.5, 1.5
# Without figures from inside, suppressed and deleted share at most this probability equally.
MAX_UNSPLIT = 0.2
# How far outside the zoo's range a case may lie, relative to that range.
SLACK = 0.1


@dataclass(frozen=True)
class LogisticQuestion:
    """One logistic regression on standardized figures.

    Attributes:
        figures: Names of its inputs, of ``calibration_features``.
        mean: Mean of each.
        scale: Scale of each.
        weights: One per figure.
        intercept: Log odds at the mean.
        models: Number of fitted models with the answer no, and yes.
    """

    figures: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    models: tuple[int, int]

    def probability(self, features: Mapping[str, float]) -> float | None:
        """Probability of yes; None where a figure is missing.

        Bounded by the rule of succession for the number of fitted models: on separable answers
        an unbounded regression would be certain of anything.
        """
        if any(name not in features for name in self.figures):
            return None
        values = np.array([features[name] for name in self.figures])
        scaled = (values - np.array(self.mean)) / np.array(self.scale)
        score = float(np.array(self.weights) @ scaled) + self.intercept
        low, high = (1 / (models + 2) for models in self.models)
        return low + (1 - low - high) * float(expit(score))


@dataclass(frozen=True)
class Calibration:
    """A fitted calibration.

    Attributes:
        version: Names the part of the zoo and the commit of the audits.
        damaged: Is the model damaged?
        said: If not, does it still give the answers?
        inside: If not, does it hold the knowledge?
        ranges: Minimum and maximum of each of ``case_facts`` among the audits.
    """

    version: str
    damaged: LogisticQuestion
    said: LogisticQuestion
    inside: LogisticQuestion
    ranges: dict[str, tuple[float, float]]

    def probabilities(self, features: Mapping[str, float]) -> dict[str, float] | None:
        """Probability of each state, or None where figures are missing.

        Args:
            features: From ``calibration_features``. Without figures from inside, suppressed and
                deleted cannot be distinguished, which matters only where one of them is likely.
        """
        damaged, answered = (self.damaged.probability(features), self.said.probability(features))
        inside = self.inside.probability(features)
        if damaged is None or answered is None:
            return None
        absent = (1 - damaged) * (1 - answered)
        if inside is None:
            if absent > MAX_UNSPLIT:
                return None
            inside = 0.5
        return {
            "not_unlearned": (1 - damaged) * answered,
            "suppressed": absent * inside,
            "deleted": absent * (1 - inside),
            "damaged": damaged,
        }

    def to_dict(self) -> dict[str, Json]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Calibration":
        """The inverse of ``to_dict``."""
        parts = {
            name: LogisticQuestion(**{k: _frozen(v) for k, v in saved[name].items()})
            for name in ("damaged", "said", "inside")
        }
        ranges = {name: (low, high) for name, (low, high) in saved["ranges"].items()}
        return cls(version=saved["version"], ranges=ranges, **parts)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@cache
def shipped() -> Calibration:
    """The calibration that comes with the package."""
    text = files("audits.verdict").joinpath("calibration.json").read_text(encoding="utf-8")
    return Calibration.from_dict(json.loads(text))


def calibration_features(
    axes: Mapping[str, AxisResult], shares: Mapping[str, float]
) -> dict[str, float]:
    """Input figures of the calibration, as far as the audit has them.

    ``useful`` is the worst utility over its limit in the default rule (below 1 is damage),
    ``said`` the residual at the output, ``inside`` the largest absolute residual of the inner
    axes, of the front transplant and of the contrast at the output, and ``within`` the mean
    absolute main residual of the inner axes. Absolute values, because below the floor is
    information too. Axes with failed controls are left out. Causal depth is optional, as not every
    model's states can be patched; the other two inner axes are required.

    Args:
        shares: Each utility as a share of the original's.
    """
    features, limits = {}, Rule()
    if shares:
        features["useful"] = min(
            share / getattr(limits, LIMITS[name]) for name, share in shares.items()
        )
    output_readings = _readings(axes, OUTPUT)[:1]
    if output_readings:
        features["said"] = output_readings[0].residual
    kind = output_readings[0].floor_kind if output_readings else None
    inner = {
        name: [reading for reading in _readings(axes, name) if reading.floor_kind == kind]
        for name in INNER_AXES
    }
    inner = {name: readings for name, readings in inner.items() if readings}
    if set(REQUIRED_AXES) <= set(inner):
        output_contrast = axes[OUTPUT].metric("contrast")
        inner_readings = [reading for readings in inner.values() for reading in readings]
        inner_readings += [output_contrast] if output_contrast is not None else []
        # Its first reading, whatever the floor: a reference may not understand the front.
        inner_readings += _readings(axes, FRONT)[:1]
        features["inside"] = max(abs(reading.residual) for reading in inner_readings)
        main_residuals = [abs(readings[0].residual) for readings in inner.values()]
        features["within"] = float(np.mean(main_residuals))
    return {name: float(np.clip(v, LOWEST, HIGHEST)) for name, v in features.items()}


def _readings(axes: Mapping[str, AxisResult], name: str) -> tuple[Reading, ...]:
    """The readings of an axis; empty where its controls failed."""
    if name not in axes or axes[name].status in ("control_failed", "error"):
        return ()
    return axes[name].readings


def case_facts(axes: Mapping[str, AxisResult], preflight: Mapping[str, Any]) -> dict[str, float]:
    """Size of a case, to check whether the zoo has similar ones."""
    behaviour_found = axes.get(OUTPUT)
    main = behaviour_found.main_reading if behaviour_found is not None else None
    blocks = {layer["layer"] for layer in preflight["weight_difference"]["layers"]}
    counts = preflight["known"]
    facts = {
        "forgotten entities": counts["forget_entities"],
        "retained entities": counts["retain_entities"],
        "blocks of the model": len(blocks - {-1}),
    }
    if main is not None:
        facts["share of the answers that the original says"] = main.ceiling
    return {name: float(value) for name, value in facts.items()}


@dataclass(frozen=True)
class CalibrationNote:
    """Version of a calibration, and how a case lies outside the range of the zoo, in sentences."""

    version: str
    outside: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """Probabilities by state, or None where figures are missing."""

    probabilities: dict[str, float] | None
    calibration: CalibrationNote


def estimate(
    calibration: Calibration, axes: Mapping[str, AxisResult], preflight: Mapping[str, Any]
) -> Estimate:
    """Probabilities of the states, with version and range violations."""
    shares = preflight["utility"]["shares"]
    probabilities = calibration.probabilities(calibration_features(axes, shares))
    outside = [
        f"{name} found the answers, and no model of the zoo was fitted with that axis"
        for name, axis in axes.items()
        if name not in (OUTPUT, *INNER_AXES, FRONT) and axis.status == "retained"
    ]
    asking = preflight.get("asking")
    if asking:
        outside.append(
            f"score {asking['scorer']}, floor {asking['floor']}: the zoo was scored by exact match "
            "against invented entities"
        )
    for name, value in case_facts(axes, preflight).items():
        low, high = calibration.ranges[name]
        slack = SLACK * (high - low if high > low else abs(high))
        if not low - slack <= value <= high + slack:
            outside.append(f"{name}: {value:.4g}, in the zoo {low:.4g} to {high:.4g}")
    return Estimate(probabilities, CalibrationNote(calibration.version, tuple(outside)))
