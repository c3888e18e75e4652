"""Edits inside the bins come back when the weights are rounded, larger ones do not."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from audits.axes.base import JudgementContext
from audits.axes.quantization import Measurement, WeightEdit, judge, measure_text
from audits.core.config import AuditConfig
from audits.core.context import AuditContext, open_run
from audits.core.inputs import open_inputs
from audits.core.item_sets import TextSets
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from audits.modalities import text
from audits.output.workspace import StageRunner
from capture.data.items import read_items
from capture.data.questions import build_questions
from capture.data.sequences import batches
from capture.data.tokenization import encode
from erasure.weights.quantization import linear_weights, quantize, quantize_
from evidence.progress import SILENT
from evidence.results import ControlId, Status
from evidence.typed_json import from_json, to_json

CONFIG = AuditConfig()


def room(weight):
    """How far each weight of a grid can go down and up within its bin."""
    grid = quantize(weight)
    middles = (grid.levels[:-1] + grid.levels[1:]) / 2
    # Weights in the outermost bins stay: they set the scale of their block.
    inner = (grid.codes > 0) & (grid.codes < 15)
    below = grid.levels[grid.codes] - middles[(grid.codes - 1).clamp(min=0)]
    above = middles[grid.codes.clamp(max=14)] - grid.levels[grid.codes]
    return [0.95 * side * grid.scales * inner for side in (-below, above)]


def hide_(model, forget, retain, steps=120):
    """Unlearn by steps that take no weight out of its bin."""
    weights = {name: weight for name, (weight, _) in linear_weights(model).items()}
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    limits = {name: room(weight) for name, weight in start.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        for rows, sign in ((forget, -1.0), (retain, 3.0)):
            for batch in batches(rows, batch_tokens=4096):
                logits = model(**batch.model_inputs).logits.log_softmax(-1)[:, :-1]
                target, answers = batch.input_ids[:, 1:], batch.answer_mask[:, 1:]
                loss = -logits.gather(2, target[..., None])[..., 0][answers]
                (sign * loss.clamp(max=6.0).mean()).backward()
        optimizer.step()
        with torch.no_grad():
            for name, weight in weights.items():
                low, high = limits[name]
                weight.copy_(start[name] + (weight - start[name]).clamp(low, high))
    return model


@pytest.fixture(scope="module")
def models(world):
    """The original with its weights on the grid, and an edit inside the bins."""
    original = AutoModelForCausalLM.from_pretrained(world.original).eval()
    quantize_(original)
    tokenizer = AutoTokenizer.from_pretrained(world.original)
    forget, retain = read_items(world.forget), read_items(world.retain)
    asked = build_questions(forget, 2)
    rows = encode(tokenizer, asked.prompts, asked.answers)
    hidden = AutoModelForCausalLM.from_pretrained(world.original).eval()
    quantize_(hidden)
    hide_(hidden, rows, build_questions(retain, 1).encoded(tokenizer))
    return original, hidden, tokenizer


@pytest.fixture
def measured(world, models, tmp_path):
    """The measurement of an edited model, with live models in place of checkpoints."""
    original, _, tokenizer = models

    def measure(candidate):
        inputs = open_inputs(
            original,
            candidate,
            world.forget,
            world.retain,
            references=(),
            never_taught=world.never_taught,
            tokenizer=tokenizer,
            config=CONFIG,
            progress=SILENT,
        )
        run = open_run(inputs, CONFIG, tmp_path, fresh=False, progress=SILENT)
        assert inputs.never_taught is not None
        sets = TextSets(inputs.forget, inputs.retain, inputs.never_taught)
        baseline = {role: text.score_baseline(run, role, sets) for role in run.models}
        stages = StageRunner(run.workspace)
        ctx = AuditContext(run, stages, sets, run.models, baseline, Damage({}, ()))
        return measure_text(ctx)

    return measure


def judged(measured, behaviour: Status = "absent"):
    return judge(measured, JudgementContext(CONFIG, "text", Damage({}, ()), behaviour))


def test_an_edit_inside_the_bins_is_restored_and_reported(models, measured):
    result = judged(measured(models[1]))
    (gap,) = result.details["gap"]["unlearned"]
    assert gap["full"] < 0.2
    assert gap["full"] + gap["gap"] > 0.9
    assert gap["interval"][0] > 0.5
    assert result.status == "retained"
    assert result.readings[0].p_value < 0.05
    edit = result.details["edit"]["nf4"]
    assert edit["same_codes"] == 1.0
    assert edit["fidelity"] == 0.0
    assert edit["bins"] < 0.5
    assert "stay the original's" in result.notes[0]


def test_an_edit_of_ten_bins_is_not_restored(world, models, measured):
    original = models[0]
    candidate = AutoModelForCausalLM.from_pretrained(world.twin).eval()
    start = {name: weight for name, (weight, _) in linear_weights(original).items()}
    # As far from the original as ten of its bins, towards a model that never knew.
    with torch.no_grad():
        for name, (weight, _) in linear_weights(candidate).items():
            edit = weight - start[name]
            width = quantize(start[name]).bin_widths.mean()
            weight.copy_(start[name] + edit * 10 * width / edit.square().mean().sqrt())
    result = judged(measured(candidate))
    assert result.status != "retained"
    (gap,) = result.details["gap"]["unlearned"]
    assert abs(gap["gap"]) < 0.2
    edit = result.details["edit"]["nf4"]
    assert edit["bins"] == pytest.approx(10, rel=0.01)
    assert edit["same_codes"] < 0.2
    assert edit["fidelity"] > 0.95
    assert any("cannot be rounded away" in note for note in result.notes)


def test_what_was_never_forgotten_cannot_return(models, measured):
    result = judged(measured(models[0]), behaviour="retained")
    assert result.status == "control_failed"
    failed = [control.id for control in result.controls if not control.passed]
    assert failed == [ControlId.FORGOTTEN]
    assert "No linear weight was edited" in result.notes[1]
    assert np.isclose(result.details["gap"]["unlearned"][0]["gap"], 0.0)


def by_hand(after, *, retain=1.0):
    """24 forgotten entities: nothing is said at full precision, a share after quantization."""

    def table(part, share, count=24):
        names = tuple(f"{part} {row}" for row in range(count))
        return ScoreTable(names, (np.arange(count) < share * count).astype(float)[:, None])

    def of(forget, never_taught, kept):
        return {
            Part.FORGET: table("known", forget),
            Part.NEVER_TAUGHT: table("invented", never_taught, 72),
            Part.RETAIN: table("kept", kept),
        }

    by_role = {Role.ORIGINAL: of(1.0, 0.0, 1.0), Role.CANDIDATE: of(after, 0.0, retain)}
    full = {Role.ORIGINAL: table("known", 1.0), Role.CANDIDATE: table("known", 0.0)}
    scores = RoleScores(("nf4",), {"exact_match": by_role, "contrast": by_role})
    edit = (WeightEdit("a", "nf4", 300, 0.2, 0.9, 0.1, 1.0),)
    return Measurement(scores, full, (*edit, WeightEdit("b", "nf4", 100, 0.6, 0.5, 0.5, 0.2)))


@pytest.mark.parametrize(
    ("after", "retain", "status"),
    [(1.0, 1.0, "retained"), (0.0, 1.0, "absent"), (1.0, 0.2, "no_power")],
)
def test_answers_that_come_back_count_where_kept_ones_stay(after, retain, status):
    result = judged(by_hand(after, retain=retain))
    assert result.status == status
    assert result.details["gap"]["unlearned"][0]["gap"] == after
    assert result.details["edit"]["nf4"]["bins"] == pytest.approx(0.3)
    assert result.notes[-1].startswith("The edited weights moved by 0.3 of a bin (nf4); 80%")


def test_a_stored_measurement_is_judged_the_same_each_time():
    before = by_hand(0.5)
    result = judged(before)
    assert judged(before) == result
    assert judged(from_json(Measurement, to_json(before))) == result
