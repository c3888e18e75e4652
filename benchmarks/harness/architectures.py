"""Tiny random models of every causal architecture of transformers, from shrunk configurations.

The settings of a configuration class keep their defaults, except sizes: those are set by the
names of the fields. An architecture whose fields depend on each other has settings of its own.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.harness import tiny_settings
from capture.checkpoints.schemas.library_errors import quiet_transformers

LAYERS, WIDTH, HEADS, VOCABULARY = 2, 32, 4, 96
# Names of fields, and what they are set to; the first match counts. None leaves the field out, so
# that the class computes it.
RULES: tuple[tuple[str, Any], ...] = (
    (r".*layer_types|layers_block_type|block_types|mlp_layer_types|.*_layers_pattern", None),
    (r"(first_k_dense_replace|num_dense_layers|moe_layer_start_index)", 1),
    (r"(qk_head_dim)", None),
    (r"(num_nextn_predict_layers|num_kv_shared_layers|n_mtp.*|mtp_num.*)", 0),
    (r"(num_hidden_layers|n_layers?|num_layers|num_blocks|depth)", LAYERS),
    (r"(encoder|decoder)_layers", LAYERS),
    (r"(vocab_size|.*_vocab_size|vocab_size_per_layer_input|n_vocab)", VOCABULARY),
    (
        r"(num_key_value_heads|num_kv_heads|n_head_kv|.*num_key_value_heads|multi_query_group_num)",
        2,
    ),
    (
        r"(num_attention_heads|n_heads?|num_heads|.*_attention_heads|attn_heads|mamba_num_heads)",
        HEADS,
    ),
    (r"(global_head_dim|head_dim|kv_channels|.*_head_dim|d_kv|v_head_dim)", WIDTH // HEADS),
    (r"(qk_rope_head_dim|qk_nope_head_dim)", WIDTH // HEADS),
    (r"(hidden_size|d_model|n_embd|dim|embed_dim|embedding_size|emb_dim|model_dim|width)", WIDTH),
    (r"(word_embed_proj_dim|attention_hidden_size|lru_width|input_embedding_size|d_embed)", WIDTH),
    (
        r"(.*intermediate_size.*|ffn_dim|d_ff|d_inner|n_inner|.*_ffn_dim|dim_ff|dff|ffn_hidden.*)",
        64,
    ),
    (r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts|ffn_num_experts)", 4),
    (r"(num_experts_per_tok|num_experts_per_token|moe_k|moe_top_k|top_k_experts|topk)", 2),
    (r"(n_group|topk_group|num_expert_group|num_limited_groups)", 1),
    (r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|seq_length)", 64),
    (r"(.*state_size|d_state|mamba_d_state|ssm_state_size)", 4),
    (r"(n_groups|mamba_n_groups)", 1),
    (r"(q_lora_rank|kv_lora_rank|.*_lora_rank|laurel_rank|time_step_rank|mamba_dt_rank)", 8),
    (r"(hidden_size_per_layer_input)", 8),
    (r"(image_size)", 16),
    (r"(patch_size)", 4),
)
_RULES = tuple((re.compile(pattern), value) for pattern, value in RULES)
_ID = re.compile(r".*(_token_id|_token_index|_token_ids|_id)")


def causal_architectures() -> dict[str, str]:
    """Model type to the class of every architecture that ``AutoModelForCausalLM`` knows."""
    from transformers.models.auto import modeling_auto

    return dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def shrunk(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a tiny configuration from those of a whole one."""
    small: dict[str, Any] = {}
    for name, value in settings.items():
        if name in tiny_settings.DROPPED or name.startswith("_"):
            continue
        if isinstance(value, dict) and ("model_type" in value or name.endswith("_config")):
            small[name] = shrunk(value)
        elif _ID.fullmatch(name):
            if isinstance(value, int) and value >= VOCABULARY:
                small[name] = value % 3
            elif isinstance(value, list):
                small[name] = [each % 3 for each in value if isinstance(each, int)]
            else:
                small[name] = value
        else:
            rule = next((new for pattern, new in _RULES if pattern.fullmatch(name)), ...)
            if rule is None:
                continue
            keep = rule is ... or isinstance(value, bool | str | list | dict) or value in (None, 0)
            small[name] = value if keep else rule
    if "kv_lora_rank" in small:  # latent attention has no groups of heads
        small["num_key_value_heads"] = HEADS
    return small


def tiny_model(model_type: str, class_name: str = "", seed: int = 0) -> nn.Module:
    """A random model of an architecture, in evaluation mode.

    Norms, biases and other vectors are random as well, so that a site at a wrong place has a
    different value.

    Args:
        model_type: Of the configuration; it names the settings of ``tiny_settings``.
        class_name: Of transformers; the causal class of the type by default.
        seed: Of the weights.

    Raises:
        Exception: whatever the library raises where it cannot build one offline.
    """
    import transformers

    kind = getattr(transformers, class_name or causal_architectures()[model_type])
    config_class = kind.config_class
    with quiet_transformers():
        settings = shrunk(config_class().to_dict())
        for name in ("architectures", "transformers_version", "model_type"):
            settings.pop(name, None)
        own = tiny_settings.OWN.get(model_type, {})
        config = config_class(**tiny_settings.merged(settings, own))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = kind(config)
            randomize_(model)
    return model.float().eval()


def randomize_(model: nn.Module) -> None:
    """Random weights of a size at which every part adds something to the stream."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
            elif "bias" in name:
                parameter.normal_(0, 0.1)
            else:
                parameter.uniform_(0.5, 1.5)
