"""Edits inside the bins come back when the weights are rounded, larger ones do not."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from audits.axes.persistence import EXACT_MATCH, edit_in_bins, judge, score_quantized
from audits.core.answers import score_question_sets
from audits.core.config import AuditConfig
from audits.core.context import AuditedModel
from capture.data.items import read_items
from capture.data.questions import build_questions
from capture.data.sequences import batches
from capture.data.tokenization import encode
from erasure.weights.quantization import linear_weights, quantize, quantize_
from evidence.progress import SILENT

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


def subject(role, model):
    """A live model in a role, copied by each loading as any other is."""
    import copy

    return AuditedModel(role, role, {}, lambda device: copy.deepcopy(model).to(device))


def persistence(world, models, candidate=None, gone=True):
    original, hidden, tokenizer = models
    sets = {
        "forget": build_questions(read_items(world.forget), 2),
        "never_taught": build_questions(read_items(world.never_taught), 2),
        "retain": build_questions(read_items(world.retain), 1),
    }
    subjects = {
        "original": subject("original", original),
        "unlearned": subject("unlearned", hidden if candidate is None else candidate),
    }
    baseline_scores, quantized = {}, {}
    for role, each in subjects.items():
        with each.loaded("cpu") as model:
            baseline_scores[role] = score_question_sets(model, tokenizer, sets, SILENT)
        quantized[role] = score_quantized(
            each, tokenizer, sets, CONFIG, device="cpu", progress=SILENT
        )
    edit = edit_in_bins(subjects["original"], subjects["unlearned"], CONFIG, "cpu")
    return judge(sets, baseline_scores, quantized, edit, gone, CONFIG, ())


def test_an_edit_inside_the_bins_is_restored_and_reported(world, models):
    result = persistence(world, models)
    (gap,) = result.details["gap"]["unlearned"]
    assert gap["full"] < 0.2
    assert gap["quantised"] > 0.9
    assert gap["interval"][0] > 0.5
    assert result.status == "retained"
    assert result.reading(EXACT_MATCH).p_value < 0.05
    edit = result.details["edit"]["nf4"]
    assert edit["same_codes"] == 1.0
    assert edit["fidelity"] == 0.0
    assert edit["bins"] < 0.5
    assert "stay the original's" in result.notes[0]


def test_an_edit_of_ten_bins_is_not_restored(world, models):
    original = models[0]
    candidate = AutoModelForCausalLM.from_pretrained(world.twin).eval()
    start = {name: weight for name, (weight, _) in linear_weights(original).items()}
    # As far from the original as ten of its bins, towards a model that never knew.
    with torch.no_grad():
        for name, (weight, _) in linear_weights(candidate).items():
            edit = weight - start[name]
            width = quantize(start[name]).bin_widths.mean()
            weight.copy_(start[name] + edit * 10 * width / edit.square().mean().sqrt())
    result = persistence(world, models, candidate)
    assert result.status != "retained"
    (gap,) = result.details["gap"]["unlearned"]
    assert abs(gap["gap"]) < 0.2
    edit = result.details["edit"]["nf4"]
    assert edit["bins"] == pytest.approx(10, rel=0.01)
    assert edit["same_codes"] < 0.2
    assert edit["fidelity"] > 0.95
    assert any("cannot be rounded away" in note for note in result.notes)


def test_what_was_never_forgotten_cannot_return(world, models):
    result = persistence(world, models, models[0], gone=False)
    assert result.status == "control_failed"
    assert "gone at full precision" in result.notes[0]
    assert "No linear weight was edited" in result.notes[1]
    assert np.isclose(result.details["gap"]["unlearned"][0]["gap"], 0.0)
