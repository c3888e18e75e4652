"""Patched passes: known answers, one row at a time by hand, and nothing left behind."""

import copy

import numpy as np
import pytest
import torch

from attribution.patching import cached_passes
from attribution.patching.cross_model import (
    DonorStates,
    patch_positions,
    read_states,
    score_patched,
)
from capture.data.sequences import Sequences
from capture.network.hooks import count_hooks
from capture.network.sites import find_sites
from capture.scoring.answers import score_answers
from evidence.errors import InputError
from tests.helpers.model_families import LAYERS, VOCABULARY, tiny

FAMILIES = ("llama", "gpt2", "neox")
SITES = tuple(f"resid.{layer}" for layer in range(LAYERS))


def rows(seed=0):
    """Rows of mixed length in no order, with one to four answer tokens."""
    rng = np.random.default_rng(seed)
    shape = [(5, 1), (12, 3), (3, 1), (9, 2), (9, 4), (6, 1), (4, 2)]
    ids = tuple(tuple(rng.integers(3, VOCABULARY, size=length).tolist()) for length, _ in shape)
    return Sequences(ids, tuple(length - answer for length, answer in shape))


def edited(model, layer):
    """A copy with the weights of one block changed."""
    other = copy.deepcopy(model)
    block = other.get_submodule(
        next(
            name
            for name, _ in other.named_modules()
            if name.endswith(("layers", "h")) and "." in name
        )
    )[layer]
    with torch.no_grad():
        for weight in block.parameters():
            weight += 0.3 * torch.randn(weight.shape)
    return other


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_of_the_last_block_loses_exactly_nothing_before_it(family):
    model = tiny(family)
    other = edited(model, LAYERS - 1)
    sequences = rows()
    donors = {
        "own": read_states(model, sequences, SITES),
        "edited": read_states(other, sequences, SITES),
    }
    found = score_patched(model, sequences, donors)
    for site in SITES[:-1]:
        own, theirs = found["own"][site].logprob, found["edited"][site].logprob
        assert np.array_equal(own, theirs)
    last = found["edited"][SITES[-1]].logprob
    # After the last block only norm and head are left, and those are the same.
    assert np.allclose(last, score_answers(other, sequences).logprob, atol=1e-4)
    assert np.abs(last - found["own"][SITES[-1]].logprob).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("places", ["predicting", "all", -1])
def test_a_model_patched_with_its_own_states_is_itself(family, places):
    model, sequences = tiny(family), rows()
    sites = [*SITES, "attn.1", "mlp.0", "head.1.2"]
    states = read_states(model, sequences, sites, places)
    clean = score_answers(model, sequences)
    for site, each in score_patched(model, sequences, {"own": states}, places)["own"].items():
        assert np.allclose(each.logprob, clean.logprob, atol=1e-4), site
        assert np.array_equal(each.greedy, clean.greedy)
        assert np.allclose(each.mean_logprob, clean.mean_logprob, atol=1e-4)


def by_hand(model, other, sequences, site, first):
    """Log-probabilities row by row, unpadded, with a hook of this test's own."""
    place = find_sites(model).resolve(site)
    theirs = find_sites(other).resolve(site)
    result = []
    for ids, start in zip(sequences.ids, sequences.answer_start, strict=True):
        inputs = torch.tensor([ids])
        kept = {}

        def keep(module, args, output, kept=kept):
            kept["value"] = (output[0] if isinstance(output, tuple) else output).clone()

        def put(module, args, output, kept=kept, start=start):
            plain = not isinstance(output, tuple)
            new = (output if plain else output[0]).clone()
            cut = first(start)
            new[:, cut:-1] = kept["value"][:, cut:-1]
            return new if plain else (new, *output[1:])

        with torch.no_grad():
            handle = theirs.module.register_forward_hook(keep)
            other(inputs)
            handle.remove()
            handle = place.module.register_forward_hook(put)
            logits = model(inputs).logits[0].log_softmax(-1)
            handle.remove()
        result.append(sum(float(logits[at - 1, ids[at]]) for at in range(start, len(ids))))
    return np.array(result)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("places", "first"), [("predicting", lambda start: start - 1), ("all", lambda _: 0)]
)
@pytest.mark.parametrize("site", ["resid.0", "resid.2", "mlp.1", "attn.1"])
def test_every_row_agrees_with_a_pass_by_hand(family, places, first, site):
    model, other, sequences = tiny(family), tiny(family, seed=1), rows()
    states = read_states(other, sequences, [site], places, batch_tokens=20)
    found = score_patched(model, sequences, {"other": states}, places, batch_tokens=24)
    expected = by_hand(model, other, sequences, site, first)
    assert np.allclose(found["other"][site].logprob, expected, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_comes_before_is_run_once_and_changes_nothing(family, monkeypatch):
    model, sequences = tiny(family), rows()
    donors = {
        "a": read_states(tiny(family, seed=1), sequences, SITES),
        "b": read_states(tiny(family, seed=2), sequences, SITES),
    }
    positions = []
    first = model.get_submodule(
        next(name for name, _ in model.named_modules() if name.endswith(".0"))
    )
    forward = first.forward

    def counted(*args, **named):
        positions.append((args[0] if args else named["hidden_states"]).shape[:2].numel())
        return forward(*args, **named)

    monkeypatch.setattr(first, "forward", counted)
    resumed = score_patched(model, sequences, donors, watch=[4, 9])
    cheap, positions[:] = sum(positions), []
    monkeypatch.setattr(cached_passes, "supports_prefix_cache", lambda model: False)
    whole = score_patched(model, sequences, donors, watch=[4, 9])
    assert cheap < 0.8 * sum(positions)
    for name in donors:
        for site in SITES:
            one, other = resumed[name][site], whole[name][site]
            assert np.allclose(one.logprob, other.logprob, atol=1e-4)
            assert np.array_equal(one.greedy, other.greedy)
            assert np.allclose(one.watched, other.watched, atol=1e-4)


def test_states_of_another_prompt_are_put_into_this_one():
    model, sequences = tiny("llama"), rows()
    other = rows(seed=5)
    swapped = Sequences(
        tuple(
            (*strange[:start], *own[start:])
            for strange, own, start in zip(
                other.ids, sequences.ids, sequences.answer_start, strict=True
            )
        ),
        sequences.answer_start,
    )
    states = read_states(model, swapped, SITES)
    found = score_patched(model, sequences, {"swapped": states})["swapped"]
    # After the last block nothing but the head looks at the states.
    expected = score_answers(model, swapped).logprob
    assert np.allclose(found[SITES[-1]].logprob, expected, atol=1e-4)
    assert np.abs(found[SITES[0]].logprob - expected).max() > 0.01


def test_the_last_layer_is_read_before_the_last_norm():
    model, sequences = tiny("llama"), rows()
    states = read_states(model, sequences, SITES)
    ids = torch.tensor([sequences.ids[1]])
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    at = sequences.answer_start[1] - 1
    normed = output.hidden_states[-1][0, at]
    before = torch.tensor(states.values[SITES[-1]][1, 0])
    assert not torch.allclose(normed, before, atol=1e-3)
    assert torch.allclose(normed, model.model.norm(before), atol=1e-4)


def test_norms_are_matched_and_directions_kept():
    sequences = rows()
    own = read_states(tiny("llama"), sequences, SITES)
    large = DonorStates({site: 7 * value for site, value in own.values.items()}, own.mask)
    back = large.with_norms_of(own)
    for site in SITES:
        assert np.allclose(back.values[site], own.values[site], atol=1e-5)
        assert np.allclose(large.norms(site)[own.mask], 7 * own.norms(site)[own.mask])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_hook_is_left_behind(family, monkeypatch):
    model, sequences = tiny(family), rows()
    states = read_states(model, sequences, SITES)
    score_patched(model, sequences, {"own": states})
    assert count_hooks(model) == 0
    wide = DonorStates(
        {site: np.zeros((*value.shape[:2], 3)) for site, value in states.values.items()},
        states.mask,
    )
    with pytest.raises(RuntimeError):
        score_patched(model, sequences, {"wide": wide})
    assert count_hooks(model) == 0


def test_what_does_not_fit_is_refused():
    model, sequences = tiny("llama"), rows()
    states = read_states(model, sequences, SITES)
    with pytest.raises(InputError, match="do not fit the rows"):
        score_patched(model, sequences[[0, 1]], {"own": states})
    with pytest.raises(InputError, match="no site"):
        read_states(model, sequences, ["resid.99"])
    with pytest.raises(InputError, match="no token at the position"):
        patch_positions(sequences, -3)
    with pytest.raises(InputError, match="positions to patch"):
        patch_positions(sequences, "somewhere")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="a prompt and an answer"):
        patch_positions(Sequences(((1, 2),), (2,)), "all")
