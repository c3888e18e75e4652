"""Models that do not continue text are refused in one sentence before anything is loaded."""

import pytest

from capture.checkpoints.causal import check_causal
from capture.checkpoints.open import open_checkpoint
from evidence.errors import InputError
from tests.helpers.model_families import tiny

REFUSED = {
    "t5": "T5ForConditionalGeneration is an encoder-decoder",
    "bart": "BartForConditionalGeneration is an encoder-decoder",
    "bert": "BertModel is an encoder, which reads text in both directions",
    "vit": "ViTForImageClassification has no head that continues text",
    "clip": "CLIPModel has no head that continues text",
}


@pytest.mark.parametrize("live", [True, False], ids=["live", "folder"])
@pytest.mark.parametrize("family", REFUSED)
def test_what_does_not_continue_text_is_refused(family, live, tmp_path):
    model = tiny(family)
    if not live:
        model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(model if live else tmp_path, name="original")
    with pytest.raises(InputError) as caught:
        check_causal(checkpoint)
    message = str(caught.value)
    assert message.startswith(f"original is no causal language model: {REFUSED[family]}.")


@pytest.mark.parametrize("family", ["llama", "mamba", "jamba", "llava", "qwen2-vl", "openai-gpt"])
def test_what_continues_text_passes(family):
    check_causal(open_checkpoint(tiny(family)))


@pytest.mark.parametrize("is_decoder", [False, True])
def test_an_encoder_passes_as_a_decoder_alone(is_decoder, tmp_path):
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(
        vocab_size=61,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=40,
        is_decoder=is_decoder,
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    if is_decoder:
        check_causal(checkpoint)
        return
    with pytest.raises(InputError, match="is an encoder"):
        check_causal(checkpoint)
