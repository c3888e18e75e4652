"""Reevaluate a finished audit under another rule, or without some of its axes.

Measurements do not depend on the rule; statuses and the verdict do. So thresholds can be tuned,
and axes ablated, on audits that were run once.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from audits.core.config import Rule
from audits.core.preflight import Damage
from audits.core.registry import ModalityName, load_axis
from audits.modalities.vocabulary import modality_name
from audits.verdict.rule import Verdict, decide
from evidence.results import AxisResult


def reevaluate(
    document: dict[str, Any], rule: Rule | None = None, without: Collection[str] = ()
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
    modality = modality_name(document)
    results = [
        _judged(AxisResult.from_dict(saved), rule, modality)
        for saved in document["axes"]
        if saved["name"] not in without
    ]
    preflight = document["preflight"]
    utility = preflight["utility"]
    return decide(
        {axis.name: axis for axis in results},
        Damage(utility["shares"], tuple(utility["damage"])),
        preflight["identical_weights"],
        document["verdict"]["floor"],
        rule,
        modality,
    )


def _judged(axis: AxisResult, rule: Rule, modality: ModalityName) -> AxisResult:
    """The axis with its status under a rule; one that could not measure keeps its own."""
    if not axis.readings:
        return axis
    form = load_axis(axis.name).spec.form(modality)
    status, _ = form.status(axis.readings, axis.controls, rule)
    return replace(axis, status=status)
