"""Deciding again: the same readings under another rule, or without an axis."""

import copy
import json
import shutil
from typing import Any

import pytest

import exhume
from audits.core.config import Rule
from audits.validation.error_rates import STATES, ablation
from audits.verdict.reevaluate import reevaluate, rejudge
from evidence.errors import InputError
from tests.audits.conftest import run
from tests.helpers.audit_documents import (
    axis,
    causal_depth,
    column,
    control,
    decodability,
    document,
    front_transplant,
    reading,
    relearning,
)
from tests.repository.golden import compare

NOTHING = {"p_value": 0.9, "residual": 0.0, "residual_interval": [-0.1, 0.1]}


def silent(made):
    """The axis with nothing found in any of its readings."""
    columns = [column("anywhere", 0.1)]
    readings = [reading(r["name"], columns) | NOTHING for r in made["readings"]]
    planted = [control("the planted suppression is found")]
    return made | {"readings": readings, "status": "absent", "controls": planted}


def found(made):
    first = made["readings"][0] | {"p_value": 0.0005}
    return made | {"readings": [first, *made["readings"][1:]], "status": "retained"}


def of(depth) -> dict[str, Any]:
    exact_match = reading("exact match", [column("output", 0.1)]) | NOTHING
    contrast = reading("entity-answer contrast", [column("output", 0.1)]) | NOTHING
    plain = axis("behaviour", exact_match, contrast, status="absent", controls=[control("it")])
    inner = [silent(decodability()), depth, silent(relearning()), silent(front_transplant())]
    axes = [plain, *inner]
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


def named(name, **other):
    """A silent axis of images."""
    found = reading("predicted as the class", [column("anywhere", 0.1)]) | NOTHING
    planted = control("the planted suppression is found")
    return axis(name, found | {"metric": "named"}, status="absent", controls=[planted], **other)


def of_images(*, depth=None, relearned=None) -> dict[str, Any]:
    """The document of an image audit that found nothing."""
    whole = of(depth or named("causal_depth"))
    output, decodability, depth, *_ = whole["axes"]
    output = named("behaviour") | {"controls": output["controls"]}
    relearned = relearned or named("relearning")
    whole["axes"] = [output, decodability, depth, relearned, named("front_transplant")]
    return whole | {"modality": "images"}


def test_axes_of_images_are_judged_again_by_their_own_rules():
    assert reevaluate(of_images()).verdict_class == "deleted"
    # One reading decides relearning and causal depth of images: a second is only shown.
    for name, place in (("causal_depth", 2), ("relearning", 3)):
        whole = of_images()
        loud = reading("another", [column("anywhere", 0.9)]) | {"metric": "named"}
        loud |= {"p_value": 0.0005, "primary": False}
        axis_of = whole["axes"][place]
        whole["axes"][place] = axis_of | {"readings": [*axis_of["readings"], loud]}
        assert axis_of["name"] == name
        assert reevaluate(whole).verdict_class == "deleted"
    # The stored status does not matter, but the readings do.
    stale = of_images(relearned=named("relearning") | {"status": "no_power"})
    assert reevaluate(stale).verdict_class == "deleted"
    assert reevaluate(of_images(), Rule(margin=0.05)).verdict_class == "inconclusive"
    recovered = named("causal_depth")
    (silent_reading,) = recovered["readings"]
    (place,) = silent_reading["columns"]
    found = {"statistic": 0.9, "difference": 0.8, "tost": [0.7, 0.9], "p_value": 0.0005}
    loud = silent_reading | {"p_value": 0.0005, "residual": 0.9, "residual_interval": [0.8, 1.0]}
    recovered["readings"] = [loud | {"columns": [place | found]}]
    assert reevaluate(of_images(depth=recovered)).verdict_class == "suppressed"
    assert reevaluate(of_images(depth=recovered), Rule(recovery=0.0001)).verdict_class != (
        "suppressed"
    )


def test_what_a_failed_control_means_is_stored_with_it():
    whole = copy.deepcopy(ABSENT)
    (planted,) = whole["axes"][3]["controls"]
    planted["passed"] = False
    assert reevaluate(whole).verdict_class == "inconclusive"
    loud = copy.deepcopy(RECOVERED)
    depth = loud["axes"][2]
    assert [each["on_failure"] for each in depth["controls"]] == ["no_absence"]
    depth["controls"][0]["passed"] = False
    # A recovery stands where the planted suppression was not found ...
    assert reevaluate(loud).verdict_class == "suppressed"
    depth["controls"][0]["on_failure"] = "silence"
    # ... unless the control silences its axis.
    assert reevaluate(loud).verdict_class == "inconclusive"


@pytest.fixture(scope="module")
def finished(world, planted, tmp_path_factory):
    axes = ("behaviour", "decodability", "causal_depth", "relearning")
    return run(
        world, planted("last_block_relabel"), tmp_path_factory.mktemp("audit") / "out", axes=axes
    )


def as_json(results):
    return {name: each.to_json() for name, each in results.items()}


def test_a_finished_audit_is_judged_again_from_its_measurements(finished):
    document = finished.document
    assert finished.verdict == "suppressed"
    again = rejudge(finished.path, document)
    assert as_json(again) == as_json(finished.axes)
    verdict = json.loads(json.dumps(reevaluate(document).to_dict()))
    assert {key: document["verdict"][key] for key in verdict} == verdict
    # Judging reads stages alone: no model is needed, and nothing is written.
    assert exhume.load(finished.path).document == document


def test_another_rule_makes_controls_and_statuses_anew(finished):
    strict = Rule(alpha=1e-6, recovery=1e-6)
    again = rejudge(finished.path, finished.document, strict)
    depth, before = again["causal_depth"], finished.axes["causal_depth"]
    assert before.status == "retained" and depth.status != "retained"
    powers = [each for each in again["decodability"].controls if each.id == "power"]
    assert powers and not any(each.passed for each in powers)
    assert all("1e-06" in each.expected for each in powers)
    assert not again["decodability"].readings and again["decodability"].status == "no_power"
    # The readings at the output do not depend on the level.
    assert again["behaviour"].readings == finished.axes["behaviour"].readings
    lenient = rejudge(finished.path, finished.document, Rule(margin=0.99))
    assert lenient["relearning"].status in ("retained", "absent")


def test_without_its_measurements_an_audit_is_not_judged_again(finished, tmp_path):
    with pytest.raises(InputError, match="does not hold the measurement behaviour-measured"):
        rejudge(tmp_path, finished.document)
    copied = shutil.copytree(finished.path, tmp_path / "copied")
    (copied / "work" / "stages" / "relearning-measured.json").write_text("{}")
    with pytest.raises(InputError, match="does not hold the measurement relearning-measured"):
        rejudge(copied, finished.document)


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
    assert set(rows) == {"", *(each["name"] for each in RECOVERED["axes"])}
    assert rows[""]["suppressed"]["suppressed"] == 1
    assert rows["causal_depth"]["suppressed"]["deleted"] == 1
    assert all(sum(row[s][v] for s in STATES for v in row[s]) == 2 for row in rows.values())


def test_the_ablation_names_the_axes_of_older_audits_as_they_are_called_now():
    kept = compare.load_audits(compare.AUDITS_1_1)["bios-last_block_relabel-never_taught"]
    assert "persistence" in [each["name"] for each in kept["axes"]]
    rows = {
        row["without"]: row["suppressed"]
        for row in ablation([{"state": "suppressed", "audit": kept}])
    }
    assert "quantization" in rows and "persistence" not in rows
    assert rows[""][kept["verdict"]["class"]] == 1
