"""What an audit will take, said beforehand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from audits.axes.relearning.attack import EXTRA_STEP_MULTIPLES, STEP_MULTIPLES
from audits.core.config import BUDGETS
from audits.core.registry import AXES
from audits.run import planning as module
from audits.run.planning import GIB, TRAINING_COPIES, count_parameters, plan
from capture.checkpoints.open import open_checkpoint
from capture.data.items import read_items
from capture.data.tokenization import encode
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


def test_every_attempt_at_relearning_is_in_the_estimate(world):
    """All rates within the budget, then the last one for up to sixteen times as many steps."""
    budget = BUDGETS["quick"]
    assert max(*STEP_MULTIPLES, *EXTRA_STEP_MULTIPLES) == 16
    attempts = len(budget.relearn_rates) + 2 + 4 + 8 + 16
    tokenizer = open_checkpoint(world.original).tokenizer
    main_prompts = [item.prompt for item in read_items(world.forget)]
    half = sum(map(len, encode(tokenizer, main_prompts).ids)) / 2
    for references in ((), (world.twin,)):
        with_it, without = (
            planned(world, axes=("behaviour", *axes), reference=references)
            for axes in (("causal_depth", "relearning"), ("causal_depth",))
        )
        # Two halves of the candidate and of each reference, one of the planted suppression.
        runs = 2 * (1 + len(references)) + 1
        assert with_it.taught_tokens - without.taught_tokens == int(
            runs * attempts * budget.relearn_steps * half
        )


@pytest.mark.parametrize("axis", [name for name in AXES if name != "behaviour"])
def test_every_axis_says_what_it_costs(world, axis):
    alone = planned(world, axes=("behaviour",))
    beside = planned(world, axes=("behaviour", axis))
    planting = 3 * beside.taught_tokens * 2 * beside.parameters
    assert beside.work > alone.work + planting
    assert beside.models == alone.models + 1


@pytest.fixture(scope="module")
def digits(digits_zoo):
    return digits_zoo[0].world


@pytest.fixture(scope="module")
def images(digits, digits_zoo):
    """Plans an audit of the digits world."""
    candidate = next(each.model for each in digits_zoo if each.kind == "head_only")

    def make(**changed):
        files = (digits.forget_test, digits.retain_test)
        return plan(digits.original, candidate, *files, **changed)

    return make


def test_images_are_planned_in_images(digits, images):
    alone = images(axes=("behaviour",))
    everything = images()
    assert alone.unit == everything.unit == "images"
    assert any(amount.endswith(" images") for _, amount in everything.rows())
    assert not any("tokens" in amount for _, amount in everything.rows())
    # An image is one row and one unit; of never-taught ones twice as many are invented.
    forget, retain = (len(digits.images(each)) for each in ("forget_test", "retain_test"))
    most = BUDGETS["quick"].retain_entities
    known = min(forget, most) + min(retain, 4 * most)
    assert alone.questions == alone.tokens == known + max(2 * min(forget, most), 96)
    given = images(axes=("behaviour",), never_taught=digits.never_taught)
    assert given.questions == known + len(digits.images("never_taught"))
    # Axes read states of images batch by batch and keep none.
    assert everything.disk == everything.probed == 0
    assert alone.work < images(axes=("behaviour", "decodability")).work < everything.work
    assert alone.taught_tokens == 0 < everything.taught_tokens
    # No gradients of the edit are taken of image models.
    assert alone.memory < images(axes=("behaviour", "causal_depth")).memory < everything.memory
    beside = images(reference=(digits.original,))
    assert beside.models == everything.models + 1


def test_the_work_of_an_image_is_that_of_its_matrix_products(digits, images):
    """A convolution uses a weight once a position, unlike the two operations a parameter."""
    model = open_checkpoint(digits.original).load()
    counted = []

    def count(layer: nn.Conv2d | nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
        positions = output[0].numel() // layer.weight.shape[0]
        counted.append(2 * positions * layer.weight.numel())

    for each in model.modules():
        if isinstance(each, nn.Conv2d | nn.Linear):
            each.register_forward_hook(count)
    pixels = digits.images("forget_test").pixels[:1]
    with torch.no_grad():
        model(pixels)
    found = images(axes=("behaviour",))
    assert found.work == pytest.approx(sum(counted) * found.tokens * found.models)


def test_images_of_a_language_model_are_not_planned(world, tmp_path):
    with pytest.raises(InputError, match="is not an image classifier"):
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
