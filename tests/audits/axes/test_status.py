"""One rule for all axes: found, at the floor, or neither; and what silences an axis."""

import pytest

from audits.axes.judgement import status_from_readings, status_with_controls
from audits.core.config import Rule
from evidence.results import Control, ControlId, OnFailure
from tests.audits.verdict.test_rule import reading

RULE = Rule()


def control(passed, on_failure=OnFailure.SILENCE, **extra):
    return Control(ControlId.POWER, "it holds", 1.0, "1", passed, on_failure, **extra)


PASSED, FAILED = control(True), control(False)
SHOWN = control(False, OnFailure.INFORM)


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ([reading("a", 0.8, 0.0005)], "retained"),
        # Over two readings Holm asks twice as much of the first.
        ([reading("a", 0.8, 0.008)], "retained"),
        ([reading("a", 0.8, 0.008), reading("b", 0.0, 0.9)], "no_power"),
        # A test that finds what does not matter.
        ([reading("a", 0.15, 0.0005)], "absent"),
        ([reading("a", 0.0, 0.9), reading("b", 0.05, 0.4)], "absent"),
        # One reading that may be large is enough to leave it open.
        ([reading("a", 0.0, 0.9), reading("b", 0.25, 0.4)], "no_power"),
        # Far below the floor is not at the floor.
        ([reading("a", -0.5, 1.0)], "no_power"),
    ],
)
def test_status(readings, expected):
    assert status_from_readings(readings, RULE)[0] == expected


def test_what_was_found_stands_though_the_plant_was_not_seen():
    found, silent = [reading("a", 0.8, 0.0005)], [reading("a", 0.0, 0.9)]
    assert status_from_readings(found, RULE, failed=["the plant"])[0] == "retained"
    assert status_from_readings(silent, RULE, failed=["the plant"]) == (
        "no_power",
        ["Control failed: the plant."],
    )


def test_an_axis_of_its_own_level_is_held_to_it():
    weak = [reading("a", 0.8, 0.03)]
    assert status_from_readings(weak, RULE)[0] == "no_power"
    assert status_from_readings(weak, RULE, alpha=0.05)[0] == "retained"


def test_a_failed_control_silences_and_one_that_is_only_shown_does_not():
    found = [reading("a", 0.8, 0.0005)]
    assert status_with_controls(found, [PASSED, SHOWN], RULE)[0] == "retained"
    assert status_with_controls(found, [PASSED, FAILED], RULE)[0] == "control_failed"
    # Nothing was read, so nothing can have failed.
    assert status_with_controls([], [FAILED], RULE)[0] == "no_power"


def test_a_control_says_itself_what_its_failure_means():
    found, silent = [reading("a", 0.8, 0.0005)], [reading("a", 0.0, 0.9)]
    absence = control(False, OnFailure.NO_ABSENCE)
    assert status_with_controls(found, [absence], RULE)[0] == "retained"
    assert status_with_controls(silent, [absence], RULE)[0] == "no_power"
    power = control(False, OnFailure.NO_POWER, failure="It was not learned.")
    assert status_with_controls(found, [power], RULE) == ("no_power", ["It was not learned."])
    # The strictest effect counts, and every failed control is named.
    status, notes = status_with_controls(found, [absence, FAILED, SHOWN], RULE)
    assert status == "control_failed" and len(notes) == 2
