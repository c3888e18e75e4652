"""The circuit axis on models of known state, and its rule on known numbers."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from attribution.circuits.graph import EdgeGraph
from audits.axes.base import JudgementContext, Unmeasured
from audits.axes.circuit.axis import AXIS, copy_suppression
from audits.axes.circuit.judgement import (
    LAST_BLOCK,
    METRICS,
    OWN_READOUT,
    SPEC,
    TRANSPLANTED,
    CircuitSearch,
    Measurement,
    ModelScores,
    SelectedCircuit,
    SuppressingHead,
    judge,
)
from audits.core.config import make_config
from audits.core.context import AuditContext, AuditedModel, RunOf
from audits.core.item_sets import TextSets
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.core.scores import Part
from audits.output.workspace import StageRunner, Workspace
from capture.checkpoints.open import open_checkpoint
from capture.data.items import Item, ItemSet, read_items
from capture.network.hooks import count_hooks
from evidence.progress import SILENT
from evidence.results import AxisResult, ControlId
from evidence.typed_json import from_json, to_json

CONFIG = make_config({"device": "cpu"})
JUDGING = JudgementContext(CONFIG, "text", Damage({}, ()), notes=("passed on",))


def changed(subject, role, change):
    """A subject whose model is changed after it was loaded."""

    def load(device):
        model = subject.load(device)
        with torch.no_grad():
            change(model)
        return model

    return AuditedModel(role, subject.weights_hash + role, subject.config, load)


@pytest.fixture(scope="module")
def models(world):
    return {
        name: AuditedModel.of(role, open_checkpoint(folder))
        for name, role, folder in (
            ("original", Role.ORIGINAL, world.original),
            ("twin", Role.CANDIDATE, world.twin),
        )
    }


@pytest.fixture(scope="module")
def items(world):
    return read_items(world.forget), read_items(world.never_taught)


def shuffled_head(model):
    """Answers come out as other answers: nothing but the readout is edited."""
    weight = model.lm_head.weight
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))
    weight.copy_(weight[order].clone())


@pytest.fixture(scope="module")
def measure(world, models, tmp_path_factory):
    """Measure a candidate, in a folder of its own unless one is given."""
    tokenizer = open_checkpoint(world.original).tokenizer

    def of(items, unlearned, out=None, **more):
        root = out or tmp_path_factory.mktemp("circuit")
        inputs: Any = SimpleNamespace(original=SimpleNamespace(tokenizer=tokenizer))
        run = RunOf[ItemSet](inputs, CONFIG, Workspace(root), "cpu", SILENT)
        by_role: dict[Role, AuditedModel] = {
            Role.ORIGINAL: models["original"],
            Role.CANDIDATE: unlearned,
        }
        by_role |= {Role(name): model for name, model in more.items()}
        forget, never_taught = items
        sets = TextSets(forget, forget, never_taught)
        stages = StageRunner(run.workspace)
        ctx = AuditContext(run, stages, sets, by_role, {}, JUDGING.damage)
        return AXIS.measure["text"](ctx)

    return of


@pytest.fixture(scope="module")
def axis(measure):
    return lambda *args, **more: AXIS.result(measure(*args, **more), JUDGING)


@pytest.fixture(scope="module")
def of_head_edit(axis, models, items):
    edited = changed(models["original"], Role.CANDIDATE, shuffled_head)
    planted = changed(models["original"], Role.PLANTED, shuffled_head)
    return axis(items, edited, planted=planted)


@pytest.fixture(scope="module")
def twin_measured(measure, models, items):
    return measure(items, models["twin"])


@pytest.fixture(scope="module")
def of_twin(twin_measured):
    return AXIS.result(twin_measured, JUDGING)


def test_a_readout_edit_moves_the_native_reading_and_not_the_transplanted(of_head_edit):
    transplanted, block, native = of_head_edit.readings
    assert of_head_edit.status == "retained"
    assert transplanted.statistic == pytest.approx(transplanted.ceiling, rel=1e-5)
    assert block.statistic == pytest.approx(block.ceiling, rel=1e-5)
    assert native.statistic < 0.3 < transplanted.statistic
    figures = of_head_edit.details["normalized"][transplanted.name]
    assert figures["normalized_cad"] == pytest.approx(0, abs=1e-5)
    assert of_head_edit.details["cad"]["unlearned, forget, native"]["mass_lost"] > 0.3


def test_an_edit_of_the_last_block_moves_all_but_the_reading_with_the_originals(
    axis, models, items
):
    def turn(model):
        # Answers come out as other answers, by the last block alone.
        down = model.model.layers[-1].mlp.down_proj.weight
        down.copy_(-3 * down)

    found = axis(items, changed(models["original"], Role.CANDIDATE, turn))
    transplanted, block, native = found.readings
    assert block.name == METRICS[LAST_BLOCK].label
    # Nothing but what was edited is replaced, so these are the original's own scores.
    assert block.statistic == pytest.approx(block.ceiling, rel=1e-6)
    assert transplanted.statistic == pytest.approx(native.statistic, rel=1e-6)
    assert transplanted.statistic < block.statistic - 0.2
    cad = found.details["normalized"][block.name]["normalized_cad"]
    assert cad == pytest.approx(0, abs=1e-5)


def test_every_control_holds_where_the_original_knows(of_head_edit, of_twin):
    for found, count in ((of_head_edit, 5), (of_twin, 4)):
        assert len(found.controls) == count
        assert [each.name for each in found.controls if not each.passed] == []
        assert found.notes[-1] == "passed on"


def test_a_model_that_never_knew_keeps_nothing(of_twin):
    assert of_twin.status in ("absent", "no_power")
    for reading in of_twin.readings:
        assert reading.ceiling > 0.5
        assert abs(reading.statistic) < 0.3
        assert 1 - reading.residual > 0.5  # CAD


def test_with_a_reference_it_is_the_first_floor(axis, models, items, of_twin):
    found = axis(
        items,
        changed(models["original"], Role.CANDIDATE, lambda model: None),
        **{"reference-1": models["twin"]},
    )
    kinds = [reading.floor_kind for reading in found.readings]
    assert kinds == ["reference"] * 3 + ["never_taught"] * 3
    assert [reading.primary for reading in found.readings] == [True] * 3 + [False] * 3
    # Four couples, swapped in all ways, cannot give a p-value under 1/16.
    assert found.status == "no_power"
    assert found.readings[0].smallest_p == 1 / 16
    assert found.readings[0].residual == pytest.approx(1)
    # The twin is the floor itself; what it kept is what it kept as a candidate.
    assert found.readings[0].floor == pytest.approx(of_twin.readings[0].statistic)


def test_the_result_is_json_and_is_read_back(of_twin):
    text = json.dumps(of_twin.to_json(), allow_nan=False)
    back = AxisResult.from_json(json.loads(text))
    assert json.loads(json.dumps(back.to_json())) == json.loads(text)


def test_a_resumed_measurement_loads_no_model_and_gives_the_same_result(
    measure, models, items, twin_measured, of_twin, tmp_path
):
    text = json.dumps(of_twin.to_json(), allow_nan=False)
    saved = from_json(Measurement, json.loads(json.dumps(to_json(twin_measured))))
    assert json.dumps(judge(saved, JUDGING).to_json()) == text
    again = measure(items, models["twin"], tmp_path)
    assert json.dumps(judge(again, JUDGING).to_json()) == text

    def gone(device):
        raise AssertionError("every stage was saved")

    resumed = measure(
        items,
        replace(models["twin"], loader=gone),
        tmp_path,
        original=replace(models["original"], loader=gone),
    )
    assert to_json(resumed) == to_json(again)


def test_it_is_never_enough_for_a_verdict():
    assert not any(metric.finding for metric in SPEC.form("text").metrics)


def test_items_without_pairs_leave_the_axis_without_power(axis, models, items):
    alone = ItemSet(items[0].items[:3])
    found = axis((alone, items[1]), models["twin"])
    assert found.status == "no_power"
    assert "no prompt pairs can be made" in found.notes[0]
    assert found.notes[-1] == "passed on"
    unnamed = ItemSet(
        tuple(
            Item(f"{n}", item.entity, "This one lives in", item.answer)
            for n, item in enumerate(items[0])
        )
    )
    found = axis((unnamed, items[1]), models["twin"])
    assert found.status == "no_power"
    assert "does not name its entity" in found.notes[0]
    few = items[0].of_entities(items[0].entities[:6])
    found = axis((few, items[1]), models["twin"])
    assert found.status == "no_power"
    assert "two by two" in found.notes[0]


def test_a_candidate_whose_logits_are_not_numbers_is_an_error(measure, models, items):
    def ruin(model):
        model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))

    found = measure(items, changed(models["original"], Role.CANDIDATE, ruin))
    assert isinstance(found, Unmeasured) and found.status == "error"
    assert found.notes[0].startswith("unlearned: ")


def test_the_models_are_loaded_once_and_left_as_they_were(measure, models, items):
    kept = []

    def keep(model):
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        kept.append((model, weights))

    original = changed(models["original"], Role.ORIGINAL, keep)
    measure(items, changed(models["twin"], Role.CANDIDATE, keep), original=original)
    assert len(kept) == 2
    for model, weights in kept:
        assert count_hooks(model) == 0
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, weights[name]), name


def kept_of(candidate, never=0.0, original=1.0, spread=0.1, n=16, faithfulness=0.9):
    rng = np.random.default_rng(0)

    def values(mean):
        drawn = rng.standard_normal(n)
        return mean + spread * (drawn - drawn.mean())

    models = {
        Role.ORIGINAL: ModelScores(
            {OWN_READOUT.id: {Part.FORGET: values(original), Part.NEVER_TAUGHT: values(0.0)}}, {}
        ),
        Role.CANDIDATE: ModelScores(
            {
                metric.id: {Part.FORGET: values(mean), Part.NEVER_TAUGHT: values(never)}
                for metric, mean in zip(METRICS.values(), candidate, strict=True)
            },
            {},
        ),
    }
    circuit = SelectedCircuit(full=1.0, empty=0.0, kept=faithfulness, without=0.1, edges=3)
    search = CircuitSearch("EAP-IG", "logit_difference", {Part.FORGET: n}, 9, (circuit, circuit))
    return Measurement(models, search)


@pytest.mark.parametrize(
    ("candidate", "status"),
    [
        ((0.9, 0.9, 0.9), "retained"),
        ((0.5, 0.0, 0.0), "retained"),
        ((0.0, 0.5, 0.0), "retained"),
        ((0.0, 0.0, 0.4), "retained"),
        ((0.0, 0.0, 0.0), "absent"),
        # What the original's readout brings by itself is not the candidate's.
        ((0.11, 0.08, 0.03), "absent"),
        ((-0.5, -0.7, -0.9), "no_power"),
    ],
)
def test_the_rule_on_known_numbers(candidate, status):
    found = judge(kept_of(candidate), JUDGING)
    assert found.status == status
    for reading, mean in zip(found.readings, candidate, strict=True):
        assert reading.statistic == pytest.approx(mean)
        low, high = reading.residual_interval
        assert low < reading.residual < high
        assert reading.residual == pytest.approx(mean)
    below = [note for note in found.notes if "below its floor" in note]
    assert len(below) == (3 if status == "no_power" else 0)


@pytest.mark.parametrize(
    ("kept", "status", "control"),
    [
        (kept_of((0.5, 0.5, 0.5), original=0.1), "no_power", 0),
        (kept_of((0.5, 0.5, 0.5), faithfulness=0.4), "control_failed", 1),
        (kept_of((0.5, 0.5, 0.5), original=0.4), "control_failed", 2),
    ],
)
def test_without_its_controls_it_does_not_vote(kept, status, control):
    found = judge(kept, JUDGING)
    assert found.status == status
    assert not found.controls[control].passed


def test_an_unseen_plant_silences_absence_and_not_presence():
    for mean, status in ((0.0, "no_power"), (0.8, "retained")):
        kept = kept_of((mean,) * 3)
        metric = METRICS[TRANSPLANTED].id
        nothing = kept_of((0.0, 0.0, 0.0)).models[Role.CANDIDATE].mass[metric]
        planted = {Role.PLANTED: ModelScores({metric: nothing}, {})}
        found = judge(replace(kept, models={**kept.models, **planted}), JUDGING)
        assert found.controls[-1].id is ControlId.PLANTED and not found.controls[-1].passed
        assert found.status == status


def test_few_entities_give_wide_intervals():
    def width(n):
        kept = kept_of((0.3, 0.3, 0.3), n=n, spread=0.3)
        low, high = judge(kept, JUDGING).readings[0].residual_interval
        return high - low

    assert width(6) > 1.3 * width(40)


def test_heads_against_the_answer_are_named():
    graph = EdgeGraph(
        ("embed", "head.0.0", "head.0.1", "head.0.2", "mlp.0"),
        ("mlp.0", "logits"),
        (4, 5),
        ((4,), ()),
    )
    scores = np.zeros((10, 9))
    logits = graph.edges_into(1)
    direct = scores[:, logits]
    direct[:, 1] = 1.0 + 0.1 * np.arange(10)  # against the answer, surely
    direct[:, 2] = -1.0  # for it
    direct[:, 3] = np.array([5, -5] * 5) + 0.6  # now and then against it
    direct[:, 4] = 2.0  # no head
    named = copy_suppression(graph, scores, drop=10.0)
    assert [each.head for each in named] == ["head.0.0"]
    assert named[0].share == pytest.approx(0.145)
    assert copy_suppression(graph, scores, drop=100.0) == ()


def test_heads_that_came_and_went_are_told_apart():
    def judged(**heads):
        kept = kept_of((0.5, 0.5, 0.5))
        models = {
            role: replace(
                scores, heads=tuple(SuppressingHead(head, 1.0, 0.1) for head in heads[role])
            )
            for role, scores in kept.models.items()
        }
        return judge(replace(kept, models=models), JUDGING)

    found = judged(original=("head.0.1", "head.1.1"), unlearned=("head.1.2", "head.1.1"))
    (note,) = (note for note in found.notes if note.startswith("Heads"))
    assert "head.1.2 (only in the candidate)" in note
    assert "head.1.1 (in both models)" in note
    assert "head.0.1 (only in the original)" in note
    listed = found.details["copy_suppression"]["original"]
    assert listed[0] == {"head": "head.0.1", "effect": 1.0, "share": 0.1}
    assert not any("Heads" in note for note in judged(original=(), unlearned=()).notes)


def test_readings_are_named_after_their_readout():
    found = judge(kept_of((0.5, 0.5, 0.5)), JUDGING)
    assert [each.name for each in found.readings] == [metric.label for metric in METRICS.values()]
    assert [each.metric for each in found.readings] == [
        "original_readout",
        "original_last_block",
        "own_readout",
    ]


def test_a_saved_measurement_is_judged_alike_and_judging_changes_nothing():
    kept = kept_of((0.5, 0.2, 0.0))
    saved = json.loads(json.dumps(to_json(kept)))
    first, second, third = (
        judge(each, JUDGING).to_json() for each in (kept, kept, from_json(Measurement, saved))
    )
    assert first == second == third
    assert to_json(kept) == saved


def test_limitations_of_the_measurement_are_passed_on_before_those_of_the_audit():
    found = judge(replace(kept_of((0.5, 0.5, 0.5)), notes=("no heads",)), JUDGING)
    assert found.notes[-2:] == ("no heads", "passed on")
