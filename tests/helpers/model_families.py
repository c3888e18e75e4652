"""Tiny random models, one a family, and rows to run through them."""

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from capture.data.sequences import Sequences

VOCABULARY, LAYERS, WIDTH, HEADS = 61, 3, 24, 4
TEXT = ("llama", "gpt2", "neox", "bert")

_OWN = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
_PLAIN = _OWN | {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
_GROUPED = _PLAIN | {"num_key_value_heads": 2, "pad_token_id": 0}
_SIZED = _GROUPED | {"head_dim": WIDTH // HEADS}
_GPT = _OWN | {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_IMAGES = {
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "num_labels": 5,
}
_MAMBA = {"mamba_d_state": 4, "mamba_n_heads": 6, "mamba_d_head": 8}
_VISION = {name: _IMAGES[name] for name in _IMAGES if name != "num_labels"}
_TWO_STACKS = _OWN | {
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "pad_token_id": 0,
}

# Family to the model's class, its configuration's class, and settings.
_KINDS: dict[str, tuple[str, str, dict]] = {
    "llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        _PLAIN | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _PLAIN),
    "bert": ("BertModel", "BertConfig", _PLAIN),
    "vit": ("ViTForImageClassification", "ViTConfig", _IMAGES),
    # What attention and the feed-forward part add is what the block adds.
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _SIZED),
    "phi": ("PhiForCausalLM", "PhiConfig", _GROUPED | {"partial_rotary_factor": 1.0}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _GROUPED),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _SIZED),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _SIZED),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _SIZED),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", _GROUPED),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _GROUPED),
    "glm4": ("Glm4ForCausalLM", "Glm4Config", _SIZED),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        _OWN | {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
    ),
    "falcon": (
        "FalconForCausalLM",
        "FalconConfig",
        _OWN | {"hidden_size": WIDTH, "num_hidden_layers": LAYERS} | {"num_attention_heads": HEADS},
    ),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", _GPT | {"rotary_dim": 4}),
    "gptneo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        _OWN
        | {"hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS}
        | {"attention_types": [[["global", "local", "global"], 1]]}
        | {"max_position_embeddings": 64},
    ),
    "mpt": (
        "MptForCausalLM",
        "MptConfig",
        _OWN | {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS},
    ),
    "cohere": ("CohereForCausalLM", "CohereConfig", _GROUPED),
    "stablelm": (
        "StableLmForCausalLM",
        "StableLmConfig",
        _GROUPED | {"use_parallel_residual": True},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", _SIZED | {"num_local_experts": 2}),
    "gptoss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        _SIZED | {"num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "qwen2moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        _GROUPED | _EXPERTS | {"shared_expert_intermediate_size": 16},
    ),
    "deepseek": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        _PLAIN
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
        | {"topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
        | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 6}
        | {"qk_nope_head_dim": 6, "v_head_dim": 6, "num_key_value_heads": 4},
    ),
    # The same in a family that norms the stream after each addition.
    "openai-gpt": ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", _GPT),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": WIDTH, "hidden_dim": 40}
        | {"n_layers": LAYERS, "n_heads": HEADS},
    ),
    "electra": ("ElectraModel", "ElectraConfig", _PLAIN | {"embedding_size": WIDTH}),
    # What is added is scaled first, or comes from a third part as well.
    "granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        _GROUPED | {"residual_multiplier": 0.22, "logits_scaling": 8.0},
    ),
    "bloom-post": (
        "BloomForCausalLM",
        "BloomConfig",
        _OWN
        | {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
        | {"apply_residual_connection_post_layernorm": True},
    ),
    "falcon-h1": (
        "FalconH1ForCausalLM",
        "FalconH1Config",
        _SIZED
        | {"mamba_d_ssm": WIDTH, "mamba_n_heads": 4, "mamba_d_head": 6}
        | {"mamba_n_groups": 1, "mamba_d_state": 4},
    ),
    "beit": ("BeitForImageClassification", "BeitConfig", _IMAGES),
    # Rows lie one after another where the feed-forward part ends.
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        _OWN
        | {"hidden_size": WIDTH, "ffn_dim": 40, "num_hidden_layers": LAYERS}
        | {"num_attention_heads": HEADS, "max_position_embeddings": 64}
        | {"word_embed_proj_dim": WIDTH},
    ),
    "granite-shared": (
        "GraniteMoeSharedForCausalLM",
        "GraniteMoeSharedConfig",
        _GROUPED
        | {"residual_multiplier": 0.22, "num_local_experts": 2, "num_experts_per_tok": 1}
        | {"shared_intermediate_size": 16},
    ),
    "cpmant": (
        "CpmAntForCausalLM",
        "CpmAntConfig",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
        | {"num_attention_heads": HEADS, "dim_head": 6, "dim_ff": 40, "prompt_length": 2},
    ),
    "llama4": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        _SIZED | {"num_local_experts": 2, "intermediate_size_mlp": 40},
    ),
    # Structures that are not understood.
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 6, "d_ff": 40}
        | {"num_layers": LAYERS, "num_heads": HEADS},
    ),
    "t5-encoder": (
        "T5EncoderModel",
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 6, "d_ff": 40}
        | {"num_layers": LAYERS, "num_heads": HEADS},
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", _TWO_STACKS),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _TWO_STACKS | {"num_mel_bins": 8},
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        _OWN | {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 4},
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        "Mamba2Config",
        _OWN
        | {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 4}
        | {"num_heads": 6, "head_dim": 8, "n_groups": 1},
    ),
    "rwkv": (
        "RwkvForCausalLM",
        "RwkvConfig",
        _OWN
        | {"hidden_size": WIDTH, "num_hidden_layers": LAYERS}
        | {"attention_hidden_size": WIDTH},
    ),
    "jamba": (
        "JambaForCausalLM",
        "JambaConfig",
        _GROUPED
        | {"num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 4}
        | {"attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    "recurrent-gemma": (
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        {k: v for k, v in _SIZED.items() if k != "max_position_embeddings"}
        | {"num_key_value_heads": 1, "lru_width": WIDTH},
    ),
    "bamba": (
        "BambaForCausalLM",
        "BambaConfig",
        _GROUPED | _MAMBA | {"mamba_n_groups": 1, "attn_layer_indices": [1]},
    ),
    "bamba-first": (
        "BambaForCausalLM",
        "BambaConfig",
        _GROUPED | _MAMBA | {"mamba_n_groups": 1, "attn_layer_indices": [0]},
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        "Lfm2Config",
        _GROUPED | {"layer_types": ["conv", "full_attention", "conv"]},
    ),
    "gemma3n": (
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        _SIZED
        | {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
        | {"num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2}
        | {"layer_types": ["full_attention"] * LAYERS}
        | {"activation_sparsity_pattern": [0.0] * LAYERS},
    ),
    "albert": ("AlbertModel", "AlbertConfig", _PLAIN | {"embedding_size": 16}),
    "xlnet": (
        "XLNetLMHeadModel",
        "XLNetConfig",
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layer": LAYERS}
        | {"n_head": HEADS, "d_inner": 40},
    ),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 3]}
        | {"num_heads": [2, 2], "window_size": 4, "num_channels": 1},
    ),
    "clip": ("CLIPModel", "CLIPConfig", {"text_config": _PLAIN, "vision_config": _VISION}),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {"vision_config": _VISION | {"model_type": "clip_vision_model"}}
        | {"text_config": _GROUPED | {"num_hidden_layers": 2, "model_type": "llama"}}
        | {"image_token_index": 60},
    ),
    "llava-shallow": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {"vision_config": _VISION | {"model_type": "clip_vision_model"}}
        | {"text_config": _GROUPED | {"num_hidden_layers": 5, "model_type": "llama"}}
        | {"image_token_index": 60},
    ),
    "qwen2-vl": (
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {
            "text_config": _GROUPED
            | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}},
            "vision_config": {"depth": 5, "embed_dim": WIDTH, "num_heads": HEADS}
            | {"hidden_size": WIDTH, "patch_size": 4},
        },
    ),
}

ADDED = (
    *tuple(_KINDS)[tuple(_KINDS).index("qwen3") : tuple(_KINDS).index("openai-gpt")],
    *("granite", "opt", "llama4"),
)
NORMED = ("openai-gpt", "distilbert", "electra")
STREAM_ALONE = ("bloom-post", "beit", "rwkv")
# Blocks of several kinds, without attention, or with more than two parts; the kind of site of
# each part, block by block where they differ.
HYBRIDS = {
    "falcon-h1": ["attn mixer mlp"] * LAYERS,
    "mamba": ["mixer"] * LAYERS,
    "mamba2": ["mixer"] * LAYERS,
    "jamba": ["mixer mlp", "attn mlp", "mixer mlp"],
    "recurrent-gemma": ["mixer mlp", "mixer mlp", "attn mlp"],
    "bamba": ["mixer mlp", "attn mlp", "mixer mlp"],
    "bamba-first": ["attn mlp", "mixer mlp", "mixer mlp"],
    "lfm2": ["mixer mlp", "attn mlp", "mixer mlp"],
    "granite-shared": ["attn mlp extra"] * LAYERS,
    "t5-encoder": ["attn mlp"] * LAYERS,
    "swin": ["attn mlp"] * 4,
}
# Vision-language models: blocks of the language model.
TOWERS = {"llava": 2, "llava-shallow": 5, "qwen2-vl": LAYERS}
NOT_UNDERSTOOD = {
    "t5": "t5. is not understood: it is an encoder-decoder",
    "bart": "bart. is not understood: it is an encoder-decoder",
    "whisper": "whisper. is not understood: it is an encoder-decoder",
    "gemma3n": "gemma3n_text. is not understood: the values between its parts",
    "albert": "albert. is not understood: its configuration states 3 blocks, and it has",
    "xlnet": "xlnet. is not understood: the values between its parts",
    "clip": "CLIPModel cannot be checked: it does not run on a short input",
    "cpmant": "cpmant. is not understood: the positions of its stream are not those",
}


def tiny(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of ``family`` in evaluation mode."""
    torch.manual_seed(seed)
    kind, config, settings = _KINDS[family]
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings))
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
        tuple(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()) for n in lengths
    )
    starts = tuple(n - a for n, a in zip(lengths, answers, strict=True))
    return Sequences(ids, starts)


def pixels(count: int = 7) -> torch.Tensor:
    """(image, 1, 8, 8) random images."""
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
