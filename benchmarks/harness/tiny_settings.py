"""Settings of architectures whose tiny configuration does not follow from names of fields."""

from collections.abc import Mapping
from typing import Any

# Fields that only make sense at full size, or that name files or code.
DROPPED = frozenset(
    {"quantization_config", "auto_map", "dtype", "torch_dtype", "id2label", "per_layer_config"}
)

_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 8}
_DECODER = {"is_decoder": True}
_TWO_KINDS = {"layer_types": ["linear_attention", "full_attention"]}
_LINEAR = _TWO_KINDS | {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
_DIVIDED = {"head_dim": 8, "num_key_value_heads": 2}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"]}
_GEMMA3N = _ALTERNATING | {
    "intermediate_size": [64, 64],
    "activation_sparsity_pattern": [0.5, 0.0],
    "altup_num_inputs": 2,
}
_SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
_GEMMA4 = _ALTERNATING | {"per_layer_config": {1: {"head_dim": 8}}}

# Model type to settings that take the place of the shrunk ones; None leaves a field out.
# Hybrids get both of their kinds of block.
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra"),
            *("ernie", "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert"),
            *("roformer", "xlm-roberta", "xlm-roberta-xl"),
        ),
        _DECODER,
    ),
    "bamba": _MAMBA2 | {"attn_layer_indices": [1]},
    "big_bird": _DECODER | {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "cohere_compass_text": _ALTERNATING
    | {"rope_parameters": {kind: {"rope_theta": 1e4} for kind in _ALTERNATING["layer_types"]}},
    "codegen": {"rotary_dim": 4},
    "dbrx": {"attn_config": {"rope_theta": 1e4}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
    | {"num_key_value_heads": 2, "first_k_dense_replace": 1},
    "falcon_h1": _MAMBA2
    | {"mamba_d_ssm": 64, "attention_out_multiplier": 0.7, "ssm_out_multiplier": 0.4},
    "gemma3n_text": _GEMMA3N,
    "gemma3n": {"text_config": _GEMMA3N},
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4,
    "gemma4_unified": {"text_config": _GEMMA4},
    "gemma4_unified_text": _GEMMA4,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": None},
    "gptj": {"rotary_dim": 4},
    "granite": {"residual_multiplier": 0.22, "logits_scaling": 8.0},
    "granite_swa": {"residual_multiplier": 0.22, "logits_scaling": 8.0},
    "granitemoe": {"residual_multiplier": 0.22, "logits_scaling": 8.0},
    "granitemoe_swa": {"residual_multiplier": 0.22, "logits_scaling": 8.0},
    "granitemoeshared": {"residual_multiplier": 0.22, "shared_intermediate_size": 16},
    "granitemoehybrid": _MAMBA2
    | {"layer_types": ["linear_attention", "full_attention"], "residual_multiplier": 0.22},
    "hunyuan_v1_dense": _DIVIDED,
    "hunyuan_v1_moe": _DIVIDED | {"num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"]}
    | {"linear_num_heads": 4, "linear_head_dim": 8},
    "laguna": {"num_attention_heads_per_layer": [4, 4]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4": {"layer_types": None, "moe_layers": [1], "no_rope_layers": [1, 0]},
    "llama4_text": {"moe_layers": [1], "no_rope_layers": [1, 0]}
    | {"layer_types": ["chunked_attention", "full_attention"]},
    "longcat_flash": {"expert_ffn_hidden_size": 16, "zero_expert_num": 2, "moe_topk": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 4, "chunk_size": 8},
    "llava": {"vision_config": {"projection_dim": 32}, "image_token_index": 2},
    "ministral": _DIVIDED,
    "nemotron": _DIVIDED,
    "olmo_hybrid": _TWO_KINDS,
    "qwen2_5_vl": {"text_config": {"rope_parameters": _SECTIONS}},
    "qwen2_vl": {"text_config": {"rope_parameters": _SECTIONS}},
    "qwen3_5": _LINEAR,
    "qwen3_5_moe": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": _DECODER
    | {"attn_layers": ["local", "local"], "axial_pos_embds": False, "local_attn_chunk_length": 8},
    "xlnet": {"d_head": 8},
    "xlstm": {"embedding_dim": 32, "num_heads": 4},
    "xmod": _DECODER | {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4}
    | {"attention_hidden_size": 64, "attention_head_dim": 16, "use_mamba_kernels": False},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "hybrid_layer_ids": [1]}
    | {"attention_hidden_size": 64, "attention_head_dim": 16, "mamba_headdim": 8}
    | {"n_mamba_heads": 8, "kv_channels": 8, "num_query_groups": 4, "use_mamba_kernels": False},
    "zaya": {"num_experts_per_tok": 1},
}


def merged(settings: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of an architecture in their place, in nested ones as well."""
    found = dict(settings)
    for name, value in own.items():
        if value is None:
            found.pop(name, None)
        elif isinstance(value, dict) and isinstance(found.get(name), dict):
            found[name] = merged(found[name], value)
        else:
            found[name] = value
    return found
