"""Reevaluate a finished audit under another rule, or without some of its axes.

Measurements do not depend on the rule; statuses and the verdict do. So thresholds can be tuned,
and axes ablated, on audits that were run once.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from audits.axes import behaviour, persistence, relearning
from audits.axes.causal_depth import axis as causal_depth
from audits.axes.decodability import axis as decodability
from audits.axes.judgement import status_with_controls
from audits.axes.membership import axis as membership
from audits.core.config import Rule
from audits.core.preflight import Damage
from audits.modalities.vocabulary import is_image_audit, vocabulary_for
from audits.verdict.rule import Verdict, decide
from evidence.results import AxisResult

STATUS_OF = {
    behaviour.NAME: behaviour.status_of,
    decodability.NAME: status_with_controls,
    causal_depth.NAME: status_with_controls,
    persistence.NAME: status_with_controls,
    relearning.NAME: relearning.status_of,
    membership.NAME: membership.status_of,
}


def reevaluate(
    document: dict[str, Any], rule: Rule | None = None, without: Collection[str] = ()
) -> Verdict:
    """The verdict on the readings of ``document``.

    Controls keep the level at which they were tested, and axes of image audits their status.

    Args:
        document: An ``audit.json``.
        rule: Thresholds; those of the audit by default.
        without: Axes to leave out, also from those required for ``deleted``.
    """
    if rule is None:
        rule = Rule.model_validate(document["config"]["rule"])
    required = [name for name in rule.required_for_deleted if name not in without]
    rule = rule.model_copy(update={"required_for_deleted": tuple(required)})
    results = [
        AxisResult.from_dict(saved) for saved in document["axes"] if saved["name"] not in without
    ]
    images = is_image_audit(document)
    if not images:
        results = [_judged(axis, rule) for axis in results]
    axes = {axis.name: axis for axis in results}
    preflight = document["preflight"]
    utility = preflight["utility"]
    return decide(
        axes,
        Damage(utility["shares"], tuple(utility["damage"])),
        preflight["identical_weights"],
        document["verdict"]["floor"],
        rule,
        vocabulary_for(images),
    )


def _judged(axis: AxisResult, rule: Rule) -> AxisResult:
    if not axis.readings or axis.name not in STATUS_OF:
        return axis
    status, _ = STATUS_OF[axis.name](axis.readings, axis.controls, rule)
    return replace(axis, status=status)
