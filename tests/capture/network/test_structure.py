"""What is found in every family: one finder, and known answers.

The answers were compared with those of the finders that capture, erasure and testbeds once
had of their own. Where these disagreed, the table has the right answer: blocks of Gemma 3n,
the block inside ALBERT's group, and in Falcon-H1 and Bamba the map of the feed-forward part.
A mixture with a shared expert has no down-projection: the expert is not all it adds.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from capture.data.sequences import pad
from capture.network.sites import find_image_sites, find_sites, neuron_projection
from capture.network.structure import (
    classifier_of,
    down_projection,
    final_norm,
    find_blocks,
    find_transformer,
    output_head,
    own_head_,
    residual_units,
)
from evidence.errors import InputError
from testbeds.worlds.digits import DigitsConfig, new_classifier
from tests.capture.network.test_image_sites import resnet
from tests.helpers import tiny_erasure, tiny_models
from tests.helpers.model_families import NOT_UNDERSTOOD, Cnn, tiny

ROOT = Path(__file__).parents[3]
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
t5-encoder      encoder.block        3 encoder.final_layer_norm - layer.1.DenseReluDense.wo
mamba           backbone.layers      3 backbone.norm_f            lm_head    mixer.out_proj
mamba2          backbone.layers      3 backbone.norm_f            lm_head    mixer.out_proj
rwkv            rwkv.blocks          3 rwkv.ln_out                head       feed_forward.value
recurrent-gemma model.layers         3 model.final_norm           lm_head    mlp_block.down_proj
bamba           model.layers         3 model.final_layernorm      lm_head    feed_forward.down_proj
bamba-first     model.layers         3 model.final_layernorm      lm_head    feed_forward.down_proj
lfm2            model.layers         3 model.embedding_norm       lm_head    feed_forward.w2
gemma3n         model.layers         3 model.norm                 lm_head    mlp.down_proj
albert          encoder.albert_layer_groups.0.albert_layers 1 - - ffn_output
xlnet           transformer.layer    3 -                          lm_loss    ff.layer_2
jamba model.layers 3 model.final_layernorm lm_head feed_forward.down_proj|-|feed_forward.down_proj
llava           model.language_model.layers 2 model.language_model.norm lm_head mlp.down_proj
qwen2-vl        model.language_model.layers 3 model.language_model.norm lm_head mlp.down_proj
"""
KNOWN = {family: where for family, *where in map(str.split, TABLE.strip().splitlines())}
NO_BLOCKS = {
    "t5": "it is an encoder-decoder model",
    "bart": "it is an encoder-decoder model",
    "whisper": "it is an encoder-decoder model",
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
    blocks = find_blocks(model)
    assert [names[block] for block in blocks] == [f"{path}.{layer}" for layer in range(int(count))]
    found = answer(find_transformer, model)
    assert (found is None) == (family == "albert")
    assert names.get(final_norm(model), "-") == norm
    assert names.get(found.head if found else output_head(model), "-") == head
    for layer, block in enumerate(blocks):
        name = last_maps.split("|")[layer % (1 + last_maps.count("|"))]
        expected = None if name == "-" else block.get_submodule(name)
        assert answer(down_projection, block) is expected


@pytest.mark.parametrize("family", NO_BLOCKS)
def test_models_without_one_stack_of_blocks_are_refused(family):
    with pytest.raises(InputError, match=f"is not understood: {NO_BLOCKS[family]}"):
        find_blocks(tiny(family))


def test_every_family_is_listed():
    assert set(NOT_UNDERSTOOD) == set(NO_BLOCKS) | {"albert", "gemma3n", "xlnet", "clip", "cpmant"}
    assert set(NO_BLOCKS).isdisjoint(KNOWN)


@pytest.mark.parametrize("family", KNOWN)
def test_sites_are_at_the_blocks_and_neurons_before_the_down_projection(family):
    model = tiny(family)
    sites = answer(find_sites, model)
    if sites is None:
        assert family in NOT_UNDERSTOOD
        return
    blocks = find_blocks(model)
    assert [sites.places[name].module for name in sites.of("resid")] == blocks
    # A norm or a scale may follow the map: then neurons have no value vectors.
    rescaled = family in ("gemma2", "gemma3", "olmo2", "glm4") or sites.refused
    rescaled = rescaled or not all(sites.places[name].is_plain for name in sites.of("mlp"))
    rescaled = rescaled or not sites.of("mlp")
    for layer, block in enumerate(blocks):
        found = answer(neuron_projection, sites, layer)
        assert found is (None if rescaled else answer(down_projection, block))


TOKENS = [
    *(pytest.param(make(60), id=name) for name, make in tiny_models.FAMILIES.items()),
    *(
        pytest.param(getattr(tiny_erasure, name)(), id=name)
        for name in ("tiny_llama", "tiny_gpt2", "tiny_neox")
    ),
]


@pytest.mark.parametrize("model", TOKENS)
def test_sites_of_small_language_models_are_those_of_their_structure(model):
    blocks, sites = find_blocks(model), find_sites(model)
    assert [sites.places[name].module for name in sites.of("resid")] == blocks
    assert [neuron_projection(sites, layer) for layer in range(len(blocks))] == [
        down_projection(block) for block in blocks
    ]
    assert sites.head is output_head(model) is model.get_output_embeddings()


def image_models():
    for family in ("vit", "cnn"):
        yield new_classifier(DigitsConfig(layers=3, width=16, family=family), 0)


@pytest.mark.parametrize("model", list(image_models()), ids=["vit", "convnext"])
def test_blocks_of_image_models_are_where_their_sites_are(model):
    blocks, sites = find_blocks(model), find_image_sites(model)
    assert len(blocks) == 3 and blocks == residual_units(model)
    assert [sites.places[name].module for name in sites.of("resid")] == blocks
    assert sites.head is classifier_of(model) is model.classifier
    for block in blocks:
        last = [m for m in block.modules() if isinstance(m, nn.Linear)][-1]
        assert down_projection(block) is last


def test_blocks_of_a_resnet_are_its_units_and_not_its_stages():
    model = resnet()
    names = paths(model)
    assert [names[block] for block in find_blocks(model)] == [
        f"resnet.encoder.stages.{stage}.layers.{unit}" for stage in range(2) for unit in range(2)
    ]
    assert find_image_sites(model).head is classifier_of(model)
    with pytest.raises(InputError, match="no down-projection"):
        down_projection(find_blocks(model)[0])


SINGLE = [Cnn(), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), nn.Linear(2, 2)]


@pytest.mark.parametrize("model", SINGLE, ids=lambda model: type(model).__name__)
def test_single_layers_are_no_blocks(model):
    with pytest.raises(InputError, match="no list of blocks"):
        find_blocks(model)


def test_units_of_convolutions_are_one_stack_across_stages():
    def unit():
        return nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))

    stages = (nn.ModuleList(unit() for _ in range(depth)) for depth in (3, 9, 3))
    assert len(find_blocks(nn.ModuleList(stages))) == 15


def test_units_of_a_plain_sequence_are_blocks():
    def unit():
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    model = nn.Sequential(nn.Linear(3, 4), unit(), unit(), nn.Linear(4, 2))
    assert find_blocks(model) == [model[1], model[2]]
    assert down_projection(model[1]) is model.get_submodule("1.2")


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
    assert find_blocks(model) == list(model.pictures)
    model.layers = nn.ModuleList([Mixer(), Mixer()])
    with pytest.raises(InputError, match=r"'pictures' \(2\) and 'layers' \(2\)"):
        find_blocks(model)
    model.layers.append(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(InputError, match="several classes"):
        find_blocks(model)


def test_experts_are_no_blocks():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))

    model = nn.Module()
    model.words = nn.Embedding(9, 4)
    model.layers = nn.ModuleList(Block() for _ in range(2))
    assert find_blocks(model) == list(model.layers)
    with pytest.raises(InputError, match="no down-projection"):
        down_projection(model.layers[0])


def test_an_adapter_around_the_down_projection_is_refused():
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(target_modules=["down_proj"])
    model = inject_adapter_in_model(config, tiny("llama"))
    with pytest.raises(InputError, match="wrapped by an adapter"):
        down_projection(find_blocks(model)[0])


def test_a_shared_head_gets_weights_of_its_own():
    model = tiny_erasure.tiny_llama(tied=True)
    batch = pad(tiny_erasure.RETAIN).model_inputs
    before = model(**batch).logits
    head = own_head_(model)
    assert head.weight is not model.get_input_embeddings().weight
    assert not model.config.tie_word_embeddings
    assert torch.equal(model(**batch).logits, before)


def test_looking_needs_no_weights():
    with torch.device("meta"):
        model = tiny_erasure.tiny_llama()
    assert len(find_blocks(model)) == 3


def test_nobody_else_looks_for_parts():
    names = r"get_(in|out)put_embeddings|\bModuleList\b|import Conv1D"
    found = {
        str(path.relative_to(ROOT))
        for package in ("attribution", "audits", "capture", "erasure", "experiments", "testbeds")
        for path in (ROOT / package).rglob("*.py")
        if re.search(names, path.read_text(encoding="utf-8"))
    }
    below = {f"capture/network/discovery/{name}.py" for name in ("position_limit", "short_inputs")}
    assert found == {"capture/network/structure.py", "capture/checkpoints/adapter_merge.py", *below}
