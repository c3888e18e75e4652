"""What is found in every family: one finder, and known answers.

The answers were those of the finders that capture, erasure and attribution had of their
own; where these disagreed, ``CORRECTED`` says which answer is right.
"""

import pytest
import torch
from torch import nn

from capture.network import logits, outline, structure
from capture.network.chains import residual_units as units_of_chains
from capture.network.image_sites import find_image_sites
from capture.network.neurons import down_projection as neurons_of
from capture.network.sites import find_sites
from capture.network.structure import (
    final_norm,
    find_stack,
    find_transformer,
    named_head,
    neuron_map,
    residual_units,
)
from erasure.unlearning.image_task import classifier_of
from erasure.weights import folding
from evidence.errors import InputError
from testbeds.worlds.digits import DigitsConfig, new_classifier
from tests.capture.test_image_sites import resnet
from tests.helpers import tiny_erasure, tiny_models
from tests.helpers.model_families import NOT_UNDERSTOOD, Cnn, tiny

# Family, list of its blocks, their number, norm after them, head, and in a block the map
# that ends its feed-forward part (block by block where they differ); "-" where none is.
TABLE = """
llama           model.layers         3 model.norm                 lm_head    mlp.down_proj
gpt2            transformer.h        3 transformer.ln_f           lm_head    mlp.c_proj
neox            gpt_neox.layers      3 gpt_neox.final_layer_norm  lm_head    mlp.dense_4h_to_h
bert            encoder.layer        3 -                          -          output.dense
vit             vit.layers           3 vit.layernorm              classifier mlp.fc2
qwen3           model.layers         3 model.norm                 lm_head    mlp.down_proj
phi             model.layers         3 model.final_layernorm      lm_head    mlp.fc2
phi3            model.layers         3 model.norm                 lm_head    mlp.down_proj
gemma           model.layers         3 model.norm                 lm_head    mlp.down_proj
gemma2          model.layers         3 model.norm                 lm_head    mlp.down_proj
gemma3          model.layers         3 model.norm                 lm_head    mlp.down_proj
olmo            model.layers         3 -                          lm_head    mlp.down_proj
olmo2           model.layers         3 model.norm                 lm_head    mlp.down_proj
glm4            model.layers         3 model.norm                 lm_head    mlp.down_proj
bloom           transformer.h        3 transformer.ln_f           lm_head    mlp.dense_4h_to_h
falcon          transformer.h        3 transformer.ln_f           lm_head    mlp.dense_4h_to_h
gptj            transformer.h        3 transformer.ln_f           lm_head    mlp.fc_out
gptneo          transformer.h        3 transformer.ln_f           lm_head    mlp.c_proj
mpt             transformer.blocks   3 transformer.norm_f         lm_head    ffn.down_proj
cohere          model.layers         3 model.norm                 lm_head    mlp.down_proj
stablelm        model.layers         3 model.norm                 lm_head    mlp.down_proj
mixtral         model.layers         3 model.norm                 lm_head    -
gptoss          model.layers         3 model.norm                 lm_head    -
qwen2moe        model.layers         3 model.norm                 lm_head    -
deepseek        model.layers         3 model.norm                 lm_head    mlp.down_proj|-|-
openai-gpt      transformer.h        3 -                          lm_head    mlp.c_proj
distilbert      transformer.layer    3 -                          -          ffn.lin2
electra         encoder.layer        3 -                          -          output.dense
granite         model.layers         3 model.norm                 lm_head    mlp.down_proj
bloom-post      transformer.h        3 transformer.ln_f           lm_head    mlp.dense_4h_to_h
falcon-h1       model.layers         3 model.final_layernorm      lm_head    feed_forward.down_proj
beit            beit.layers          3 beit.pooler.layernorm      classifier mlp.fc2
opt             model.decoder.layers 3 -                          lm_head    fc2
llama4          model.layers         3 model.norm                 lm_head    -
t5-encoder      encoder.block        3 encoder.final_layer_norm   -          layer.1.DenseReluDense.wo
mamba           backbone.layers      3 backbone.norm_f            lm_head    mixer.out_proj
mamba2          backbone.layers      3 backbone.norm_f            lm_head    mixer.out_proj
rwkv            rwkv.blocks          3 rwkv.ln_out                head       feed_forward.value
recurrent-gemma model.layers         3 model.final_norm           lm_head    mlp_block.down_proj
bamba           model.layers         3 model.final_layernorm      lm_head    feed_forward.down_proj
bamba-first     model.layers         3 model.final_layernorm      lm_head    feed_forward.down_proj
lfm2            model.layers         3 model.embedding_norm       lm_head    feed_forward.w2
gemma3n         model.layers         3 model.norm                 lm_head    mlp.down_proj
albert          encoder.albert_layer_groups.0.albert_layers 1 -                          -          ffn_output
xlnet           transformer.layer    3 -                          lm_loss    ff.layer_2
"""
KNOWN = {family: where for family, *where in map(str.split, TABLE.strip().splitlines())}
# Lists of blocks are found, and sites are refused: there is no attention in each block.
WITHOUT_ATTENTION = (
    *("t5-encoder", "mamba", "mamba2", "rwkv", "recurrent-gemma", "bamba"),
    *("bamba-first", "lfm2", "xlnet"),
)
NO_BLOCKS = {
    "t5": "it is an encoder-decoder model",
    "bart": "it is an encoder-decoder model",
    "whisper": "it is an encoder-decoder model",
    "jamba": "it has a list of blocks of several classes",
    "swin": "it has several stacks of blocks",
    "clip": "it has several stacks of blocks",
    "llava": "it has several stacks of blocks",
    "llava-shallow": "it has several stacks of blocks",
    "qwen2-vl": "it has several stacks of blocks",
}
# What erasure's finder answered where it was wrong.
CORRECTED = {
    "gemma3n": "lists of plain maps were taken for lists of blocks",
    "albert": "a group of blocks was taken for a block",
    "falcon-h1": "attention's output map was taken for that of the feed-forward part",
    "bamba": "the output map of attention or of Mamba was taken",
    "bamba-first": "the output map of attention or of Mamba was taken",
    "deepseek": "the shared expert is not all that a mixture adds",
    "llama4": "the shared expert is not all that a mixture adds",
}


def paths(model):
    return {module: name for name, module in model.named_modules()}


def answer(find, *given):
    """What a finder gives, None where it refuses."""
    try:
        return find(*given)
    except InputError:
        return None


@pytest.mark.parametrize("family", KNOWN)
def test_parts_are_where_they_are_known_to_be(family):
    model = tiny(family)
    path, count, norm, head, last_maps = KNOWN[family]
    names = paths(model)
    blocks = find_stack(model)
    assert [names[block] for block in blocks] == [
        f"{path}.{layer}" for layer in range(int(count))
    ]
    found = answer(find_transformer, model)
    assert (found is None) == (family in WITHOUT_ATTENTION)
    assert names.get(final_norm(model), "-") == norm
    assert names.get(found.head if found else named_head(model), "-") == head
    for layer, block in enumerate(blocks):
        name = last_maps.split("|")[layer % (1 + last_maps.count("|"))]
        expected = None if name == "-" else block.get_submodule(name)
        assert answer(neuron_map, block) is expected


@pytest.mark.parametrize("family", NO_BLOCKS)
def test_models_without_one_stack_of_blocks_are_refused(family):
    with pytest.raises(InputError, match=f"is not understood: {NO_BLOCKS[family]}"):
        find_stack(tiny(family))


def test_every_family_is_listed():
    understood = set(KNOWN) - set(WITHOUT_ATTENTION) - {"albert", "gemma3n"}
    assert set(NOT_UNDERSTOOD) == (
        set(NO_BLOCKS) | set(WITHOUT_ATTENTION) | {"albert", "gemma3n"}
    )
    assert not understood & set(NOT_UNDERSTOOD)


@pytest.mark.parametrize("family", [*KNOWN, *NO_BLOCKS])
def test_old_finders_agree(family):
    model = tiny(family)
    blocks = answer(find_stack, model)
    if family not in ("albert", "gemma3n"):
        assert answer(structure.find_blocks, model) == blocks
        assert folding._blocks(model) == (blocks or [])
    found, old = answer(find_transformer, model), answer(outline.find_outline, model)
    assert (found is None) == (old is None)
    if found is not None:
        assert found.blocks == old.blocks and found.head is old.head
        assert found.attentions == old.attentions
        if family != "albert":  # there one map of the part is called "ffn"
            assert found.feed_forwards == old.feed_forwards
    head = named_head(model)
    assert structure.output_head(model) is logits.output_head(model) is head
    for block in () if family in CORRECTED else blocks or ():
        maps = answer(structure.down_projection, block), answer(neuron_map, block)
        assert maps == (None, None) or maps[0][1] is maps[1]
    if found is not None and (sites := answer(find_sites, model)) is not None:
        stream = [sites.places[name].module for name in sites.of("resid")]
        assert stream == blocks and sites.head is found.head
        for layer, block in enumerate(blocks):
            old = answer(neurons_of, sites, layer)
            # A norm or a scale may follow the map, and then it adds no value vectors.
            if old is not None and family not in ("deepseek", "qwen2moe"):
                assert old is neuron_map(block)


TOKENS = [
    *(pytest.param(make(60), id=name) for name, make in tiny_models.FAMILIES.items()),
    *(
        pytest.param(getattr(tiny_erasure, name)(), id=name)
        for name in ("tiny_llama", "tiny_gpt2", "tiny_neox")
    ),
]


@pytest.mark.parametrize("model", TOKENS)
def test_old_finders_agree_on_small_language_models(model):
    blocks = structure.find_blocks(model)
    assert find_stack(model) == blocks == list(outline.find_outline(model).blocks)
    assert [neuron_map(b) for b in blocks] == [
        structure.down_projection(b)[1] for b in blocks
    ]
    assert find_transformer(model).head is structure.output_head(model)


def image_models():
    for family in ("vit", "cnn"):
        yield new_classifier(DigitsConfig(layers=3, width=16, family=family), 0)


@pytest.mark.parametrize("model", list(image_models()), ids=["vit", "convnext"])
def test_old_finders_agree_on_image_models(model):
    blocks = find_stack(model)
    assert blocks == structure.find_blocks(model) == units_of_chains(model)
    assert blocks == residual_units(model)
    sites = find_image_sites(model)
    assert blocks == [sites.places[name].module for name in sites.of("resid")]
    assert sites.head is classifier_of(model)
    assert [neuron_map(b) for b in blocks] == [
        structure.down_projection(b)[1] for b in blocks
    ]


def test_blocks_of_a_resnet_are_its_units_and_not_its_stages():
    model = resnet()
    names = paths(model)
    assert [names[block] for block in find_stack(model)] == [
        f"resnet.encoder.stages.{stage}.layers.{unit}"
        for stage in range(2)
        for unit in range(2)
    ]
    assert len(structure.find_blocks(model)) == 2  # wrong: the stages
    assert find_image_sites(model).head is classifier_of(model)


@pytest.mark.parametrize(
    "model", [Cnn(), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))]
)
def test_single_layers_are_no_blocks(model):
    with pytest.raises(InputError, match="no list of blocks"):
        find_stack(model)
    assert answer(structure.find_blocks, model) is None


def test_units_of_a_plain_sequence_are_blocks():
    def unit():
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    model = nn.Sequential(nn.Linear(3, 4), unit(), unit(), nn.Linear(4, 2))
    assert find_stack(model) == [model[1], model[2]]
    assert neuron_map(model[1]) is model[1][2]


def test_a_second_stack_without_attention_is_not_overlooked():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(4, 4)

    class Block(Mixer):
        def __init__(self):
            super().__init__()
            self.attention = nn.Sequential(nn.Linear(4, 4))

    model = nn.Module()
    model.words = nn.Embedding(9, 4)
    model.pictures = nn.ModuleList(Block() for _ in range(2))
    assert find_stack(model) == list(model.pictures)
    model.layers = nn.ModuleList([Mixer(), Mixer()])
    with pytest.raises(InputError, match=r"'pictures' \(2\) and 'layers' \(2\)"):
        find_stack(model)
    model.layers.append(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(InputError, match="several classes"):
        find_stack(model)


def test_looking_needs_no_weights():
    with torch.device("meta"):
        model = tiny_erasure.tiny_llama()
    assert len(find_stack(model)) == 3
