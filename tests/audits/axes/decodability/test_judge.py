"""Decodability and concept judged from scores made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from audits.axes.base import JudgementContext
from audits.axes.concept import axis as concept
from audits.axes.decodability import axis as decodability
from audits.axes.decodability.axis import REFITTED, UNCHANGED
from audits.axes.decodability.text_scores import NullScores, TextScores
from audits.core.config import make_config
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from evidence.results import AxisResult, ControlId
from evidence.typed_json import from_json, to_json

SITES = ("embed", "resid.0", "resid.1")
CONTEXT = JudgementContext(make_config({"seed": 0}), "text", Damage({}, ()), notes=("planted",))
N_ENTITIES = 200
CHANCE = 0.2


def table(share: float, at_embedding: float = CHANCE) -> ScoreTable:
    """One item an entity: a share of them is read at the blocks."""
    shares = (at_embedding, share, share)
    hits = [np.arange(N_ENTITIES) < each * N_ENTITIES for each in shares]
    names = tuple(f"entity {number}" for number in range(N_ENTITIES))
    return ScoreTable(names, np.stack(hits, axis=1).astype(np.float64))


def tables(forget: float, retain: float = 0.9, never_taught: float = CHANCE, **other):
    shares = {Part.FORGET: forget, Part.NEVER_TAUGHT: never_taught, Part.RETAIN: retain}
    return {part: table(share, **other) for part, share in shares.items()}


def text_scores(by_metric, **changes) -> TextScores:
    null = NullScores(
        np.array([False, True, True]), 0.5, np.zeros(2), np.full(2, CHANCE), np.full(3, CHANCE)
    )
    scores = RoleScores(SITES, by_metric)
    found = TextScores(scores, ("shared",), ("capital",), {"penalty": 0.3}, null, ("a note",))
    return replace(found, **changes)


def scores_of(refitted, unchanged, planted=0.9, reference=None, **changes) -> TextScores:
    """The forget part read by both probes in the candidate."""
    by_metric = {}
    for metric, share in ((REFITTED.id, refitted), (UNCHANGED.id, unchanged)):
        by_metric[metric] = {Role.ORIGINAL: tables(0.9), Role.CANDIDATE: tables(share)}
        if reference is not None:
            by_metric[metric][Role.reference(1)] = {Part.FORGET: table(reference)}
    by_metric[REFITTED.id][Role.PLANTED] = tables(planted)
    return text_scores(by_metric, **changes)


def judged(scores: TextScores) -> AxisResult:
    return decodability.judge(decodability.Measurement(scores), CONTEXT)


def failed(axis: AxisResult) -> list[ControlId]:
    return [control.id for control in axis.controls if not control.passed]


@pytest.mark.parametrize("reference", [None, CHANCE])
@pytest.mark.parametrize(
    ("refitted", "unchanged", "status"),
    [
        (0.9, 0.9, "retained"),
        (0.9, CHANCE, "retained"),
        (CHANCE, 0.9, "retained"),
        (CHANCE, CHANCE, "absent"),
        # A residual of 0.14, within the margin, and one of 0.29, beyond the variance of seeds.
        (0.3, 0.3, "absent"),
        (0.4, 0.4, "retained"),
    ],
)
def test_what_is_read_is_retained_and_what_is_not_is_absent(refitted, unchanged, status, reference):
    axis = judged(scores_of(refitted, unchanged, reference=reference))
    assert axis.status == status
    assert failed(axis) == []
    kinds = ["reference", "never_taught"] if reference is not None else ["never_taught"]
    expected = [
        (metric, kind, kind == kinds[0]) for kind in kinds for metric in (REFITTED.id, UNCHANGED.id)
    ]
    found = [(reading.metric, reading.floor_kind, reading.primary) for reading in axis.readings]
    assert found == expected
    assert axis.readings[0].statistic == pytest.approx(refitted)
    assert axis.readings[1].statistic == pytest.approx(unchanged)
    assert axis.readings[0].ceiling == pytest.approx(0.9)
    # The embedding does not count.
    assert [column.used for column in axis.readings[0].columns] == [False, True, True]
    assert axis.notes[-2:] == ("a note", "planted")


def test_the_controls_are_those_of_the_scores():
    scores = scores_of(0.9, 0.9)
    axis = judged(scores)
    values = {control.id: control.value for control in axis.controls}
    assert list(values) == [
        ControlId.POWER,
        ControlId.NEVER_TAUGHT,
        ControlId.SHUFFLED,
        ControlId.PLANTED,
        ControlId.EMBEDDING,
        ControlId.RETAIN,
    ]
    assert values[ControlId.RETAIN] == pytest.approx(1)
    assert values[ControlId.SHUFFLED] == pytest.approx(0)
    null = scores.null
    assert null is not None
    for change, control in (
        # 0.35 of the 0.7 between chance and the original.
        ({"excess": np.full(2, 0.35), "p_value": 0.001}, ControlId.NEVER_TAUGHT),
        ({"shuffled": np.array([0.2, 0.2, 0.6])}, ControlId.SHUFFLED),
    ):
        axis = judged(replace(scores, null=replace(null, **change)))
        assert failed(axis) == [control] and axis.status == "control_failed"
    # A difference that permuted answers give as well is none.
    chance = replace(null, excess=np.full(2, 0.35), p_value=0.5)
    assert failed(judged(replace(scores, null=chance))) == []


def test_a_suppression_that_is_not_seen_silences_the_axis():
    axis = judged(scores_of(0.9, 0.9, planted=CHANCE))
    assert failed(axis) == [ControlId.PLANTED] and axis.status == "control_failed"
    scores = scores_of(0.9, 0.9)
    del scores.scores.tables[REFITTED.id][Role.PLANTED]
    assert ControlId.PLANTED not in {control.id for control in judged(scores).controls}


def test_an_embedding_that_tells_them_apart_silences_the_axis():
    scores = scores_of(0.9, 0.9)
    scores.scores.tables[REFITTED.id][Role.CANDIDATE][Part.FORGET] = table(0.9, at_embedding=0.6)
    axis = judged(scores)
    assert failed(axis) == [ControlId.EMBEDDING] and axis.status == "control_failed"


def test_where_the_original_is_not_read_nothing_is():
    scores = scores_of(0.9, 0.9, null=None, forms=("shared", "unique"))
    axis = judged(scores)
    assert axis.status == "no_power" and not axis.readings
    assert failed(axis) == [ControlId.POWER]
    assert axis.notes == (decodability.WORDING.unread, "a note", "planted")
    assert axis.statistic_name == "concordance (chance 0.5)"


def concept_of(forget: float, retain: float) -> concept.Measurement:
    original, candidate = tables(0.9), tables(forget, retain)
    by_role = {Role.ORIGINAL: original, Role.CANDIDATE: candidate, Role.PLANTED: original}
    read = text_scores({concept.VECTORS.id: by_role}, chosen={"method": "lda"})
    return concept.Measurement(read, np.ones(len(SITES)), None, None)


@pytest.mark.parametrize(
    ("forget", "retain", "status"),
    [(0.9, 0.9, "retained"), (CHANCE, 0.9, "absent"), (CHANCE, CHANCE, "no_power")],
)
def test_concepts_are_absent_only_where_retain_answers_are_read(forget, retain, status):
    axis = concept.judge(concept_of(forget, retain), CONTEXT)
    assert axis.status == status
    assert axis.details["method"] == "lda" and axis.details["traces"] == {}
    if retain < 0.9:
        assert failed(axis) == [ControlId.RETAIN]
        assert axis.notes[0] == concept.WORDING.other_basis
    # Decodability refits its probe, so there the same failure is a fault.
    scores = scores_of(forget, forget)
    scores.scores.tables[REFITTED.id][Role.CANDIDATE][Part.RETAIN] = table(retain)
    assert judged(scores).status == ("control_failed" if status == "no_power" else status)


@pytest.mark.parametrize(
    ("axis", "measured"),
    [
        (decodability.AXIS, decodability.Measurement(scores_of(0.9, 0.5, reference=0.3))),
        (decodability.AXIS, decodability.Measurement(scores_of(0.9, 0.5, null=None))),
        (concept.AXIS, concept_of(0.5, 0.9)),
    ],
)
def test_a_saved_measurement_is_judged_as_a_fresh_one(axis, measured):
    again = from_json(axis.stored, to_json(measured))
    assert axis.judge(again, CONTEXT).to_json() == axis.judge(measured, CONTEXT).to_json()
    assert axis.judge(measured, CONTEXT) == axis.judge(measured, CONTEXT)
