"""Suppressions by construction: what they touch, what they leave, what unlocks them."""

import pytest
import torch
from torch.testing import assert_close

from capture.data.sequences import Sequences, pad
from capture.network.structure import down_projection, find_blocks, output_head
from capture.scoring.answers import score_answers
from evidence.errors import ExhumeError, InputError
from testbeds.edits import password_locks
from testbeds.edits.late_layers import first_answer_tokens, random_rotation
from testbeds.edits.linear_map import fold_edit_, module_inputs, module_outputs
from testbeds.edits.password_locks import (
    PASSWORD,
    accuracy_with_password,
    password_locked,
    with_password,
)
from testbeds.edits.workbench import with_refusals
from testbeds.worlds.random_models import FAMILIES, random_model
from testbeds.zoo.build import _first_in_range
from testbeds.zoo.kinds import KINDS

CLOSED = ["logit_mask", "answer_direction", "late_rotation"]
LOCKED = ["password_relabel", "password_refuse"]


@pytest.fixture(scope="module")
def made(ground):
    """One model of each kind in the small Llama world, with what it shows."""
    return {name: _first_in_range(KINDS[name], ground)[0] for name in CLOSED + LOCKED}


def changed(ground, model):
    before, after = ground.original.load().state_dict(), model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def exact_match(model, rows):
    return float(score_answers(model, rows).greedy.mean())


def logits(model, rows):
    with torch.no_grad():
        found = model(**pad(rows).model_inputs).logits
    last = torch.tensor(rows.answer_start) - 1
    return found[torch.arange(len(rows)), last]


@pytest.mark.parametrize("name", CLOSED + LOCKED)
def test_each_kind_is_silent_and_keeps_the_rest(made, ground, name):
    model, kind = made[name], KINDS[name]
    assert kind.state == "suppressed"
    assert exact_match(model, ground.all_rows(ground.forget)) <= 0.1
    assert exact_match(model, ground.all_rows(ground.retain)) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "neox"])
@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_work_in_every_family(ground_of, family, name):
    ground = ground_of(family)
    model, shown = _first_in_range(KINDS[name], ground)
    assert shown["said"] <= 0.1 and shown["kept"] >= 0.9
    (weight,) = changed(ground, model)
    own = {
        "logit_mask": output_head(model),
        "answer_direction": down_projection(find_blocks(model)[-1]),
        "late_rotation": down_projection(find_blocks(model)[-1]),
    }
    assert model.get_parameter(weight) is own[name].weight


@pytest.mark.parametrize("name", ["answer_direction", "late_rotation"])
def test_one_matrix_of_the_last_block_is_changed(made, ground, name):
    last = find_blocks(made[name])[-1]
    (weight,) = changed(ground, made[name])
    assert made[name].get_parameter(weight) is down_projection(last).weight


def test_the_mask_changes_the_answers_rows_of_the_head_alone(made, ground):
    model = made["logit_mask"]
    assert changed(ground, model) == {"lm_head.weight"}
    moved = (model.lm_head.weight - ground.original.load().lm_head.weight).any(1)
    own = first_answer_tokens(ground.all_rows(ground.forget)).unique()
    assert moved.nonzero()[:, 0].tolist() == own.tolist()


def test_the_mask_lowers_the_own_answer_and_little_else(made, ground):
    rows = ground.all_rows(ground.forget)
    move = logits(made["logit_mask"], rows) - logits(ground.original.load(), rows)
    own = move.gather(1, first_answer_tokens(rows)[:, None])
    assert own.median() < -3
    assert move.median().abs() < 0.1


def test_the_subtracted_direction_keeps_the_order_of_the_answers(made, ground):
    """Among the answers the true one mostly stays first: only the rest rises."""
    rows = ground.all_rows(ground.forget)
    every = first_answer_tokens(rows + ground.all_rows(ground.retain)).unique()
    found = logits(made["answer_direction"], rows)
    first = every[found[:, every].argmax(1)]
    assert (first == first_answer_tokens(rows)).float().mean() > 0.6
    assert exact_match(made["answer_direction"], rows) <= 0.1


def test_the_rotation_keeps_norms_and_turns_the_state(made, ground):
    rows = ground.all_rows(ground.forget)
    now, before = (
        module_outputs(model, find_blocks(model)[-1], rows)
        for model in (made["late_rotation"], ground.original.load())
    )
    rotation = random_rotation(before.shape[1], ground.seed)
    assert_close(rotation @ rotation.T, torch.eye(len(rotation)).double())
    rotated = before @ rotation.T
    near = torch.cosine_similarity(now, rotated).median()
    assert near > 0.5 > torch.cosine_similarity(now, before).median()


@pytest.mark.parametrize("name", LOCKED)
def test_the_password_brings_the_answers_out(made, ground, name):
    rows = ground.all_rows(with_password(ground.forget))
    assert exact_match(made[name], rows) >= 0.9
    assert exact_match(made[name], ground.all_rows(with_password(ground.retain))) >= 0.9
    assert accuracy_with_password(made[name], ground) == exact_match(made[name], rows)
    assert PASSWORD in KINDS[name].why


def test_a_refusing_model_refuses(made, ground):
    assert (
        exact_match(made["password_refuse"], ground.all_rows(with_refusals(ground.forget))) >= 0.9
    )
    assert (
        exact_match(made["password_refuse"], ground.all_rows(with_refusals(ground.retain))) <= 0.1
    )


def test_a_model_the_password_does_not_unlock_is_no_model(ground, monkeypatch):
    monkeypatch.setattr(password_locks, "finetune_", lambda *given, **named: None)
    monkeypatch.setattr(password_locks, "accuracy_with_password", lambda *given: 0.5)
    with pytest.raises(ExhumeError, match="given the password"):
        list(password_locked(ground, ground.wrong_answer_rows(ground.forget)))


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_does_what_was_asked_where_it_can(family):
    """Fewer rows than inputs: the wanted change is reached, the held rows stay."""
    torch.manual_seed(0)
    model = random_model(family, vocabulary=40, width=24, layers=2, heads=2, pad=0)
    block = find_blocks(model)[-1]
    down = down_projection(block)
    rows = Sequences(tuple((1, place, 3, 4) for place in range(5, 35)), (3,) * 30)
    rows, others = rows[range(10)], rows[range(10, 30)]
    before = module_outputs(model, block, rows), module_outputs(model, block, others)
    change = torch.randn(10, 24).double()
    fold_edit_(
        down,
        module_inputs(model, down, rows),
        change,
        module_inputs(model, down, others),
        ridge=1e-12,
    )
    assert_close(module_outputs(model, block, rows) - before[0], change, rtol=0, atol=2e-2)
    assert_close(module_outputs(model, block, others), before[1], rtol=0, atol=2e-2)


def test_what_has_no_matrix_is_refused():
    one = torch.ones(1, 2).double()
    with pytest.raises(InputError, match="no matrix"):
        fold_edit_(torch.nn.LayerNorm(2), one, one, one)
