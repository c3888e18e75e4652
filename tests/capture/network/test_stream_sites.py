"""Sites that other libraries name too: the stream before and within a block, neurons, patterns."""

import copy
from functools import partial

import numpy as np
import pytest
import torch

from capture.activations.capture import capture_activations
from capture.data.sequences import Sequences, pad
from capture.network.hooks import patch, record
from capture.network.sites import find_sites
from evidence.errors import InputError
from tests.helpers.activation_peers import bridged
from tests.helpers.model_families import HEADS, LAYERS, tiny

ROWS = Sequences(((5, 6, 7, 8), (9, 3), (11, 12, 13, 14, 15, 16, 2)), (3, 1, 6))
CAUSAL = ("llama", "gpt2", "neox")


def own_sites(model):
    kinds = ("resid_pre", "resid_mid", "neurons", "pattern")
    return [name for kind in kinds for name in find_sites(model).of(kind)]


@pytest.mark.parametrize("family", CAUSAL)
def test_they_are_what_transformer_lens_has_under_its_names(family):
    model = tiny(family)
    bridge = bridged(copy.deepcopy(model))
    names = own_sites(model)
    hooks = {
        name: {
            "resid_pre": "blocks.{}.hook_resid_pre",
            "resid_mid": "blocks.{}.hook_resid_mid",
            "neurons": "blocks.{}.mlp.hook_post",
            "pattern": "blocks.{}.attn.hook_pattern",
        }[name.split(".")[0]].format(name.split(".")[1])
        for name in names
    }
    batch = pad(ROWS)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)
        with record(model, names) as got:
            model(**batch.model_inputs)
    real = batch.attention_mask.bool()
    compared = 0
    for name, hook in hooks.items():
        if hook not in cache:  # the bridge has no neurons in a gated MLP
            continue
        compared += 1
        ours, theirs = got[name], cache[hook]
        if name.startswith("pattern"):
            ours, theirs = ours.transpose(1, 2), theirs.transpose(1, 2)
        torch.testing.assert_close(ours[real], theirs[real], atol=2e-5, rtol=1e-4)
        by_their_name = capture_activations(model, ROWS, [hook], "last").site(hook)
        assert np.array_equal(
            by_their_name, capture_activations(model, ROWS, [name], "last").values[0]
        )
    assert compared >= 2 * LAYERS


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", CAUSAL)
def test_captured_patterns_are_those_of_each_row_alone(family, padding):
    model = tiny(family)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    several = capture_activations(model, ROWS, ["pattern.1"], "all", padding=padding)
    last = capture_activations(model, ROWS, ["pattern.1"], "last", padding=padding)
    mean = capture_activations(model, ROWS, ["pattern.1"], "mean", padding=padding)
    assert last.site("pattern.1").shape == (3, HEADS, 7)
    for row, ids in enumerate(ROWS.ids):
        with torch.no_grad():
            weights = eager(torch.tensor([ids]), output_attentions=True).attentions[1][0]
        by_query = np.zeros((7, HEADS, 7), np.float32)
        by_query[: len(ids), :, : len(ids)] = weights.transpose(0, 1)
        near = partial(np.testing.assert_allclose, atol=1e-5)
        near(several.site("pattern.1")[row], by_query)
        near(last.site("pattern.1")[row], by_query[len(ids) - 1])
        near(mean.site("pattern.1")[row], by_query[: len(ids)].mean(0))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_the_stream_within_a_block_is_its_input_plus_attention_and_an_edit_moves_it(family):
    model = tiny(family)
    batch = pad(ROWS)
    shift = torch.linspace(-1, 1, find_sites(model).d_model)

    def run(*names):
        with torch.no_grad(), record(model, names) as got:
            output = model(**batch.model_inputs)
        return [*(got[name] for name in names), output[0]]

    before, middle, added, _ = run("resid_pre.1", "resid_mid.1", "attn.1")
    assert torch.equal(middle, before + added)
    with patch(model, {"resid_mid.1": lambda value: value + shift}):
        moved, after, by_middle = run("resid_mid.1", "resid.1")
    torch.testing.assert_close(moved, middle + shift)
    with patch(model, {"attn.1": lambda value: value + shift}):
        expected, by_attention = run("resid.1")
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_middle, by_attention, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CAUSAL)
def test_an_edited_pattern_is_what_the_values_are_weighted_with(family):
    """Attention to the first token alone gives every position the head outputs of the first."""
    model = tiny(family)
    ids = torch.tensor([[5, 6, 7, 8], [9, 3, 1, 2]])

    def first_only(pattern):
        return torch.zeros_like(pattern).index_fill(-1, torch.tensor([0]), 1.0)

    heads = [f"head.1.{head}" for head in range(HEADS)]
    before = model.config._attn_implementation
    with torch.no_grad(), record(model, heads) as plain:
        model(ids)
    plain = {name: value.clone() for name, value in plain.items()}
    with torch.no_grad(), patch(model, {"pattern.1": first_only}), record(model, heads) as got:
        model(ids)
    for name in heads:
        first = plain[name][:, :1].expand_as(got[name])
        torch.testing.assert_close(got[name], first, atol=1e-5, rtol=1e-4)
    assert model.config._attn_implementation == before


def test_a_pattern_has_gradients():
    model = tiny("llama")
    with record(model, ["pattern.0"]) as got:
        output = model(torch.tensor([[5, 6, 7]])).logits[0, -1, 3]
    (gradient,) = torch.autograd.grad(output, got["pattern.0"])
    assert gradient.shape == (1, HEADS, 3, 3) and bool(gradient.abs().sum() > 0)


def test_layers_count_from_the_last_and_keep_the_name_they_were_asked_by():
    model = tiny("llama")
    states = capture_activations(model, ROWS, ["resid.-1", f"head.-1.{-1}"], "last")
    expected = capture_activations(
        model, ROWS, [f"resid.{LAYERS - 1}", f"head.{LAYERS - 1}.{HEADS - 1}"], "last"
    )
    assert states.sites == ("resid.-1", "head.-1.-1")
    for asked, name in zip(states.sites, expected.sites, strict=True):
        assert np.array_equal(states.site(asked), expected.site(name))


@pytest.mark.parametrize(
    ("family", "site", "reason"),
    [("neox", "resid_mid.0", "reads the sum"), ("bloom", "pattern.0", "does not give its weights")],
)
def test_a_site_that_a_family_lacks_is_refused_with_the_reason(family, site, reason):
    with pytest.raises(InputError, match=reason):
        find_sites(tiny(family)).resolve(site)


def test_all_positions_of_ragged_rows_come_padded_or_nested():
    model = tiny("llama")
    states = capture_activations(model, ROWS, ["resid.1"], "all")
    assert states.site("resid.1").shape[:2] == (3, 7)
    nested = states.nested("resid.1")
    for row, (ids, values) in enumerate(zip(ROWS.ids, nested.unbind(), strict=True)):
        alone = capture_activations(model, ROWS[row], ["resid.1"], range(len(ids)))
        np.testing.assert_allclose(values.numpy(), alone.site("resid.1")[0], atol=1e-5)
        assert not states.site("resid.1")[row, len(ids) :].any()
    with pytest.raises(InputError, match="one position per item"):
        capture_activations(model, ROWS, ["resid.1"]).nested("resid.1")
