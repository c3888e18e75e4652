"""Readings: where a candidate lies between floor and original, and when it may vote."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence.comparison import compare, explain_no_power
from evidence.errors import InputError
from evidence.hypothesis_tests import holm_adjusted, is_equivalent
from evidence.intervals import EntityValues
from evidence.results import AxisResult, Control, ControlId


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


def test_axis_results_survive_their_json_form():
    reading = read(group(0.5), group(0.1, seed=1), group(0.9))
    axis = AxisResult(
        "decodability",
        "Is it there?",
        "retained",
        "accuracy",
        readings=(reading,),
        controls=(Control(ControlId.POWER, "original", 0.9, "found", True),),
        n_entities=40,
        details={"form": ["shared"]},
        notes=("a note",),
    )
    import json

    back = AxisResult.from_json(json.loads(json.dumps(axis.to_json())))
    assert back == axis
    assert "decodability: retained" in str(axis)
    assert "\n" not in str(axis)
    assert len(axis.to_frame()) == 2


def test_an_unknown_status_is_refused():
    with pytest.raises(InputError, match="retained, absent"):
        AxisResult("x", "?", "gone")  # pyright: ignore[reportArgumentType]
