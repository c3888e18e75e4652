"""Reevaluate a finished audit under another rule, or without some of its axes.

Measurements do not depend on the rule; statuses and the verdict do. So thresholds can be tuned,
and axes ablated, on audits that were run once.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from audits.axes.base import JudgementContext, measured_stage
from audits.core.config import AuditConfig, Rule
from audits.core.preflight import Damage
from audits.core.registry import ModalityName, load_axis
from audits.modalities.planting import Planted
from audits.output.workspace import Workspace
from audits.verdict.rule import Verdict, decide
from capture.network.untouched import Untouched
from evidence.results import AxisResult
from evidence.typed_json import from_json


def reevaluate(
    document: Mapping[str, Any], rule: Rule | None = None, without: Collection[str] = ()
) -> Verdict:
    """The verdict on the readings of ``document``.

    Controls keep the level at which they were tested.

    Args:
        document: An ``audit.json``.
        rule: Thresholds; those of the audit by default.
        without: Axes to leave out, also from those required for ``deleted``.
    """
    if rule is None:
        rule = Rule.model_validate(document["config"]["rule"])
    required = [name for name in rule.required_for_deleted if name not in without]
    rule = rule.model_copy(update={"required_for_deleted": tuple(required)})
    modality = document["modality"]
    results = [
        _judged(AxisResult.from_json(saved), rule, modality)
        for saved in document["axes"]
        if saved["name"] not in without
    ]
    preflight = document["preflight"]
    utility = preflight["utility"]
    saved = preflight.get("weight_difference", {}).get("untouched")
    return decide(
        {axis.name: axis for axis in results},
        Damage(utility["shares"], tuple(utility["damage"])),
        preflight["identical_weights"],
        document["verdict"]["floor"],
        rule,
        modality,
        None if saved is None else from_json(Untouched, saved),
    )


def rejudge(
    root: Path, document: Mapping[str, Any], rule: Rule | None = None
) -> dict[str, AxisResult]:
    """Judge every axis of a finished audit again from its saved measurement.

    Unlike ``reevaluate``, controls and readings are made again, under the rule given.

    Args:
        root: Output folder of the audit.
        document: Its ``audit.json``.
        rule: Thresholds; those of the audit by default.

    Raises:
        InputError: a measurement is missing; the audit was made by another version, or its work
            folder was deleted.
    """
    config = AuditConfig.model_validate(
        {k: v for k, v in document["config"].items() if k in AuditConfig.model_fields}
    )
    if rule is not None:
        config = config.model_copy(update={"rule": rule})
    space, preflight = Workspace(root), document["preflight"]
    utility = preflight["utility"]
    ctx = JudgementContext(
        config, document["modality"], Damage(utility["shares"], tuple(utility["damage"]))
    )
    results: dict[str, AxisResult] = {}
    for saved in document["axes"]:
        axis = load_axis(saved["name"])
        measured = space.saved(measured_stage(axis.spec.id), axis.stored)
        if axis.spec.inside:
            behaviour = results.get("behaviour")
            notes = space.saved("planted", Planted).notes
            status = behaviour.status if behaviour is not None else None
            ctx = replace(ctx, behaviour=status, notes=notes)
        results[axis.spec.id] = axis.result(measured, ctx)
    return results


def _judged(axis: AxisResult, rule: Rule, modality: ModalityName) -> AxisResult:
    """The axis with its status under a rule; one that could not measure keeps its own."""
    if not axis.readings:
        return axis
    form = load_axis(axis.name).spec.form(modality)
    status, _ = form.status(axis.readings, axis.controls, rule)
    return replace(axis, status=status)
