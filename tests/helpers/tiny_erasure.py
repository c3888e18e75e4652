"""Small models and rows that the erasure tests share."""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from capture.data.sequences import Sequences, pad

VOCABULARY = 40


def tiny_llama(seed=0, layers=3, tied=False):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2(seed=0, layers=3):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=24,
        n_layer=layers,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


def tiny_neox(seed=0, layers=3):
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPTNeoXForCausalLM(config).eval()


def facts(first, count, answers, start=0):
    """Rows ``[1, (2,) entity, 3, answer]`` of two lengths, one entity each."""
    ids, starts = [], []
    for place in range(count):
        prompt = [1, first + place, 3] if place % 2 else [1, 2, first + place, 3]
        answer = answers[(place + start) % len(answers)]
        ids.append((*prompt, answer))
        starts.append(len(prompt))
    return Sequences(tuple(ids), tuple(starts))


ANSWERS = (30, 31, 32, 33)
FORGET = facts(5, 4, ANSWERS)
RELABELLED = facts(5, 4, ANSWERS, start=1)
RETAIN = facts(10, 8, ANSWERS)


def gradient(leaf: torch.Tensor) -> torch.Tensor:
    """The gradient of a leaf, which the last backward pass must have reached."""
    assert leaf.grad is not None
    return leaf.grad


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before, model):
    """Names of the weights that are no longer bit-equal."""
    after = model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def greedy(model, data):
    batch = pad(data)
    with torch.no_grad():
        logits = model(**batch.model_inputs).logits
    last = torch.tensor(data.answer_start) - 1
    predicted = logits[torch.arange(len(data)), last].argmax(-1).tolist()
    truth = [ids[start] for ids, start in zip(data.ids, data.answer_start, strict=True)]
    return sum(a == b for a, b in zip(predicted, truth, strict=True)) / len(data)
