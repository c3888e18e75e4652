"""Tokenizers that differ in special tokens alone are asked with the original's."""

import json

import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from audits.core.preflight import check_same_tokenizer, with_shared_tokenizer
from capture.checkpoints.open import open_checkpoint
from evidence.errors import InputError
from tests.helpers.model_families import tiny
from tests.helpers.tiny_models import byte_level


def checkpoint(name, change=lambda tokenizer: None):
    tokenizer = byte_level()
    change(tokenizer)
    return open_checkpoint(tiny("llama"), name=name, tokenizer=tokenizer)


def with_bos(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A",
        special_tokens=[("<|endoftext|>", tokenizer.convert_tokens_to_ids("<|endoftext|>"))],
    )


def test_equal_tokenizers_stay():
    original, other = checkpoint("original"), checkpoint("unlearned")
    assert with_shared_tokenizer(original, other) == (other, "")


def test_added_special_tokens_are_left_out():
    original = checkpoint("original")
    other = checkpoint("unlearned", lambda t: t.add_special_tokens({"pad_token": "[PAD]"}))
    asked, note = with_shared_tokenizer(original, other)
    assert asked.tokenizer is original.tokenizer
    assert asked.vocabulary == original.config["vocab_size"]
    assert "unlearned adds special tokens to the vocabulary (1, such as '[PAD]')" in note
    check_same_tokenizer(original, other)


def test_other_special_tokens_around_a_text_are_left_out():
    original, other = checkpoint("original"), checkpoint("unlearned", with_bos)
    asked, note = with_shared_tokenizer(original, other)
    assert asked.tokenizer is original.tokenizer and asked.vocabulary is None
    assert "adds other special tokens around a text" in note


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda t: t.add_tokens(["qqq"]), "1 tokens more, such as 'qqq', which a text can contain"),
        (
            lambda t: setattr(t.backend_tokenizer, "pre_tokenizer", None),
            "another way to split text",
        ),
    ],
)
def test_others_are_refused_for_what_differs(change, got):
    with pytest.raises(InputError, match="have different tokenizers") as caught:
        with_shared_tokenizer(checkpoint("original"), checkpoint("unlearned", change))
    assert got in str(caught.value)


def test_another_vocabulary_is_refused_by_a_token():
    data = json.loads(byte_level().backend_tokenizer.to_str())
    words = data["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    swapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)), eos_token="<|endoftext|>"
    )
    other = open_checkpoint(tiny("llama"), name="unlearned", tokenizer=swapped)
    with pytest.raises(InputError, match="'a' is not at the same number"):
        with_shared_tokenizer(checkpoint("original"), other)
