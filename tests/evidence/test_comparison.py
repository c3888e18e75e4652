"""Readings: where a candidate lies between floor and original, and when it may vote."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence.comparison import compare, explain_no_power
from evidence.errors import InputError
from evidence.hypothesis_tests import holm_adjusted, is_equivalent
from evidence.intervals import EntityValues
from evidence.results import AxisResult, Control, ControlId, OnFailure


def group(rate, n=40, columns=2, seed=0):
    rng = np.random.default_rng(seed)
    values = (rng.random((n, columns)) < rate).astype(float)
    return EntityValues(values, n, tuple(f"e{i}" for i in range(n)))


def read(candidate, floor, ceiling, kind="never_taught", **extra):
    return compare(
        "probe",
        candidate,
        floor,
        ceiling,
        columns=["resid.0", "resid.1"],
        floor_kind=kind,
        rng=np.random.default_rng(0),
        **extra,
    )


@pytest.mark.parametrize("kind", ["never_taught", "reference"])
def test_the_original_itself_has_residual_one(kind):
    high = group(0.95)
    reading = read(high, group(0.05, seed=1), high, kind)
    assert reading.residual == pytest.approx(1.0)
    assert reading.p_value < 0.01
    assert not is_equivalent(reading.residual_interval, 0.2)


@pytest.mark.parametrize("kind", ["never_taught", "reference"])
def test_a_model_at_the_floor_is_equivalent_to_it(kind):
    reading = read(group(0.0, seed=2), group(0.0, seed=3), group(1.0), kind)
    assert reading.residual == pytest.approx(0.0)
    assert is_equivalent(reading.residual_interval, 0.2)
    assert reading.p_value == 1.0


def test_few_entities_are_never_equivalent_even_with_nothing_found():
    reading = read(group(0.0, n=5), group(0.0, n=5), group(1.0, n=5))
    assert not is_equivalent(reading.residual_interval, 0.2)


def test_one_bad_column_blocks_equivalence():
    candidate = group(0.0)
    candidate.values[:20, 1] = 1.0
    reading = read(candidate, group(0.0), group(1.0))
    assert reading.where == "resid.1"
    assert reading.residual_interval[1] > 0.3


def test_unused_columns_do_not_count_but_are_shown():
    candidate = group(0.0)
    candidate.values[:, 1] = 1.0
    reading = read(candidate, group(0.0), group(1.0), mask=[True, False])
    assert reading.p_value == 1.0
    assert [column.used for column in reading.columns] == [True, False]
    assert reading.columns[1].statistic == 1.0


def test_no_used_column_is_refused():
    with pytest.raises(InputError):
        read(group(0.0), group(0.0), group(1.0), mask=[False, False])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_is_that_of_statsmodels(values):
    from statsmodels.stats.multitest import multipletests

    named = {str(place): value for place, value in enumerate(values)}
    theirs = multipletests(values, method="holm")[1]
    assert theirs is not None
    assert list(holm_adjusted(named).values()) == pytest.approx(theirs.tolist())


def test_holm_matches_hand_calculation():
    assert holm_adjusted({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )
    assert holm_adjusted({}) == {}


def test_the_number_of_entities_named_really_settles_it():
    def rate(n):
        values = (np.arange(n) < 0.1 * n).astype(float)[:, None].repeat(2, 1)
        return EntityValues(values, n, tuple(map(str, range(n))))

    small = read(rate(20), rate(20), group(1.0, n=20))
    assert not is_equivalent(small.residual_interval, 0.15)
    factor = float(explain_no_power([small], 0.15).split("About ")[1].split(" times")[0])
    n = int(np.ceil(20 * factor * 1.2 / 10) * 10)
    assert is_equivalent(read(rate(n), rate(n), group(1.0, n=n)).residual_interval, 0.15)
    assert "ten times" in explain_no_power([small], 0.01)


def axis_of(reading, **changed) -> AxisResult:
    given: dict = {
        "name": "decodability",
        "question": "Is it there?",
        "status": "retained",
        "statistic_name": "accuracy",
        "readings": (reading,),
        "controls": (
            Control(ControlId.POWER, "original", 0.9, "found", True),
            Control(
                ControlId.PLANTED, "seen", 0.6, "p < 0.05", False, OnFailure.NO_ABSENCE, "p_value"
            ),
        ),
        "n_entities": 40,
        "details": {"form": ["shared"], "deep": {"figures": [0.1, None, True]}},
        "notes": ("a note",),
    }
    return AxisResult(**given | changed)


def test_axis_results_survive_their_json_form():
    axis = axis_of(read(group(0.5), group(0.1, seed=1), group(0.9)))
    back = AxisResult.from_json(json.loads(json.dumps(axis.to_json())))
    assert back == axis
    assert "decodability: retained" in str(axis)
    assert "\n" not in str(axis)
    assert len(axis.to_frame()) == 2


def test_what_a_run_cost_and_what_a_failure_is_called_are_not_stored():
    failing = Control(ControlId.ATTACK, "learns", 0.1, "0.9", False, failure="It learned nothing.")
    axis = axis_of(read(group(0.5), group(0.1), group(0.9)), seconds=3.5, peak_memory_bytes=9)
    saved = replace(axis, controls=(failing,)).to_json()
    assert not {"seconds", "peak_memory_bytes"} & set(saved)
    back = AxisResult.from_json(saved)
    assert (back.seconds, back.peak_memory_bytes) == (0.0, 0)
    assert back.controls == (replace(failing, failure=""),)
    # An older or altered file is refused in one line.
    for wrong in (
        {**saved, "status": "gone"},
        {**saved, "readings": [{}]},
        {**saved, "controls": [{**saved["controls"][0], "id": "luck"}]},  # pyright: ignore
        {**saved, "controls": [{**saved["controls"][0], "on_failure": "?"}]},  # pyright: ignore
        {key: value for key, value in saved.items() if key != "name"},
    ):
        with pytest.raises(InputError):
            AxisResult.from_json(wrong)


def test_a_failure_without_effect_is_not_required():
    control = Control(ControlId.POWER, "shown", 0.0, "found", False)
    assert [replace(control, on_failure=each).required for each in OnFailure] == [
        each is not OnFailure.INFORM for each in OnFailure
    ]


def test_a_metric_is_found_by_its_id_against_the_primary_floor():
    first = read(group(0.5), group(0.1, seed=1), group(0.9), metric="refitted_probe")
    assert first.metric == "refitted_probe" and first.primary
    second = replace(first, primary=False, floor=0.7)
    axis = axis_of(second, readings=(second, first))
    assert axis.metric("refitted_probe") is first
    assert axis.metric("another") is None
    assert axis_of(second).metric("refitted_probe") is None
    assert axis.main_reading is second


def test_the_interval_at_the_peak_is_that_of_its_column():
    reading = read(group(0.6, seed=4), group(0.1, seed=1), group(0.9))
    peak = next(column for column in reading.columns if column.name == reading.where)
    span = reading.ceiling - reading.floor
    assert reading.residual_interval_at_peak == pytest.approx([end / span for end in peak.tost])
    low, high = reading.residual_interval_at_peak
    assert reading.residual_interval[0] <= low < reading.residual < high
    assert high <= reading.residual_interval[1]


def test_an_unknown_status_is_refused():
    with pytest.raises(InputError, match="retained, absent"):
        AxisResult("x", "?", "gone")  # pyright: ignore[reportArgumentType]
