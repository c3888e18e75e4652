"""The gold grade tells original from twin, and hidden answers from lost ones."""

import numpy as np
import pytest

from audits.validation.relearning_grade import RelearningCurve, grade, halves, measure_relearning
from capture.checkpoints.open import open_checkpoint
from evidence.errors import InputError
from testbeds.edits.workbench import TextWorkbench
from testbeds.worlds.biographies import SMALL
from testbeds.zoo.build import build_zoo

SETTINGS = {"rates": (3e-4, 1e-3), "budgets": (3, 9)}


@pytest.fixture(scope="module")
def found(small_zoo):
    kinds = ("retrain_1", "last_block_relabel")
    made = build_zoo(small_zoo, seeds=[0], only=kinds, config=SMALL)
    ground = TextWorkbench.from_world(made[0].world, SMALL, 0, "cpu")
    models = {each.kind: open_checkpoint(each.model) for each in made}
    models |= {"original": ground.original, "twin": ground.twin}
    return {name: measure_relearning(ground, m, **SETTINGS) for name, m in models.items()}


def test_halves_have_every_entity_taught_once_and_asked_once(world):
    ground = TextWorkbench.from_world(world, SMALL, 0, "cpu")
    (taught, asked), (second_taught, second_asked) = halves(ground.forget, 0)
    assert not set(taught.entities) & set(asked.entities)
    assert set(taught.entities) | set(asked.entities) == set(ground.forget.entities)
    assert (taught.entities, asked.entities) == (second_asked.entities, second_taught.entities)


def test_original_twin_and_what_lies_between(found):
    ends = found["twin"], found["original"]
    assert found["original"].best == pytest.approx(1, abs=0.05)
    assert grade(found["original"], *ends) == 1
    assert grade(found["twin"], *ends) == 0
    assert grade(found["retrain_1"], *ends) < 0.25
    # Nothing of it is said before teaching, and one half brings back the other, though
    # eight people are few to show it with.
    assert found["last_block_relabel"].exact_match_before <= 0.1
    assert grade(found["last_block_relabel"], *ends) > 0.3


def test_a_world_whose_original_regains_nothing_cannot_grade():
    flat = RelearningCurve(np.full((2, 1, 1), 0.5), np.zeros((2, 1, 1)), 0.5, 0.0)
    with pytest.raises(InputError, match="gives no grade"):
        grade(flat, flat, flat)
