"""What an audit will take, said beforehand."""

from dataclasses import replace

import pytest

from audits.core.config import BUDGETS
from audits.run import planning as module
from audits.run.planning import GIB, TRAINING_COPIES, count_parameters, plan
from capture.checkpoints.open import open_checkpoint
from capture.data.items import read_items
from evidence.errors import InputError
from tests.audits.core.test_bad_input import call


def planned(world, **changed):
    return plan(world.original, world.twin, world.forget, world.retain, **changed)


def test_parameters_are_the_models(world):
    checkpoint = open_checkpoint(world.original)
    model = checkpoint.load()
    assert count_parameters(checkpoint) == sum(p.numel() for p in model.parameters())
    live = open_checkpoint(model, tokenizer=checkpoint.tokenizer)
    assert count_parameters(live) == count_parameters(checkpoint)


def test_questions_are_those_of_the_profile(world):
    budget = BUDGETS["quick"]
    forget, retain = read_items(world.forget), read_items(world.retain)
    kept = retain.of_entities(retain.entities[: budget.retain_entities])
    wordings = budget.prompts_per_item
    assert len(forget.items[0].paraphrases) + 1 >= wordings
    expected = wordings * (len(forget) * (1 + budget.never_taught_copies) + len(kept))
    assert planned(world).questions == expected


def test_what_is_not_run_is_not_counted(world):
    everything = planned(world)
    listening = planned(world, axes=("behaviour",))
    probing = planned(world, axes=("behaviour", "decodability"))
    assert listening.taught_tokens == listening.disk == 0
    assert 0 < probing.taught_tokens < everything.taught_tokens
    assert listening.work < probing.work < everything.work
    # Gradients of the edit weigh as much as training does, whatever the axes.
    assert listening.memory == everything.memory
    assert everything.parameters * 4 * TRAINING_COPIES < everything.memory


def test_in_large_models_leaving_out_relearning_halves_the_weights(world, monkeypatch):
    monkeypatch.setattr(module, "MAX_PARAMETERS", 1000)  # where the edit's gradients stop
    everything, probing, listening = (
        planned(world, axes=axes) for axes in ((), ("behaviour", "decodability"), ("behaviour",))
    )
    weights = 4 * everything.parameters
    assert everything.memory - probing.memory == 2 * weights
    assert probing.memory - listening.memory == weights


def test_a_reference_is_one_more_model(world):
    alone, beside = planned(world), planned(world, reference=(world.twin,))
    assert beside.models == alone.models + 1
    assert beside.taught_tokens > alone.taught_tokens


def test_images_are_not_planned_for(world, tmp_path):
    with pytest.raises(InputError, match="holds images"):
        plan(world.original, world.twin, tmp_path, tmp_path)


def test_what_does_not_fit_is_refused(world, capfd):
    found = planned(world, memory=0.5)
    assert found.available == GIB // 2
    with pytest.raises(InputError, match="does not fit into memory"):
        found.check()
    replace(found, available=found.memory).check()
    sources = {
        "original": world.original,
        "unlearned": world.twin,
        "forget": world.forget,
        "retain": world.retain,
    }
    options = [part for key, value in sources.items() for part in (f"--{key}", value)]
    assert call("plan", *options, "--memory", 0.5) == 2
    captured = capfd.readouterr()
    assert captured.err.count("exhume: the audit does not fit") == 1
    assert "parameters" in captured.out  # the table says why
    assert call("plan", *options, "--memory", 64) == 0


@pytest.mark.parametrize("memory", [0, -1, float("nan")])
def test_memory_must_be_some(world, memory):
    with pytest.raises(InputError, match="memory"):
        planned(world, memory=memory)
