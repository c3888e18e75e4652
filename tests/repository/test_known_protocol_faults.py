"""The faults of the published protocols, and that ours does not have them.

``benchmarks/pga/statements.toml`` lists each with its tests; docs/results/pga.md shows
the list.
"""

import ast
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.pga.page import STATEMENTS
from capture.network.structure import own_head_
from evidence.seeds import torch_rng
from experiments.pga.claims import NO, YES, claims_of
from experiments.pga.config import PgaExperiment
from experiments.pga.results import ModelRow
from experiments.pga.states import all_states
from probes.sweeps.membership_test import membership
from testbeds.memorized_codes.world import recall
from tests.experiments.test_pga import eraser_rows, signed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda each: each["text"][:30])
def test_every_statement_names_tests_that_exist(statement):
    assert statement["tests"]
    for name in statement["tests"]:
        path, test = name.split("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        found = {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
        assert test in found, name


def untrained(rows, p) -> list[ModelRow]:
    made: Any = [
        {
            "model": f"untrained {number}",
            "eraser": None,
            "published": {"true": [0.5, 0.5 + 0.4 * (number == 0)], "reading": "none"},
            "sound": signed("none", each, 0.6),
        }
        for number, each in enumerate(p)
    ]
    return made + [row for row in rows if not row["model"].startswith("untrained")]


def test_all_random_networks_count_and_no_single_layer_of_one():
    """Do-not-copy 3."""
    assert PgaExperiment().random_inits >= 10  # pyright: ignore[reportCallIssue]
    rows = eraser_rows(signed("none", 0.5, 0.6), [0.5, 1.0])
    name = "an untrained network has no such signature"
    for p, outcome in (([0.01] + [0.5] * 9, YES), ([0.01] * 6 + [0.5] * 4, NO)):
        claims = {each["claim"]: each for each in claims_of(untrained(rows, p))}
        assert claims[name]["outcome"] == outcome


def test_no_outcome_rests_on_a_difference_from_a_baseline():
    """Do-not-copy 5: the gap is shown as published and decides nothing."""
    rows = eraser_rows(signed("present", 0.002, 0.9), [0.1, 0.2])
    changed = deepcopy(rows)
    for row in changed:
        if "published" in row:
            row["published"] |= {"pure": [0.1, 0.1], "mean_gap": 0.9}  # pyright: ignore[reportGeneralTypeIssues]
    assert claims_of(rows) == claims_of(changed)


def test_a_signature_s_strength_is_measured_on_others_than_it_was_fitted_on():
    """Do-not-copy 7: in the sample, noise of more columns than rows looks perfect."""
    inside, p = [], []
    labels = np.repeat([1, 0], 15)
    for seed in range(8):
        x = torch.randn(1, 30, 400, generator=torch_rng(seed, "sample")).double()
        w = x[0, :15].mean(0) - x[0, 15:].mean(0)
        inside.append(roc_auc_score(labels, (x[0] @ w).numpy()))
        found = membership({"last": x}, labels, families=["mean difference"], n_permutations=59)
        p.append(found.p_above)
        # Left-out rows of noise score low rather than high, and so do exchanged ones:
        # the null is what an AUC is held against, not one half.
        assert found.max_auc < 0.75
    assert min(inside) > 0.99
    assert np.mean(np.array(p) <= 0.05) <= 0.25 and np.mean(p) > 0.25


def test_recall_is_read_at_the_output_and_the_signature_is_not(tiny_codes):
    """Do-not-copy 8: a readout that says nothing leaves every state as it was."""
    world = tiny_codes
    model, silent = world.load(), world.load()
    head = own_head_(silent)
    with torch.no_grad():
        head.weight.neg_()  # pyright: ignore[reportCallIssue]
    assert recall(model, world.memorized_rows()).mean > 0.5
    assert recall(silent, world.memorized_rows()).mean < 1e-3
    own, other = (all_states(each, world, world.trained_lead_ins) for each in (model, silent))
    for view, pools in own.items():
        for name, states in pools.items():
            assert torch.equal(states, other[view][name])
