import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import CohereConfig, CohereForCausalLM

from capture.data.sequences import pad
from capture.network.structure import (
    down_projection,
    find_blocks,
    logit_reader,
    own_head_,
    states_at,
)
from evidence.errors import InputError
from tests.helpers.model_families import tiny
from tests.helpers.tiny_erasure import RETAIN, tiny_gpt2, tiny_llama, tiny_neox


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        (tiny_llama, "mlp.down_proj", (24, 48)),
        (tiny_gpt2, "mlp.c_proj", (96, 24)),
        (tiny_neox, "mlp.dense_4h_to_h", (24, 48)),
    ],
)
def test_the_last_matrix_of_a_block_is_its_down_projection(family, name, shape):
    blocks = find_blocks(family())
    assert len(blocks) == 3
    found, module = down_projection(blocks[1])
    assert found == name
    assert tuple(module.weight.shape) == shape


def test_models_without_blocks_are_refused():
    with pytest.raises(InputError, match="no transformer blocks"):
        find_blocks(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("family", "got"),
    [
        ("t5", "an encoder-decoder model"),
        ("jamba", "blocks of several classes"),
        ("llava", "2 lists of blocks"),
        ("qwen2-vl", "2 lists of blocks"),
    ],
)
def test_models_of_which_another_list_is_longer_are_refused(family, got):
    with pytest.raises(InputError, match=f"no transformer blocks .* got {got}"):
        find_blocks(tiny(family))


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
        down_projection(find_blocks(tiny("mixtral"))[0])


def test_stages_of_convolutions_are_not_one_stack():
    model = nn.ModuleList(
        nn.ModuleList(nn.Sequential(nn.Conv2d(1, 1, 1)) for _ in range(depth))
        for depth in (3, 9, 3)
    )
    with pytest.raises(InputError, match="several lists of Sequential"):
        find_blocks(model)


@pytest.mark.parametrize("family", [tiny_llama, tiny_gpt2, tiny_neox])
def test_head_on_chosen_positions_gives_the_model_logits(family):
    model, batch = family(), pad(RETAIN)
    reader = logit_reader(model, pad(RETAIN, [0]))
    assert reader.head is not None
    want = model(**batch.model_inputs).logits[batch.answer_mask]
    assert_close(reader(batch, batch.answer_mask), want, rtol=1e-5, atol=1e-6)


def test_a_model_that_scales_its_logits_falls_back_to_all_of_them():
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logit_scale=7.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model, batch = CohereForCausalLM(config).eval(), pad(RETAIN)
    reader = logit_reader(model, pad(RETAIN, [0]))
    assert reader.head is None
    want = model(**batch.model_inputs).logits[batch.answer_mask]
    assert_close(reader(batch, batch.answer_mask), want)


def test_states_are_the_block_output_and_leave_no_hook():
    model, batch = tiny_llama(), pad(RETAIN)
    block = find_blocks(model)[1]
    got = states_at(model, block, batch)
    assert not block._forward_hooks
    want = model(**batch.model_inputs, output_hidden_states=True).hidden_states[2]
    assert_close(got, want)


def test_a_module_outside_the_pass_is_refused():
    with pytest.raises(InputError, match="does not take part"):
        states_at(tiny_llama(), nn.Linear(2, 2), pad(RETAIN))


def test_a_shared_head_gets_weights_of_its_own():
    model, batch = tiny_llama(tied=True), pad(RETAIN)
    before = model(**batch.model_inputs).logits
    head = own_head_(model)
    assert head.weight is not model.get_input_embeddings().weight
    assert not model.config.tie_word_embeddings
    assert torch.equal(model(**batch.model_inputs).logits, before)
