"""Small causal language models with random weights, in several architectures."""

from collections.abc import Callable, Sequence
from typing import Literal, TypedDict

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from evidence.errors import InputError, check_list

Family = Literal["llama", "gpt2", "neox", "smollm2"]
PRETRAINED: Family = "smollm2"
"""SmolLM2-135M-Instruct with its published weights."""
MAX_POSITIONS = 64
Builder = Callable[[int, int, int, int, int], PreTrainedModel]
"""From vocabulary, width, layers, heads and the padding's token id to a model."""


def _llama(vocabulary: int, width: int, layers: int, heads: int, pad: int) -> PreTrainedModel:
    sizes = _sizes(width, layers, heads)
    return LlamaForCausalLM(
        LlamaConfig(num_key_value_heads=heads, **sizes, **_tokens(vocabulary, pad))
    )


def _gpt2(vocabulary: int, width: int, layers: int, heads: int, pad: int) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            n_positions=MAX_POSITIONS,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_inner=4 * width,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **_tokens(vocabulary, pad),
        )
    )


def _neox(vocabulary: int, width: int, layers: int, heads: int, pad: int) -> PreTrainedModel:
    sizes = _sizes(width, layers, heads)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, **_tokens(vocabulary, pad)))


class _Sizes(TypedDict):
    """Arguments that the configurations of Llama and GPT-NeoX share."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int


class _Tokens(TypedDict):
    """Arguments that the configurations of all families share."""

    vocab_size: int
    tie_word_embeddings: bool
    pad_token_id: int
    bos_token_id: None
    eos_token_id: None


def _sizes(width: int, layers: int, heads: int) -> _Sizes:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": MAX_POSITIONS,
    }


def _tokens(vocabulary: int, pad: int) -> _Tokens:
    return {
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "pad_token_id": pad,
        "bos_token_id": None,
        "eos_token_id": None,
    }


BUILDERS: dict[str, Builder] = {"llama": _llama, "gpt2": _gpt2, "neox": _neox}
FAMILIES: tuple[Family, ...] = tuple(BUILDERS)  # pyright: ignore[reportAssignmentType]
"""Architectures that are trained from scratch."""


def known_families(names: Sequence[str]) -> tuple[Family, ...]:
    """The names as families, in the order of ``FAMILIES``.

    Raises:
        InputError: an unknown name.
    """
    for name in check_list(names, "families"):
        if name not in FAMILIES:
            raise InputError(f"there is no family {name!r}", expected=", ".join(FAMILIES))
    return tuple(each for each in FAMILIES if each in names)


def random_model(
    family: Family, *, vocabulary: int, width: int, layers: int, heads: int, pad: int
) -> PreTrainedModel:
    """A model of the family, with weights from PyTorch's global generator.

    Args:
        family: One of ``FAMILIES``.
        vocabulary: Number of tokens.
        width: Width of the residual stream; the MLP is four times as wide.
        layers: Transformer blocks.
        heads: Attention heads.
        pad: Token id of padding.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> tiny = exhume.random_model("gpt2", vocabulary=50, width=16, layers=2, heads=2, pad=0)
        >>> exhume.find_sites(tiny)
        Sites: 2 blocks of width 16, 2 heads a block
        kind       sites                       count  width
        embed      embed                       1      16
        head       head.0.0 to head.1.1        4      8
        resid_pre  resid_pre.0 to resid_pre.1  2      16
        pattern    pattern.0 to pattern.1      2      varies
        resid_mid  resid_mid.0 to resid_mid.1  2      16
        attn       attn.0 to attn.1            2      16
        mlp        mlp.0 to mlp.1              2      16
        resid      resid.0 to resid.1          2      16
        neurons    neurons.0 to neurons.1      2      64
        final      final                       1      16
        logits     logits                      1      50
    """
    return BUILDERS[family](vocabulary, width, layers, heads, pad).eval()
