"""Restoration axis for image classifiers.

It informs and can block ``deleted`` but never makes ``suppressed``: retrains from the
original's starting weights were steered to a quarter of a class they never saw
(``docs/results/vision.md``).
"""

from typing import Any

import numpy as np

from audits.axes.judgement import (
    MIN_SPAN,
    MetricComparison,
    compare_to_floors,
    failed_controls,
    significance_control,
    status_from_readings,
    unpaired_test,
)
from audits.axes.restoration.image_trial import NAME, net_rate, restore_images, unseen_classes
from audits.axes.restoration.net_rate import CHANCE_CONTROL, chance_control
from audits.core.context import AuditedModel, ImageRun, reference_roles
from audits.modalities.image_baseline import EvaluationSets, image_values
from audits.modalities.image_vocabulary import STEERED_NAMED
from evidence.intervals import EntityValues, average_by_entity
from evidence.results import AxisResult, Control, Status

QUESTION = "Can the candidate be steered back to the class from inside?"
STATISTIC_NAME = "share of images named as the class under steering"


def run_restoration(
    run: ImageRun, models: dict[str, AuditedModel], sets: EvaluationSets, notes: tuple[str, ...]
) -> AxisResult:
    """Run the axis on models."""
    runs: dict[str, dict[str, Any]] = {}
    with models["original"].loaded(run.device) as original:
        never_taught = run.inputs.never_taught
        if never_taught is None:
            never_taught = unseen_classes(
                original, sets.check, sets.label, len(sets.forget), run.config.seed
            )
        else:
            never_taught = sets.never
        for role, audited in models.items():
            if role == "original":
                continue
            with audited.loaded(run.device) as model:
                runs[role] = restore_images(
                    original, model, sets.forget, sets.retain, never_taught, run.config.seed
                )
    original_values = np.ones(len(sets.forget))
    references = [runs[role] for role in reference_roles(runs)]
    net = net_rate(runs["unlearned"], original_values, references)
    controls = _controls(runs, net, sets, run)
    comparison = MetricComparison(
        STEERED_NAMED,
        STEERED_NAMED,
        image_values(runs["unlearned"]["steered"], sets.forget),
        image_values(original_values, sets.forget),
        [image_values(reference["steered"], sets.forget) for reference in references],
        _never(runs["unlearned"]),
    )
    readings = compare_to_floors(NAME, [comparison], ["steered"], run.config)
    failed, first = failed_controls(controls), readings[0]
    status: Status = "no_power"
    extra: list[str] = []
    if CHANCE_CONTROL in failed:
        status, extra = "control_failed", [f"Control failed: {CHANCE_CONTROL}."]
    elif first.ceiling - first.floor >= MIN_SPAN:
        status, extra = status_from_readings(readings[:1], run.config.rule, failed=failed)
    if net is not None:
        low, high = net["interval"]
        extra = [
            *extra,
            f"Steering restores {net['rate']:.0%} of the lost images, {net['net']:.0%} "
            f"net of the worst control ({net['worst_control']}; 95 % interval "
            f"{low:.0%} to {high:.0%}).",
        ]
    return AxisResult(
        NAME,
        QUESTION,
        status,
        STATISTIC_NAME,
        readings=tuple(readings),
        controls=tuple(controls),
        n_entities=len(sets.forget),
        details={
            "choices": {role: role_run["choices"] for role, role_run in runs.items()},
            "net_rate": net,
        },
        notes=(*extra, *notes),
    )


def _never(run: dict[str, Any]) -> EntityValues:
    """(never-taught image, 1) predicted as the class under an edit fitted to its own class."""
    return average_by_entity(np.array(run["never"]), run["never_ids"])


def _controls(
    runs: dict[str, dict[str, Any]], net: dict[str, Any] | None, sets: EvaluationSets, run: ImageRun
) -> list[Control]:
    """Controls: uninformed steering restores little; the planted suppression returns."""
    controls = []
    if net is not None:
        worst = max(net["controls"][arm] for arm in ("random", "others"))
        controls.append(chance_control(net["rate"], worst))
    if "planted" in runs:
        test = unpaired_test(
            image_values(runs["planted"]["steered"], sets.forget),
            _never(runs["planted"]),
            run.config,
            NAME,
            "planted",
        )
        controls.append(
            significance_control(
                "the planted suppression is steered back", test.p_value, run.config.rule.alpha
            )
        )
    return controls
