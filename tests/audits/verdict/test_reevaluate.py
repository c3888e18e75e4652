"""Deciding again: the same readings under another rule, or without an axis."""

from audits.axes import behaviour as output
from audits.core.config import Rule
from audits.validation.error_rates import STATES, ablation
from audits.verdict.reevaluate import reevaluate
from tests.helpers.audit_documents import (
    axis,
    causal_depth,
    column,
    control,
    decodability,
    document,
    reading,
    relearning,
)

NOTHING = {"p_value": 0.9, "residual": 0.0, "residual_interval": [-0.1, 0.1]}


def silent(made):
    """The axis with nothing found in any of its readings."""
    columns = [column("anywhere", 0.1)]
    readings = [reading(r["name"], columns) | NOTHING for r in made["readings"]]
    planted = [control("the planted suppression is seen")]
    return made | {"readings": readings, "status": "absent", "controls": planted}


def found(made):
    first = made["readings"][0] | {"p_value": 0.0005}
    return made | {"readings": [first, *made["readings"][1:]], "status": "retained"}


def of(depth):
    exact_match = reading("said in full", [column("output", 0.1)]) | NOTHING
    contrast = reading(output.CONTRAST, [column("output", 0.1)]) | NOTHING
    plain = axis("behaviour", exact_match, contrast, status="absent", controls=[control("it")])
    axes = [plain, silent(decodability()), depth, silent(relearning())]
    return document(*axes) | {"config": {"rule": Rule().model_dump(mode="json")}}


RECOVERED, ABSENT = of(found(causal_depth())), of(silent(causal_depth()))


def test_one_axis_decides_and_without_it_nothing_is_found():
    assert reevaluate(RECOVERED).verdict_class == "suppressed"
    assert reevaluate(ABSENT).verdict_class == "deleted"
    left = reevaluate(RECOVERED, without=["causal_depth"])
    assert left.verdict_class == "deleted"


def test_another_rule_is_applied_to_status_and_verdict_alike():
    strict = Rule(recovery=0.0001)
    assert reevaluate(RECOVERED, strict).verdict_class == "inconclusive"
    small_margin = Rule(margin=0.05)
    assert reevaluate(ABSENT, small_margin).verdict_class == "inconclusive"


def test_axes_of_images_keep_the_status_that_their_own_rules_gave():
    # As text its readings would be equivalent to the floor; of images only some are
    # asked to be, and their axis has said what they make of it.
    depth = silent(causal_depth()) | {"status": "no_power"}
    assert reevaluate(of(depth)).verdict_class == "deleted"
    relearned = silent(relearning()) | {"status": "no_power"}
    whole = of(silent(causal_depth()))
    whole["axes"] = [*whole["axes"][:3], relearned]
    items = [each | {"format": "images"} for each in whole["manifest"]["items"]]
    assert reevaluate(whole).verdict_class == "deleted"
    whole["manifest"] = whole["manifest"] | {"items": items}
    assert reevaluate(whole).verdict_class == "inconclusive"


def test_deletion_may_be_said_without_an_axis_that_was_left_out():
    left = reevaluate(ABSENT, without=["relearning"])
    assert left.verdict_class == "deleted"


def test_the_ablation_counts_every_state_with_and_without_each_axis():
    cases = [
        {"state": "suppressed", "audit": RECOVERED},
        {"state": "deleted", "audit": ABSENT},
        {"state": None, "audit": ABSENT},
    ]
    rows = {row["without"]: row for row in ablation(cases)}
    assert set(rows) == {"", "behaviour", "decodability", "causal_depth", "relearning"}
    assert rows[""]["suppressed"]["suppressed"] == 1
    assert rows["causal_depth"]["suppressed"]["deleted"] == 1
    assert all(sum(row[s][v] for s in STATES for v in row[s]) == 2 for row in rows.values())
