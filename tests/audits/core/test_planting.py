"""A plant that takes longer than the budget's steps is given more of them."""

import copy
import os

import pytest
import torch
from torch import nn

from audits.core.config import BUDGETS
from audits.core.context import AuditedModel
from audits.core.roles import Role
from audits.modalities import planting
from evidence.errors import InputError

BUDGET = BUDGETS["quick"]
LAST = BUDGET.plant_rates[-1]
SETTINGS = [(rate, BUDGET.plant_steps) for rate in BUDGET.plant_rates] + [
    (LAST, longer * BUDGET.plant_steps) for longer in (2, 4)
]


def original(model):
    return AuditedModel(Role.ORIGINAL, "0", {}, lambda device: model)


@pytest.fixture
def attempt(tmp_path):
    """Plants where training takes ``needed`` steps, and returns what was tried."""

    def make(needed):
        tried: list[tuple[float, int]] = []

        def train(model, rate, steps):
            tried.append((rate, steps))
            with torch.no_grad():
                model.weight += 1.0
            return (0.0 if steps >= needed else 1.0), 1.0

        made = planting.plant(
            original(nn.Linear(2, 2)), train, BUDGET, tmp_path, "cpu", planting.MORE_STEPS
        )
        return made, tried

    return make


def test_the_budget_is_enough_where_it_was_enough(attempt):
    made, tried = attempt(BUDGET.plant_steps)
    assert made.made
    assert tried == SETTINGS[:1]
    assert made.tensors == ("weight",)


def test_more_steps_are_taken_where_no_rate_is_enough(attempt):
    made, tried = attempt(2 * BUDGET.plant_steps)
    assert made.made
    assert tried == SETTINGS[:3]
    assert (made.rate, made.steps) == SETTINGS[2]


def test_what_cannot_be_planted_is_said(attempt):
    made, tried = attempt(10**6)
    assert not made.made
    assert tried == SETTINGS
    assert "could be planted" in made.notes[0]


@pytest.mark.parametrize("place", ["nothing", "folder", "pipe"])
def test_planted_tensors_that_cannot_be_read_are_one_error(tmp_path, place):
    path = tmp_path / planting.PLANTED_FILE
    if place == "folder":
        path.mkdir()
    elif place == "pipe":
        os.mkfifo(path)
    with pytest.raises(InputError, match="--fresh"):
        planting.planted_model(original(nn.Linear(1, 1)), tmp_path)


def test_a_suppression_that_hurts_retain_items_is_not_valid(tmp_path):
    made = planting.plant(original(nn.Linear(2, 2)), lambda *_: (0.0, 0.5), BUDGET, tmp_path, "cpu")
    assert not made.made and (made.forget, made.retain) == (0.0, 0.5)
    assert not (tmp_path / planting.PLANTED_FILE).exists()


def test_the_planted_model_is_the_original_with_the_changed_tensors(tmp_path):
    first = nn.Linear(2, 2)
    before = first.bias.detach().clone()

    def train(model, rate, steps):
        with torch.no_grad():
            model.weight.fill_(3.0)
        return 0.0, 1.0

    made = planting.plant(original(copy.deepcopy(first)), train, BUDGET, tmp_path, "cpu")
    assert made.made
    model = planting.planted_model(original(first), tmp_path).load()
    assert isinstance(model, nn.Linear)
    assert (model.weight == 3.0).all() and torch.equal(model.bias, before)
