"""Clamps written into weights: what they compute, what they touch, what they leave."""

import pytest
import torch
from torch.testing import assert_close

from capture.checkpoints.open import open_checkpoint
from capture.data.sequences import Sequences, pad
from capture.network.structure import down_projection, find_blocks
from capture.scoring.answers import score_answers
from evidence.errors import ExhumeError, InputError
from testbeds.edits import sae_clamp
from testbeds.edits.sae_clamp import (
    MIN_RELEASED,
    BlockStates,
    Clamp,
    accuracy_without_units,
    fit_clamp,
    record_states,
    write_clamp_,
)
from testbeds.worlds.random_models import FAMILIES, random_model
from testbeds.zoo.build import _first_in_range
from testbeds.zoo.kinds import KINDS

ROWS = Sequences(tuple((1, place, 3, 4) for place in range(5, 11)), (3,) * 6)
UNITS = torch.tensor([0, 7, 30])


@pytest.fixture(scope="module")
def built(ground):
    """The small Llama world's clamped model, its clamp and its strength."""
    clamps, strengths = [], []
    fitted, write_clamp = sae_clamp.fit_clamp, sae_clamp.write_clamp_

    def fit(*given):
        clamps.append(fitted(*given))
        return clamps[-1]

    def write(*given):
        strengths.append(given[-1])
        write_clamp(*given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sae_clamp, "fit_clamp", fit)
        patched.setattr(sae_clamp, "write_clamp_", write)
        model = _first_in_range(KINDS["sae_clamp"], ground)[0]
    return model, clamps[-1], strengths[-1]


@pytest.fixture(scope="module")
def made(built):
    return built[0]


def tiny(family):
    torch.manual_seed(0)
    return random_model(family, vocabulary=40, width=24, layers=2, heads=2, pad=0)


def logprobs(model, rows):
    """Of every next token inside the prompts and after them, (state, token)."""
    batch = pad(rows)
    with torch.no_grad():
        found = model(**batch.model_inputs).logits.log_softmax(-1)
    return found[batch.attention_mask.bool() & ~batch.answer_mask]


def divergence(log_p, log_q):
    return float((log_p.exp() * (log_p - log_q)).sum(1).mean())


def hook(model, place, clamp, multiple):
    """The clamp as it is published: a hook, at the feed-forward part."""

    def change(_module, inputs, output):
        return output + clamp.change(inputs[0], multiple)

    return find_blocks(model)[place].mlp.register_forward_hook(change)


def silence(model, place, units):
    def change(_module, inputs):
        return (inputs[0].index_fill(-1, units, 0.0),)

    down = down_projection(find_blocks(model)[place])
    return down.register_forward_pre_hook(change)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_units_compute_what_the_hook_does(family):
    """Weights drawn at random, and fewer states than inputs: ``one`` is exact."""
    model = tiny(family)
    seen = record_states(model, 0, ROWS)
    read, write = torch.randn(2, 3, 24)
    clamp = Clamp(read, write, sae_clamp._gates(read, seen.read))
    before = logprobs(model, ROWS)
    handles = [hook(model, 0, clamp, 4.0), silence(model, 0, UNITS)]
    hooked = logprobs(model, ROWS)
    for handle in handles:
        handle.remove()
    write_clamp_(model, 0, UNITS, clamp, 4.0)
    after = logprobs(model, ROWS)
    assert_close(after, hooked, rtol=0, atol=5e-3)
    assert (after - before).abs().max() > 0.1


def test_the_checkpoint_is_near_the_original_with_a_hook(built, ground):
    """To rounding but for the units that were given up, which say little."""
    model, clamp, multiple = built
    original = ground.original.load()
    place = len(find_blocks(original)) // 2
    units = record_states(original, place, ground.all_rows(ground.retain)).unit_norm.argsort()
    for items, moved in ((ground.forget, 1.0), (ground.retain, 0.0)):
        rows = ground.all_rows(items)
        plain = logprobs(original, rows)
        handles = [hook(original, place, clamp, multiple)]
        hooked = logprobs(original, rows)
        handles.append(silence(original, place, units[: len(clamp.read)]))
        spared = logprobs(original, rows)
        for handle in handles:
            handle.remove()
        found = logprobs(model, rows)
        assert_close(found, spared, rtol=0, atol=0.1)
        assert divergence(hooked, found) < 0.02
        assert divergence(plain, hooked) >= moved


def test_it_is_silent_and_keeps_the_rest(made, ground):
    assert KINDS["sae_clamp"].state == "suppressed"
    for items, least, most in ((ground.forget, 0, 0.1), (ground.retain, 0.9, 1)):
        exact_match = float(score_answers(made, ground.all_rows(items)).greedy.mean())
        assert least <= exact_match <= most


def test_some_hidden_units_of_one_block_are_all_that_changed(made, ground):
    before, after = ground.original.load().state_dict(), made.state_dict()
    moved = {
        name: (before[name] != after[name]).nonzero()
        for name in before
        if not torch.equal(before[name], after[name])
    }
    place = len(find_blocks(made)) // 2
    names = ("gate_proj", "up_proj", "down_proj")
    assert list(moved) == [f"model.layers.{place}.mlp.{name}.weight" for name in names]
    gate, up, down = (
        each[:, axis].unique() for each, axis in zip(moved.values(), (0, 0, 1), strict=True)
    )
    assert torch.equal(gate, up) and torch.equal(gate, down)
    assert len(gate) <= sae_clamp.MAX_UNIT_SHARE * ground.config.width * 4


def test_the_states_it_reads_are_the_originals(made, ground):
    rows = ground.all_rows(ground.forget)
    place = len(find_blocks(made)) // 2
    ours, theirs = (record_states(each, place, rows) for each in (made, ground.original.load()))
    assert torch.equal(ours.read, theirs.read)
    assert not torch.equal(ours.output, theirs.output)


def test_without_its_units_it_says_the_answers(made, ground):
    original, place = ground.original.load(), len(find_blocks(made)) // 2
    name = f"model.layers.{place}.mlp.gate_proj.weight"
    units = (made.get_parameter(name) != original.get_parameter(name)).any(1)
    rows = ground.all_rows(ground.forget)
    assert accuracy_without_units(made, place, units.nonzero()[:, 0], rows) >= MIN_RELEASED
    assert accuracy_without_units(made, place, torch.arange(0), rows) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_clamps_work_in_every_family(ground_of, family, tmp_path):
    ground = ground_of(family)
    model, shown = _first_in_range(KINDS["sae_clamp"], ground)
    assert shown["said"] <= 0.1 and shown["kept"] >= 0.9
    model.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    ground.tokenizer.save_pretrained(tmp_path)
    rows = ground.all_rows(ground.forget)
    reloaded = open_checkpoint(tmp_path).load()
    assert torch.equal(logprobs(reloaded, rows), logprobs(model, rows))
    place = len(find_blocks(model)) // 2
    ours, theirs = (record_states(each, place, rows) for each in (model, ground.original.load()))
    assert torch.equal(ours.read, theirs.read)


def test_states_that_others_share_are_left_out():
    model = tiny("gpt2")
    others = Sequences(((1, 5, 9, 4),), (3,))
    # Two beginnings of the first row are known, one of the others.
    assert len(record_states(model, 0, ROWS, others).read) == 1 + 5 * 2
    assert len(record_states(model, 0, ROWS).read) == 6 * 3


def test_what_is_not_told_apart_gives_no_clamp():
    torch.manual_seed(0)
    states = BlockStates(torch.randn(50, 8), torch.randn(50, 8), torch.ones(16))
    with pytest.raises(ExhumeError, match="no latent fires on the forget set only"):
        fit_clamp(states, states, 4, 5, 0)


def test_units_that_cannot_be_spared_make_no_model(ground, monkeypatch):
    monkeypatch.setattr(sae_clamp, "TRAINING_STEPS", (5,))
    monkeypatch.setattr(sae_clamp, "MAX_FIRING_RATE", 1.0)
    monkeypatch.setattr(sae_clamp, "accuracy_without_units", lambda *given: 0.5)
    with pytest.raises(ExhumeError, match="cannot spare"):
        next(KINDS["sae_clamp"].edit(ground))


def test_another_family_is_refused():
    model = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(2, 2))]))
    with pytest.raises(InputError, match="no clamp can be written"):
        record_states(model, 0, ROWS)
