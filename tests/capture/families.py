"""Tiny random models, one a family, and rows to run through them."""

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from evidence.sequences import Sequences

VOCABULARY, LAYERS, WIDTH, HEADS = 61, 3, 24, 4
TEXT = ("llama", "gpt2", "neox", "bert")


def tiny(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of ``family`` in evaluation mode."""
    torch.manual_seed(seed)
    if family == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=40,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_key_value_heads=2,
                max_position_embeddings=64,
                tie_word_embeddings=True,
            )
        )
    elif family == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=WIDTH,
                n_layer=LAYERS,
                n_head=HEADS,
                n_positions=64,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    elif family == "neox":
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=40,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                max_position_embeddings=64,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    elif family == "bert":
        model = BertModel(
            BertConfig(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=40,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                max_position_embeddings=64,
            )
        )
    elif family == "vit":
        model = ViTForImageClassification(
            ViTConfig(
                hidden_size=WIDTH,
                intermediate_size=40,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                image_size=8,
                patch_size=4,
                num_channels=1,
                num_labels=5,
            )
        )
    else:
        raise ValueError(family)
    # Fresh weights are so small that a residual stream barely changes; larger ones
    # make a wrong place or position visible.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
            elif "bias" in name:
                parameter.normal_(0, 0.1)
    return model.eval()


class Cnn(nn.Module):
    """A plain network with activations and pooling called as functions."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.hidden = nn.Linear(24, 10)
        self.output = nn.Linear(10, 5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.first(pixels))
        x = nn.functional.max_pool2d(torch.relu(self.second(x)), 4)
        return self.output(torch.relu(self.hidden(x.flatten(1))))


def rows(seed: int = 0) -> Sequences:
    """Nine rows of mixed length, prompt and answer, none of it in order of length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [5, 12, 3, 9, 9, 2, 17, 6, 4]
    answers = [1, 3, 1, 2, 4, 1, 2, 1, 2]
    ids = tuple(
        tuple(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist())
        for n in lengths
    )
    starts = tuple(n - a for n, a in zip(lengths, answers, strict=True))
    return Sequences(ids, starts)


def pixels(count: int = 7) -> torch.Tensor:
    """(image, 1, 8, 8) random images."""
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
