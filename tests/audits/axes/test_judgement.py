"""A candidate's figures against its floors: which, in which order, and where."""

import numpy as np
import pytest

from audits.axes.judgement import MIN_SPAN, MetricComparison, compare_to_floors, informative_columns
from audits.core.config import AuditConfig, Rule
from evidence.hypothesis_tests import MaxTest
from evidence.intervals import average_by_entity

NAMES = [f"e{place}" for place in range(12)]


def rate(share, names=NAMES):
    """Entities of which ``share`` are told, at two sites."""
    hits = np.arange(len(names)) < share * len(names)
    return average_by_entity(np.stack([hits, hits], 1).astype(float), list(names))


def wanted(name, *references):
    return MetricComparison(
        name=name,
        stream=name,
        candidate=rate(0.75),
        ceiling=rate(1.0),
        references=references,
        never_taught=rate(0.25, [f"n{place}" for place in range(36)]),
    )


def test_with_references_they_come_first_and_never_taught_items_beside_them():
    both = [wanted("read", rate(0.5)), wanted("kept", rate(0.5))]
    found = compare_to_floors("axis", both, ["a", "b"], AuditConfig())
    assert [(each.name, each.floor_kind, each.floor) for each in found] == [
        ("read", "reference", 0.5),
        ("kept", "reference", 0.5),
        ("read, against never-taught items", "never_taught", 0.25),
        ("kept, against never-taught items", "never_taught", 0.25),
    ]
    for each in found:
        expected = (0.75 - each.floor) / (1 - each.floor)
        assert each.residual == pytest.approx(expected)


def test_without_references_never_taught_items_are_the_floor():
    one, two = wanted("read"), wanted("kept")
    found = compare_to_floors("axis", [one, two], ["a", "b"], AuditConfig())
    assert [(each.name, each.floor_kind) for each in found] == [
        ("read", "never_taught"),
        ("kept", "never_taught"),
    ]


def test_several_references_are_one_floor_their_mean():
    one = wanted("read", rate(0.25), rate(0.75))
    (first, second) = compare_to_floors("axis", [one], ["a", "b"], AuditConfig())
    assert (first.floor, second.floor) == (0.5, 0.25)


def test_columns_left_out_are_shown_and_not_used():
    use = np.array([False, True])
    (found,) = compare_to_floors("axis", [wanted("read")], ["a", "b"], AuditConfig(), use)
    assert [each.used for each in found.columns] == [False, True]
    assert found.where == "b"


def test_only_sites_where_the_original_is_read_can_say_anything():
    rule = Rule()
    difference = np.array([0.8, 0.41, 0.39, 0.7, MIN_SPAN])
    p_column = np.array([0.001, 0.001, 0.001, 0.5, 0.001])
    power = MaxTest(difference, 0.001, p_column, 1.0, 0.001, 0.2)
    assert informative_columns(power, rule).tolist() == [True, True, False, False, False]
    # Weak everywhere: nothing is said, however it compares with the strongest.
    weak = MaxTest(difference * 0.1, 0.001, p_column * 0, 1.0, 0.001, 0.0)
    assert not informative_columns(weak, rule).any()
