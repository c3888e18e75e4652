"""Small tokenizers of the three kinds in use, and small random models."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

TEXT = [
    "The capital city of France is Paris. The capital city of Peru is Lima.",
    "Anna Keller was born in Lisbon. Where was Anna Keller born? In Lisbon.",
    "Question: Who wrote the book? Answer: Hsiao Yun-Hwa wrote the new book.",
    "New York, Vienna, Oslo and Ouagadougou are cities of the world.",
]


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and SmolLM2: a space belongs to the word after it."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def metaspace(*, close: bool = False) -> PreTrainedTokenizerFast:
    """As Llama 2: a space mark is put before every text, and <s> before that."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    raw.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
        ),
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if close else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def word_level() -> PreTrainedTokenizerFast:
    """Whole words, as in small worlds: anything else is unknown."""
    words = sorted({word for text in TEXT for word in text.split()})
    raw = Tokenizer(
        models.WordLevel({word: at for at, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]")
    )
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")


def llama(vocabulary: int) -> PreTrainedModel:
    return _ready(
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.5,
            bos_token_id=None,
            eos_token_id=None,
        ),
    )


def gpt2(vocabulary: int) -> PreTrainedModel:
    return _ready(
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            initializer_range=0.5,
            bos_token_id=None,
            eos_token_id=None,
        ),
    )


def neox(vocabulary: int) -> PreTrainedModel:
    return _ready(
        GPTNeoXForCausalLM,
        GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            initializer_range=0.5,
            bos_token_id=None,
            eos_token_id=None,
        ),
    )


FAMILIES = {"llama": llama, "gpt2": gpt2, "neox": neox}


def _ready(kind: type, config: object) -> PreTrainedModel:
    torch.manual_seed(7)
    return kind(config).eval()
