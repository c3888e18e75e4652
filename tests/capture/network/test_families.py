"""In every family sites are what they say, or are refused in a sentence."""

import copy
import inspect

import pytest
import torch
from torch import nn

from capture.network.hooks import count_hooks, record
from capture.network.sites import find_image_sites, find_sites, neuron_projection
from capture.network.structure import linear_shape
from evidence.errors import InputError
from tests.helpers.model_families import (
    ADDED,
    HEADS,
    LAYERS,
    NORMED,
    NOT_UNDERSTOOD,
    STREAM_ALONE,
    WIDTH,
    pixels,
    tiny,
)

IDS = torch.tensor([[4, 8, 15, 16, 23, 42]])
# RWKV's hidden states in the library leave out the embedding.
UNDERSTOOD = (*ADDED, *NORMED, "bloom-post", "beit")


def seen(model, names):
    reads_images = "pixel_values" in inspect.signature(model.forward).parameters
    with torch.no_grad(), record(model, names) as got:
        output = model(pixels() if reads_images else IDS, output_hidden_states=True)
    return got, output


@pytest.mark.parametrize("family", UNDERSTOOD)
def test_the_stream_is_what_the_library_calls_hidden_states(family):
    model = tiny(family)
    sites = find_sites(model)
    assert (sites.n_layers, sites.d_model, sites.n_heads) == (LAYERS, WIDTH, HEADS)
    got, output = seen(model, ["embed", *sites.of("resid")])
    # The last entry is taken after the final norm in some families.
    for name, expected in zip(got, output.hidden_states[:-1], strict=False):
        torch.testing.assert_close(got[name], expected, msg=name)
    assert len(output.hidden_states) == LAYERS + 1


@pytest.mark.parametrize("family", ADDED)
def test_what_is_added_is_the_step_of_the_stream(family):
    model = tiny(family)
    sites = find_sites(model)
    assert not sites.refused
    got, _ = seen(model, [name for name in sites.names if "head" not in name])
    before = got["embed"]
    for layer in range(LAYERS):
        after = before + got[f"attn.{layer}"] + got[f"mlp.{layer}"]
        torch.testing.assert_close(got[f"resid.{layer}"], after)
        # It is not the sum because one of them is nothing.
        assert min(got[f"{k}.{layer}"].norm() for k in ("attn", "mlp")) > 1e-3
        before = got[f"resid.{layer}"]


@pytest.mark.parametrize("family", [*ADDED, *NORMED, "bloom-post", "beit"])
def test_heads_are_what_the_projection_reads(family):
    model = tiny(family)
    sites = find_sites(model)
    got, _ = seen(model, [name for name in sites.names if name.startswith("head.")])
    for layer in range(LAYERS):
        heads = [got[f"head.{layer}.{head}"] for head in range(HEADS)]
        assert len({head.shape for head in heads}) == 1
        shape = linear_shape(sites.places[f"head.{layer}.0"].module)
        assert shape == (sum(head.shape[-1] for head in heads), WIDTH)


@pytest.mark.parametrize("family", NORMED)
def test_where_the_stream_is_normed_after_additions_what_is_added_is_found(family):
    model = tiny(family)
    got, _ = seen(model, find_sites(model).names)
    blocks, norms = {
        "openai-gpt": ("transformer.h", ("ln_1", "ln_2")),
        "distilbert": ("transformer.layer", ("sa_layer_norm", "output_layer_norm")),
        "electra": ("encoder.layer", ("attention.output.LayerNorm", "output.LayerNorm")),
    }[family]
    before = got["embed"]
    for layer, block in enumerate(model.get_submodule(blocks).children()):
        first, second = (block.get_submodule(name) for name in norms)
        middle = first(before + got[f"attn.{layer}"])
        after = second(middle + got[f"mlp.{layer}"])
        torch.testing.assert_close(got[f"resid.{layer}"], after)
        before = after


@pytest.mark.parametrize("family", STREAM_ALONE)
def test_where_nothing_gives_what_is_added_its_sites_are_refused(family):
    model = tiny(family)
    sites = find_sites(model)
    assert not [n for n in sites.names if n.split(".")[0] in ("attn", "mlp")]
    for name in ("attn.1", "mlp.0"):
        message = f"no site '{name}': in block 0 of {type(model).__name__} no module"
        with pytest.raises(InputError, match=message):
            sites.resolve(name)
    assert "attn.0" not in sites.names


@pytest.mark.parametrize("family", NOT_UNDERSTOOD)
def test_other_structures_are_refused_in_one_sentence(family):
    model = tiny(family)
    with pytest.raises(InputError, match=NOT_UNDERSTOOD[family]) as caught:
        find_sites(model)
    assert caught.value.exit_code == 2
    assert type(model).__name__ in str(caught.value)
    assert count_hooks(model) == 0


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_neurons_before_a_norm_have_no_value_vectors(family):
    with pytest.raises(InputError, match="is changed before it is added"):
        neuron_projection(find_sites(tiny(family)), 0)


def test_neurons_of_a_part_that_adds_the_stream_itself_are_found():
    model = tiny("bloom")
    found = neuron_projection(find_sites(model), 1)
    assert found is model.get_submodule("transformer.h.1.mlp.dense_4h_to_h")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj", "granite", "bert"])
def test_half_precision_changes_nothing(family, dtype):
    model = tiny(family)
    whole, half = find_sites(model), find_sites(copy.deepcopy(model).to(dtype))
    assert half.names == whole.names
    # Found again, not remembered: the configuration tells the precision.
    assert half.refused.keys() == whole.refused.keys()


@pytest.mark.parametrize("family", ["llama", "phi3", "bert"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_broken_model_has_the_structure_of_its_kind(family, value):
    names = find_sites(tiny(family)).names
    broken = tiny(family)
    broken.config.architectures = [f"broken by {value}"]  # looked at afresh
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(value)
    assert find_sites(broken).names == names


class Counted(nn.Module):
    """A network of blocks that counts its passes."""

    def __init__(self, blocks: int = 3, width: int = 8):
        super().__init__()
        self.passes = 0
        self.words = nn.Embedding(30, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, 30)

    def forward(self, ids):
        self.passes += 1
        return self.head(self.through(self.words(ids)))

    def through(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    """Causal means in the place of attention, and a feed-forward part."""

    def __init__(self, width: int):
        super().__init__()
        self.attention = Mean(width)
        self.ffn = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.ffn(x)


class Mean(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.out = nn.Linear(width, width)

    def forward(self, x):
        places = torch.arange(1, x.shape[1] + 1)[:, None]
        return self.out(x.cumsum(1) / places)


class Skipping(Counted):
    """The first block's output is added again before the last block."""

    def through(self, x):
        first = x = self.blocks[0](x)
        for block in self.blocks[1:-1]:
            x = block(x)
        return self.blocks[-1](x + first)


class Reaching(Counted):
    """What the head reads is the last block's output and the first's."""

    def through(self, x):
        first = self.blocks[0](x)
        x = first
        for block in self.blocks[1:]:
            x = block(x)
        return x + first


class Scaling(Counted):
    """The stream is halved between two blocks."""

    def through(self, x):
        for block in self.blocks:
            x = block(x) / 2
        return x


class Backward(Counted):
    """The last block listed is the first to run."""

    def through(self, x):
        for block in reversed(self.blocks):
            x = block(x)
        return x


class Twice(Counted):
    def through(self, x):
        for block in (*self.blocks, self.blocks[0]):
            x = block(x)
        return x


class Idle(Counted):
    def through(self, x):
        for block in self.blocks[:-1]:
            x = block(x)
        return x


class Looking(Counted):
    """Every block reads the tokens' embedding beside the stream."""

    def forward(self, ids):
        words = self.words(ids)
        x = words
        for block in self.blocks:
            x = block(x) + 0.1 * torch.tanh(words)
        return self.head(x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Skipping, "information bypasses its parts"),
        (Reaching, "information bypasses its parts"),
        (Scaling, "is not the input of the next"),
        (Backward, "do not run in the order"),
        (Twice, "runs one part several times"),
        (Idle, "does not pass through"),
        (Looking, "is not the input of the next|information bypasses"),
    ],
)
def test_a_stack_that_is_no_chain_is_refused(kind, message):
    torch.manual_seed(0)
    model = kind(blocks=4).train()
    with pytest.raises(InputError, match=message):
        find_sites(model)
    assert count_hooks(model) == 0
    assert all(module.training for module in model.modules())


def test_a_network_of_ones_own_is_looked_at_once():
    torch.manual_seed(0)
    model = Counted()
    names = find_sites(model).names
    assert names[:5] == ("embed", "resid_pre.0", "resid_mid.0", "attn.0", "mlp.0")
    for _ in range(3):
        assert find_sites(model).names == names
    assert model.passes == 1
    find_sites(Counted())  # another one may compute something else
    model.blocks.append(Block(8))
    assert "resid.3" in find_sites(model).names
    assert model.passes == 2


def test_models_of_one_configuration_are_looked_at_once():
    passes = []

    def counting(model):
        forward = model.forward

        def counted(*args, **named):
            passes.append(model)
            return forward(*args, **named)

        model.forward = counted
        return model

    for seed in range(3):
        model = tiny("qwen3", seed)
        model.config.attention_dropout = 0.125  # no other test has it
        find_sites(counting(model))
    assert len(passes) == 1


def test_looking_disturbs_nothing():
    torch.manual_seed(0)
    model = Counted().train()
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    before = torch.random.get_rng_state()
    find_sites(model)
    assert not calls and count_hooks(model) == 1
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_compiled_network_is_looked_at_as_it_was_before(monkeypatch):
    model = tiny("llama")
    model.config.attention_dropout = 0.0625  # no other test has it
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    monkeypatch.setattr(type(compiled), "forward", None)
    found = find_sites(compiled)
    assert found.names == find_sites(model).names
    assert found.places["mlp.1"].module is model.model.layers[1].mlp


class Odd(nn.Module):
    """What it reads cannot be guessed."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block(8) for _ in range(2))

    def forward(self, x, scale):
        x = x["states"] * scale
        for layer in self.layers:
            x = layer(x)
        return x


def test_what_cannot_be_run_is_refused_until_it_is_given_an_example():
    torch.manual_seed(0)
    model = Odd()
    with pytest.raises(InputError, match="does not run on a short input"):
        find_sites(model)
    with pytest.raises(InputError, match="fewer than two rows"):
        find_sites(model, {"x": {"states": torch.randn(1, 4, 8)}, "scale": 2.0})
    example = {"x": {"states": torch.randn(2, 4, 8)}, "scale": 2.0}
    assert find_sites(model, example).n_layers == 2
    assert find_sites(model).n_layers == 2


class UNet(nn.Module):
    """Down and up again, with what was there before beside it on the way up."""

    def __init__(self, units: bool, time: bool):
        super().__init__()
        self.time = nn.Linear(1, 8) if time else None

        def two(inputs, outputs):
            first = nn.Conv2d(inputs, outputs, 3, padding=1)
            return [first, nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1)]

        parts = [two(1, 8), two(8, 8), two(8, 8), two(16, 8)]
        kind = (lambda each: nn.Sequential(*each)) if units else (lambda each: each[2])
        self.parts = nn.ModuleList(map(kind, parts))
        if not units:
            self.parts = nn.ModuleList(nn.Conv2d(a, 8, 3, padding=1) for a in (1, 8, 8, 16))
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, sample, timestep=None):
        first = torch.relu(self.parts[0](sample))
        if self.time is not None:
            step = torch.ones(len(sample), 1) if timestep is None else timestep
            first = first + self.time(step)[:, :, None, None]
        x = torch.relu(self.parts[1](nn.functional.avg_pool2d(first, 2)))
        x = nn.functional.interpolate(torch.relu(self.parts[2](x)), scale_factor=2)
        x = torch.relu(self.parts[3](torch.cat([x, first], 1)))
        return self.last(x)


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("time", [False, True])
@pytest.mark.parametrize("find", [find_sites, find_image_sites])
def test_a_unet_is_refused(units, time, find):
    torch.manual_seed(0)
    with pytest.raises(InputError, match="UNet is not understood"):
        find(UNet(units, time))


class AttentionUNet(nn.Module):
    """As those of diffusion models: blocks with attention on the way down and up."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList(Block(8) for _ in range(2))
        self.up = nn.ModuleList(Block(8) for _ in range(3))

    def forward(self, x):
        for block in self.down:
            x = block(x)
        skip = x
        for block in self.up:
            x = block(x) + skip
        return x


def test_a_unet_with_attention_is_refused():
    torch.manual_seed(0)
    with pytest.raises(InputError, match=r"several stacks of blocks: 'down' \(2\)"):
        find_sites(AttentionUNet())


class Stage(nn.Module):
    def __init__(self, blocks: int):
        super().__init__()
        self.attentions = nn.ModuleList(Block(8) for _ in range(blocks))

    def forward(self, x):
        for block in self.attentions:
            x = block(x)
        return x


class StagedUNet(nn.Module):
    """As those of diffusers: lists of stages, each with a list of blocks, one in the middle."""

    def __init__(self, around: int):
        super().__init__()
        self.down_blocks = nn.ModuleList(Stage(around) for _ in range(2))
        self.mid_block = Stage(1)
        self.up_blocks = nn.ModuleList(Stage(around) for _ in range(2))

    def forward(self, x):
        first = self.down_blocks[0](x)
        second = self.down_blocks[1](first)
        x = self.up_blocks[0](self.mid_block(second) + second)
        return self.up_blocks[1](x + first)


@pytest.mark.parametrize(
    ("around", "message"), [(2, "several stacks of blocks"), (0, "bypasses|does not run")]
)
def test_a_unet_of_stages_is_not_taken_for_its_inner_block(around, message):
    torch.manual_seed(0)
    with pytest.raises(InputError, match=message):
        find_sites(StagedUNet(around), torch.randn(2, 5, 8))


def test_torchs_own_encoder_is_understood():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    sites = find_sites(model)
    x = torch.randn(2, 5, 8)
    with torch.no_grad(), record(model, sites.names) as got:
        model(x)
    before = x
    for number in range(3):
        after = before + got[f"attn.{number}"] + got[f"mlp.{number}"]
        torch.testing.assert_close(got[f"resid.{number}"], after)
        before = after


class PositionsFirst(Counted):
    """Blocks that read (position, row, d)."""

    def through(self, x):
        return super().through(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_a_stream_of_positions_first_is_refused(blocks):
    torch.manual_seed(0)
    with pytest.raises(InputError, match="axis of rows"):
        find_sites(PositionsFirst(blocks))
