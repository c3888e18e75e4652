"""The same names mean the same things in every family."""

import pytest
import torch
from torch import nn

from capture.network.hooks import record
from capture.network.sites import find_sites
from evidence.errors import InputError
from tests.helpers.model_families import HEADS, LAYERS, TEXT, WIDTH, Cnn, pixels, tiny

BLOCKS = (*TEXT, "vit")


def run(model, family, names):
    inputs = pixels() if family == "vit" else torch.tensor([[4, 8, 15, 16, 23, 42]])
    with torch.no_grad(), record(model, names) as got:
        output = model(inputs)
    return got, output


@pytest.mark.parametrize("family", BLOCKS)
def test_every_family_has_the_same_names(family):
    sites = find_sites(tiny(family))
    expected = {"embed"}
    for layer in range(LAYERS):
        kinds = {"resid", "attn", "mlp", "resid_pre", "resid_mid", "neurons", "pattern"}
        if family == "neox":  # attention and MLP read the same stream
            kinds.remove("resid_mid")
        expected |= {f"{kind}.{layer}" for kind in kinds}
        expected |= {f"head.{layer}.{head}" for head in range(HEADS)}
    if family != "bert":  # a body alone has no output layer
        expected |= {"final", "logits"}
    assert set(sites.names) == expected
    assert (sites.n_layers, sites.d_model, sites.n_heads) == (LAYERS, WIDTH, HEADS)
    assert sites.of("resid") == tuple(f"resid.{layer}" for layer in range(LAYERS))


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "vit"])
def test_the_stream_is_the_sum_of_what_was_added_to_it(family):
    # Pre-norm families: the identity fails if any of the three places is off.
    model = tiny(family)
    names = [n for n in find_sites(model).names if "head" not in n]
    got, _ = run(model, family, names)
    before = got["embed"]
    for layer in range(LAYERS):
        after = before + got[f"attn.{layer}"] + got[f"mlp.{layer}"]
        torch.testing.assert_close(got[f"resid.{layer}"], after)
        before = got[f"resid.{layer}"]


def test_the_stream_of_a_post_norm_family_is_normed_after_each_addition():
    model = tiny("bert")
    got, _ = run(model, "bert", find_sites(model).names)
    for layer, block in enumerate(model.get_submodule("encoder.layer").children()):
        before = got["embed"] if layer == 0 else got[f"resid.{layer - 1}"]
        first = block.get_submodule("attention.output.LayerNorm")
        middle = first(before + got[f"attn.{layer}"])
        after = block.get_submodule("output.LayerNorm")(middle + got[f"mlp.{layer}"])
        torch.testing.assert_close(got[f"resid.{layer}"], after)


@pytest.mark.parametrize("family", BLOCKS)
def test_heads_make_up_the_attention(family):
    model = tiny(family)
    sites = find_sites(model)
    got, _ = run(model, family, sites.names)
    for layer in range(LAYERS):
        heads = [got[f"head.{layer}.{head}"] for head in range(HEADS)]
        assert all(head.shape[-1] == WIDTH // HEADS for head in heads)
        projection = sites.resolve(f"attn.{layer}").module
        with torch.no_grad():
            expected = projection(torch.cat(heads, -1))
        torch.testing.assert_close(got[f"attn.{layer}"], expected)


@pytest.mark.parametrize("family", BLOCKS)
def test_the_stream_is_what_the_library_calls_hidden_states(family):
    model = tiny(family)
    names = ["embed", *find_sites(model).of("resid")]
    got, _ = run(model, family, names)
    inputs = pixels() if family == "vit" else torch.tensor([[4, 8, 15, 16, 23, 42]])
    with torch.no_grad():
        hidden = model(inputs, output_hidden_states=True).hidden_states
    # The last entry is taken after the final norm in some families.
    for name, expected in zip(names[:-1], hidden[:-1], strict=True):
        assert torch.equal(got[name], expected), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "vit"])
def test_logits_are_the_models_output(family):
    got, output = run(tiny(family), family, ["logits", "final"])
    # The image classifier scores one vector an image.
    assert torch.equal(got["logits"], output.logits)


def test_a_plain_network_is_cut_before_each_layer_with_weights():
    model, images = Cnn(), pixels()
    with torch.no_grad(), record(model, find_sites(model).names) as got:
        output = model(images)
        first = torch.relu(model.first(images))
        second = torch.relu(model.second(first))
        second = nn.functional.max_pool2d(second, 4).flatten(1)
    assert torch.equal(got["embed"], images)
    torch.testing.assert_close(got["resid.0"], first)
    torch.testing.assert_close(got["resid.1"], second)
    torch.testing.assert_close(got["resid.2"], torch.relu(model.hidden(second)))
    assert torch.equal(got["logits"], output)


def test_an_adapter_left_in_place_does_not_hide_the_places():
    from peft import LoraConfig, inject_adapter_in_model

    plain = find_sites(tiny("llama"))
    config = LoraConfig(target_modules=["q_proj", "o_proj", "down_proj"])
    adapted = find_sites(inject_adapter_in_model(config, tiny("llama")))
    assert set(adapted.names) == set(plain.names)
    for name in ("attn.1", "mlp.1"):
        assert adapted.resolve(name).module is not None
        assert "lora_" not in type(adapted.resolve(name).module).__name__
    projection = adapted.resolve("attn.1").module
    assert isinstance(projection.base_layer, nn.Linear)


def test_the_feed_forward_part_ends_where_the_width_is_that_of_the_stream():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(8, 8)

        def forward(self, x):
            return self.out(x)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention()
            self.down = nn.Linear(32, 8)
            self.up = nn.Linear(8, 32)

        def forward(self, x):
            x = x + self.attn(x)
            return x + self.down(torch.relu(self.up(x)))

    model = nn.Sequential(Block(), Block())
    assert find_sites(model).resolve("mlp.1").module is model[1].down


@pytest.mark.parametrize("name", ["resid.3", "resid", "head.0.4", "attn.-4", "x", ""])
def test_an_unknown_site_says_what_there_is(name):
    with pytest.raises(InputError, match="layers 0 to 2, heads 0 to 3"):
        find_sites(tiny("llama")).resolve(name)


def test_a_near_miss_is_pointed_out():
    with pytest.raises(InputError, match=r"Did you mean 'resid\.1'"):
        find_sites(tiny("llama")).resolve("residual.1")


def test_a_module_without_structure_is_refused():
    with pytest.raises(InputError, match="not understood"):
        find_sites(nn.Linear(3, 3))
