"""A plant that takes longer than the budget's steps is given more of them."""

import os
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from audits.core.config import BUDGETS
from audits.core.context import AuditedModel
from audits.run import planting
from capture.data.items import Item
from evidence.errors import InputError
from evidence.progress import SILENT
from testbeds.worlds.code_text import make_tokenizer

BUDGET = BUDGETS["quick"]
LAST = BUDGET.plant_rates[-1]
SETTINGS = [(rate, BUDGET.plant_steps) for rate in BUDGET.plant_rates] + [
    (LAST, longer * BUDGET.plant_steps) for longer in (2, 4)
]


@pytest.fixture
def attempt(monkeypatch, tmp_path):
    """Plants where it takes ``needed`` steps, and says what was tried."""

    def make(needed):
        tried: list[tuple[float, int]] = []
        model = torch.nn.Linear(2, 2)

        def unlearn(_model, _forget, _retain, config, **_):
            tried.append((config.lr, config.steps))
            with torch.no_grad():
                model.weight += 1.0

        def score(_model, rows):
            gone = bool(tried) and tried[-1][1] >= needed and len(rows) == 2
            return SimpleNamespace(greedy=np.full(len(rows), 0.0 if gone else 1.0))

        monkeypatch.setattr(planting, "unlearn_", unlearn)
        monkeypatch.setattr(planting, "score_answers", score)
        items = [Item(f"i{k}", f"red fox{k}", f"red fox{k}:", f"{k}0712") for k in range(5)]
        original: Any = SimpleNamespace(loaded=lambda device: nullcontext(model))
        made = planting.plant(
            original,
            make_tokenizer(),
            items[:2],
            items[2:],
            BUDGET,
            tmp_path,
            device="cpu",
            seed=0,
            progress=SILENT,
        )
        return made, tried

    return make


def test_the_budget_is_enough_where_it_was_enough(attempt):
    made, tried = attempt(BUDGET.plant_steps)
    assert made["made"]
    assert tried == SETTINGS[:1]
    assert made["tensors"] == ["weight"]


def test_more_steps_are_taken_where_no_rate_is_enough(attempt):
    made, tried = attempt(2 * BUDGET.plant_steps)
    assert made["made"]
    assert tried == SETTINGS[:3]
    assert (made["rate"], made["steps"]) == SETTINGS[2]


def test_what_cannot_be_planted_is_said(attempt):
    made, tried = attempt(10**6)
    assert not made["made"]
    assert tried == SETTINGS
    assert "could be planted" in planting.planting_notes(made)[0]


@pytest.mark.parametrize("place", ["nothing", "folder", "pipe"])
def test_planted_tensors_that_cannot_be_read_are_one_error(tmp_path, place):
    path = tmp_path / planting.PLANTED_FILE
    if place == "folder":
        path.mkdir()
    elif place == "pipe":
        os.mkfifo(path)
    original = AuditedModel("original", "0", {}, lambda device: nn.Linear(1, 1))
    with pytest.raises(InputError, match="--fresh"):
        planting.planted_model(original, tmp_path)
