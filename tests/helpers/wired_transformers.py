"""Small models of every shape, random prompt pairs, and a model wired by hand."""

from typing import TypedDict

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from attribution.circuits.forward_backward import InstrumentedModel
from attribution.circuits.graph import build_graph
from attribution.circuits.metrics import MetricName, PairBatch, make_batch
from attribution.circuits.prompt_pairs import PromptPairs
from attribution.circuits.structure import find_structure
from capture.data.sequences import Sequences
from tests.helpers.model_families import HEADS, LAYERS, VOCABULARY, WIDTH, tiny


class Shared(TypedDict):
    """Settings that configurations of most families have."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int


SHARED: Shared = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# One map for all, with one key and value head (bigcode); a norm behind the maps
# (qwen3); one part after the other in GPT-NeoX's code; heads that cannot be told apart.
SHAPES = ("llama", "gpt2", "neox", "bigcode", "qwen3", "neox_in_turn", "headless")


def shaped(shape: str) -> PreTrainedModel:
    """A random model in double precision, large enough to have no linear part."""
    if shape in ("llama", "gpt2", "neox"):
        return tiny(shape).double()
    if shape == "headless":
        return headless().double()
    if shape == "bigcode":
        config = GPTBigCodeConfig(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=64,
            multi_query=True,
        )
        model = GPTBigCodeForCausalLM(config)
    elif shape == "qwen3":
        config = Qwen3Config(**SHARED, num_key_value_heads=2, head_dim=6)
        model = Qwen3ForCausalLM(config)
    else:
        config = GPTNeoXConfig(**SHARED, use_parallel_residual=False)
        model = GPTNeoXForCausalLM(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2, generator=generator)
    return model.double().eval()


def headless() -> PreTrainedModel:
    """A Llama whose queries come out of two maps in a row."""
    model = tiny("llama")
    torch.manual_seed(5)
    for block in model.model.layers:
        two = nn.Sequential(nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH))
        block.self_attn.q_proj = two
    return model.eval()


def random_pairs(lengths=(5, 6, 7, 9), seed: int = 0) -> PromptPairs:
    """Rows of mixed length with two answer tokens, corrupt in two positions."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt, starts = [], [], []
    for length in lengths:
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        other = list(ids)
        other[1], other[2] = (ids[1] + 7) % 58 + 3, (ids[2] + 11) % 58 + 3
        clean.append(tuple(ids))
        corrupt.append(tuple(other))
        starts.append(length - 2)
    names = tuple(str(row) for row in range(len(lengths)))
    foils = tuple((ids[-2] + 5) % VOCABULARY for ids in clean)
    return PromptPairs(
        Sequences(tuple(clean), tuple(starts)),
        Sequences(tuple(corrupt), tuple(starts)),
        foils,
        names,
        names,
    )


def subject_of(model: nn.Module) -> InstrumentedModel:
    structure = find_structure(model)
    return InstrumentedModel(model, structure, build_graph(structure), structure.readout)


def batch_of(pairs: PromptPairs, metric: MetricName = "logit_difference") -> PairBatch:
    return make_batch(pairs, list(range(len(pairs))), metric, torch.device("cpu"))


NAMES, POSITIONS = 12, 4
TRUE_EDGES = ("embed->v.0.1", "head.0.1->v.1.2", "head.1.2->logits")


def wired() -> PreTrainedModel:
    """Two attention layers with a known circuit, and decoys as busy as it.

    The token at position 0 is copied to the last position by head 0.1, moved on by
    head 1.2 to where the unembedding reads, and nothing else matters. Head 0.3 copies
    the same token as strongly into a subspace that nothing reads, head 1.0 copies
    both copies into another, and the feed-forward part of block 0 reads the decoy.
    """
    width, size = 96, 24
    config = GPT2Config(
        vocab_size=NAMES + 2,
        n_embd=width,
        n_layer=2,
        n_head=4,
        n_positions=POSITIONS,
        n_inner=16,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config).eval()
    token, copied, read, unread, unread_too = (16 * part for part in range(5))
    place = 80
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ln_" in name or "ln_f" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                parameter.zero_()
        body = model.transformer
        eye = torch.eye(NAMES)
        body.wte.weight[:NAMES, token : token + NAMES] = eye
        # So long that the norms, which nobody means to be part of it, hardly move.
        body.wpe.weight[:, place : place + POSITIONS] = 10 * torch.eye(POSITIONS)
        model.lm_head.weight[:NAMES, read : read + NAMES] = 4 * eye

        def head(layer, number, key_place, sources, target):
            """At the last position look at ``key_place``; copy sources to target."""
            attention = f"transformer.h.{layer}.attn"
            first = number * size
            wqkv = model.get_parameter(f"{attention}.c_attn.weight")
            wo = model.get_parameter(f"{attention}.c_proj.weight")
            wqkv[place + POSITIONS - 1, first] = 8.0
            wqkv[place + key_place, width + first] = 8.0
            for source in sources:
                into = slice(2 * width + first + 1, 2 * width + first + 1 + NAMES)
                wqkv[source : source + NAMES, into] = eye
            out = slice(first + 1, first + 1 + NAMES)
            wo[out, target : target + NAMES] = eye

        head(0, 1, 0, [token], copied)
        head(0, 3, 0, [token], unread)
        head(1, 2, POSITIONS - 1, [copied], read)
        head(1, 0, POSITIONS - 1, [copied, unread], unread_too)
        into_mlp = model.get_parameter("transformer.h.0.mlp.c_fc.weight")
        out_of_mlp = model.get_parameter("transformer.h.0.mlp.c_proj.weight")
        into_mlp[unread : unread + NAMES, :NAMES] = eye
        out_of_mlp[:NAMES, unread : unread + NAMES] = eye
    return model


def wired_pairs() -> PromptPairs:
    """The token at position 0 is the answer; the rest are fillers."""
    filler = NAMES
    clean = tuple((name, filler, filler, filler + 1, name) for name in range(8))
    corrupt = tuple(((name + 3) % NAMES, filler, filler, filler + 1, name) for name in range(8))
    starts = (POSITIONS,) * 8
    names = tuple(str(name) for name in range(8))
    return PromptPairs(
        Sequences(clean, starts),
        Sequences(corrupt, starts),
        tuple((name + 3) % NAMES for name in range(8)),
        names,
        names,
    )
