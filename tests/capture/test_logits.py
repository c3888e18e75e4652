import pytest
import torch
from torch.testing import assert_close
from transformers import CohereConfig, CohereForCausalLM

from capture.data.sequences import pad
from capture.network.logits import logit_reader
from tests.helpers.tiny_erasure import RETAIN, tiny_gpt2, tiny_llama, tiny_neox


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
