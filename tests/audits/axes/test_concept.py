"""The concept axis on models whose state is known by construction."""

from dataclasses import replace

import numpy as np
import pytest

from audits.axes.base import JudgementContext, Unmeasured
from audits.axes.concept import axis as concept
from audits.axes.concept.axis import (
    AXIS,
    NAME,
    Measurement,
    answer_concepts,
    fit_concepts,
    probe_of,
)
from audits.axes.decodability.text_probes import ProbingData, read_states
from audits.core.context import AuditContext, AuditedModel
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.modalities.base import Sources
from capture.activations.store import ActivationStore
from capture.checkpoints.open import open_checkpoint
from evidence.results import AxisResult
from evidence.typed_json import from_json, to_json
from tests.audits.context import open_context


@pytest.fixture(scope="module")
def opened(world, tmp_path_factory) -> AuditContext:
    """An audit of the twin, with a suppression planted."""
    sources = Sources(world.original, world.twin, world.forget, world.retain)
    return open_context(sources, tmp_path_factory.mktemp("concept") / "out", axes=(NAME,))


def with_candidate(ctx: AuditContext, candidate: AuditedModel) -> AuditContext:
    return ctx.with_model(Role.CANDIDATE, replace(candidate, role=Role.CANDIDATE))


def measured(ctx: AuditContext) -> Measurement:
    found = AXIS.measure["text"](ctx)
    assert isinstance(found, Measurement)
    return found


def judged(found: Measurement, ctx: AuditContext) -> AxisResult:
    damage = Damage({"retain accuracy": 1.0}, ())
    return AXIS.judge(found, JudgementContext(ctx.config, "text", damage, notes=("a note",)))


def test_vectors_read_and_write_where_the_knowledge_is_only_suppressed(opened, monkeypatch):
    # Both methods read all retain answers of so small a world; discriminants are not what
    # the model itself writes, so that to take one out changes nothing.
    monkeypatch.setattr(concept, "METHODS", ("mean",))
    # A last-block suppression: every state before that block is the original's.
    ctx = with_candidate(opened, opened.models[Role.PLANTED])
    saved = measured(ctx)
    found = judged(saved, ctx)
    assert found.status == "retained"
    reading = found.main_reading
    assert reading is not None and reading.statistic > reading.floor + 0.4
    assert all(control.passed for control in found.controls)
    write = found.details["write"]
    assert write["original"]["check"] > 0.8 > write["random"] + 0.4
    # Taken out where it writes, the own vector silences an answer; noise does not.
    taken = write["ablated"]
    assert taken["own vector"] < 0.5 < 0.8 < taken["random direction"]
    traces = found.details["traces"]["unlearned"]["forgotten answers"]
    assert traces["cosine"] > 0.8 and found.notes[-1] == "a note"
    # A saved measurement is judged as a fresh one, however often.
    again = from_json(AXIS.stored, to_json(saved))
    assert isinstance(again, Measurement)
    assert judged(again, ctx).to_json() == found.to_json() == judged(saved, ctx).to_json()


def test_vectors_read_nothing_in_a_model_that_was_never_taught(opened):
    saved = measured(opened)
    found = judged(saved, opened)
    assert found.status != "retained"
    reading = found.main_reading
    assert reading is not None and reading.p_value > 0.05
    assert reading.statistic < 0.5 * reading.ceiling
    assert to_json(measured(opened)) == to_json(saved)


def test_without_tasks_the_axis_has_no_power_and_still_shows_traces(opened, world):
    original = AuditedModel.of(Role.CANDIDATE, open_checkpoint(world.original))
    ctx = with_candidate(opened, original)
    few = ctx.sets.never_taught.of_entities(ctx.sets.never_taught.entities[:3])
    ctx = replace(ctx, sets=replace(ctx.sets, never_taught=few))
    saved = measured(ctx)
    found = judged(saved, ctx)
    assert found.status == "no_power" and not found.votes and not found.readings
    assert "is not probed: too few never_taught entities" in found.notes[0]
    traces = found.details["traces"]["unlearned"]["forgotten answers"]
    assert traces["cosine"] == pytest.approx(1) and traces["jaccard"] == 1
    again = from_json(AXIS.stored, to_json(saved))
    assert isinstance(again, Measurement)
    assert judged(again, ctx).to_json() == found.to_json()


def test_states_that_are_not_finite_are_an_error(opened, monkeypatch):
    ctx = with_candidate(opened, opened.models[Role.PLANTED])
    activations = ActivationStore.activations

    def broken(store, audited, *rest, **more):
        found = activations(store, audited, *rest, **more)
        if audited.role != Role.CANDIDATE:
            return found
        values = np.asarray(found.values) * np.nan
        return replace(found, arrays=dict(zip(found.sites, values, strict=True)))

    monkeypatch.setattr(ActivationStore, "activations", broken)
    found = AXIS.measure["text"](ctx)
    assert found == Unmeasured(("hidden states of unlearned are not finite",), "error")


def test_unique_answers_are_read_as_the_truth_of_statements(opened):
    few = opened.sets.retain.of_entities(opened.sets.retain.entities[:16])
    probing = read_states(replace(opened, sets=replace(opened.sets, retain=few)))
    assert isinstance(probing, ProbingData)
    unique = [number for number, task in enumerate(probing.tasks) if task.form == "unique"]
    assert unique
    task = probing.tasks[unique[0]]
    assert answer_concepts(task, task.parts["fit"].labels).names == ("true",)
    vectors = fit_concepts(probing, Role.ORIGINAL, "mean")[unique[0]]
    states = probing.states[Role.ORIGINAL].parts[unique[0], "fit"]
    scores = probe_of(vectors).scores(states)
    np.testing.assert_allclose(scores[..., 0], vectors.scores(states)[:, 0], atol=1e-8)
