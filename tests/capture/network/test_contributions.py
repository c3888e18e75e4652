"""What each part adds to the stream is at its site, in every shape of block."""

import copy

import pytest
import torch

from capture.activations.capture import capture_activations
from capture.data.sequences import Sequences
from capture.network.contributions import CONTRIBUTIONS
from capture.network.hooks import patch, record
from capture.network.sites import find_sites, neuron_projection
from evidence.errors import InputError
from tests.helpers.model_families import ADDED, HYBRIDS, LAYERS, TOWERS, WIDTH, tiny

IDS = torch.tensor([[4, 8, 15, 16, 23, 42, 5], [9, 7, 11, 30, 21, 12, 50]])
PIXELS = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
FAMILIES = (*ADDED, *HYBRIDS, *TOWERS)


def run(model, sites, names, edits=None):
    given = PIXELS if "Image" in type(model).__name__ else IDS
    with (
        torch.no_grad(),
        patch(model, edits or {}, known_sites=sites),
        record(model, names, known_sites=sites) as got,
    ):
        output = model(given)
    return got, output


def added_in(sites, layer):
    return [f"{k}.{layer}" for k in CONTRIBUTIONS if f"{k}.{layer}" in sites.places]


def assert_steps(sites, got):
    """Where the width changes between two blocks, something lies in between."""
    before = got["embed"]
    for layer in range(sites.n_layers):
        after = got[f"resid.{layer}"]
        if before.shape == after.shape:
            total = sum(got[name] for name in added_in(sites, layer))
            torch.testing.assert_close(after, before + total)
        before = after


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_sum_to_the_step_whichever_is_removed(family):
    model = tiny(family)
    sites = find_sites(model)
    parts = [name for name in sites.names if name.split(".")[0] in CONTRIBUTIONS]
    names = ["embed", *sites.of("resid"), *parts]
    plain, _ = run(model, sites, names)
    assert_steps(sites, plain)
    for name in parts:
        got, _ = run(model, sites, names, {name: torch.zeros_like})
        assert not got[name].any()
        assert_steps(sites, got)
        resid = f"resid.{name.split('.')[1]}"
        assert not torch.equal(got[resid], plain[resid])
    for name in [each for each in parts if each.startswith("mlp")]:
        # It is the last to be added, or beside attention: nothing else in its block changes.
        layer = int(name.split(".")[1])
        if family != "granite-shared":
            got, _ = run(model, sites, names, {name: lambda value: value + 0.5})
            resid = f"resid.{layer}"
            torch.testing.assert_close(got[resid], plain[resid] + 0.5, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", HYBRIDS)
def test_parts_are_named_by_what_they_are(family):
    sites = find_sites(tiny(family))
    kinds = [[name.split(".")[0] for name in added_in(sites, n)] for n in range(sites.n_layers)]
    assert kinds == [each.split() for each in HYBRIDS[family]]
    assert not sites.refused


@pytest.mark.parametrize("family", TOWERS)
def test_blocks_of_a_vision_language_model_are_those_of_its_language_model(family):
    model = tiny(family)
    sites = find_sites(model)
    assert sites.n_layers == TOWERS[family] == model.config.text_config.num_hidden_layers
    inside = set(model.get_decoder().modules())
    assert {sites.places[name].module for name in sites.of("resid")} <= inside


@pytest.mark.parametrize("family", [*ADDED, "mamba", "jamba", "llava"])
def test_logits_are_what_the_model_returns(family):
    model = tiny(family)
    sites = find_sites(model)
    got, output = run(model, sites, ["logits"])
    torch.testing.assert_close(got["logits"], output.logits)
    _, edited = run(model, sites, ["embed"], {"logits": lambda value: 0.5 * value})
    torch.testing.assert_close(edited.logits, 0.5 * output.logits, atol=1e-5, rtol=1e-4)
    rows = Sequences(tuple(map(tuple, IDS.tolist())), (7, 7))
    captured = capture_activations(model, rows, ["logits"], [0, 3, 6]).site("logits")
    expected = output.logits[:, [0, 3, 6]]
    torch.testing.assert_close(torch.from_numpy(captured), expected, atol=1e-4, rtol=1e-4)


def test_logits_beyond_a_soft_cap_are_refused():
    model = tiny("gemma2")
    sites = find_sites(model)
    assert sites.places["logits"].cap == model.config.final_logit_softcapping
    with pytest.raises(InputError, match="exceeds the model's soft cap"):
        run(model, sites, ["embed"], {"logits": lambda value: value + 40})


def test_the_scale_of_granite_is_that_of_its_configuration():
    sites = find_sites(tiny("granite"))
    assert sites.places["attn.1"].factor == sites.places["mlp.0"].factor == 0.22
    assert sites.places["logits"].factor == 1 / 8
    with pytest.raises(InputError, match="is changed before it is added"):
        neuron_projection(sites, 0)


@pytest.mark.parametrize("family", ["opt", "llama4"])
def test_rows_that_lie_one_after_another_have_their_positions(family):
    model = tiny(family)
    rows = Sequences(((5, 6, 7), (5, 9, 11)), (3, 3))
    got = capture_activations(model, rows, ["mlp.1", "resid.1"], [0, 1, 2])
    assert got.site("mlp.1").shape == got.site("resid.1").shape == (2, 3, WIDTH)
    sites = find_sites(model)
    plain, _ = run(model, sites, ["mlp.1"])
    with torch.no_grad(), patch(model, {"mlp.1": torch.zeros_like}, positions=[2]):
        with record(model, ["mlp.1"]) as edited:
            model(IDS)
    assert not edited["mlp.1"][:, 2].any()
    assert torch.equal(edited["mlp.1"][:, :2], plain["mlp.1"][:, :2])


def test_an_unset_scale_of_a_block_is_refused_and_a_trained_one_too():
    model = tiny("beit")
    assert find_sites(model).refused.keys() >= {"attn", "mlp"}
    trained = copy.deepcopy(model)
    trained.config.attention_probs_dropout_prob = 0.25  # looked at afresh
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lambda" in name:
                parameter.uniform_(0.5, 1.5)
    assert find_sites(trained).refused.keys() >= {"attn", "mlp"}


def test_heads_of_a_fused_projection_are_those_of_the_output():
    model = tiny("phi3")
    sites = find_sites(model)
    assert sites.places["head.1.0"].module is model.model.layers[1].self_attn.o_proj
    names = ["attn.1"]
    plain, _ = run(model, sites, names)
    alone = {}
    for removed in (["head.1.0"], ["head.1.2"], ["head.1.0", "head.1.2"]):
        got, _ = run(model, sites, names, dict.fromkeys(removed, torch.zeros_like))
        alone["+".join(removed)] = got["attn.1"] - plain["attn.1"]
    both = alone.pop("head.1.0+head.1.2")
    torch.testing.assert_close(sum(alone.values()), both)
    assert LAYERS == sites.n_layers
