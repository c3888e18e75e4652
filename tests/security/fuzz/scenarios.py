"""Known ways to attack, each several edits that mean something together only."""

import json
from collections.abc import Iterator

from tests.security.fuzz.inputs.case import Case, Edit
from tests.security.fuzz.inputs.catalogue_more import ALL
from tests.security.fuzz.inputs.edits import CONDITIONS

PEFT_TYPES = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT"),
    *("ADALORA", "BOFT", "ADAPTION_PROMPT", "LOHA", "LOKR", "OFT", "POLY", "LN_TUNING"),
    *("VERA", "FOURIERFT", "XLORA", "HRA", "VBLORA", "RANDLORA", "TRAINABLE_TOKENS"),
    *("SHADOW", "CARTRIDGE", "ROAD", "OSF", "TINYLORA", "lora", "EVIL"),
)
# Everything by which an adapter may ask for something further.
_FURTHER = {
    "shadow_model": '"{evil}"',
    "tokenizer_name_or_path": '"{evil}"',
    "prompt_tuning_init": '"TEXT"',
    "prompt_tuning_init_text": '"words"',
    "prompt_tuning_init_state_dict_path": '"{evil}/adapter_model.bin"',
    "num_virtual_tokens": "4",
    "adapters": '{"0": "{evil}", "1": "org/adapter"}',
    "trust_remote_code": "true",
    "auto_mapping": '{"base_model_class": "run", "parent_library": "exhume_canary"}',
    "boft_block_size": "4",
    "task_type": '"CAUSAL_LM"',
}
MODEL_TYPES = (
    *("t5", "mamba", "rwkv", "bert", "vit", "clip", "llava", "qwen2_vl", "whisper"),
    *("jamba", "falcon", "mixtral", "gpt_neox", "rag", "encoder-decoder", "timm_wrapper"),
    *("timm_backbone", "dpr", "esm", "auto", "PreTrainedConfig", "", "llama.evil"),
)
ARCHITECTURES = (
    *("T5ForConditionalGeneration", "BertModel", "PreTrainedModel", "AutoModel"),
    *("LlamaModel", "LlamaForSequenceClassification", "GPT2LMHeadModel", "pipeline"),
    *("Trainer", "RagModel", "TimmBackbone", "LlamaForImageClassification", "ViTModel"),
)
_IMPLEMENTATIONS = ("org/kernel", "org/kernel:run", "flash_attention_2", "kernels", "3")
_SETTINGS: dict[str, tuple[str, ...]] = {
    "num_hidden_layers": ("1000000000", "100000", "-1", "0", "1"),
    "num_attention_heads": ("0", "-4", "1000000000", "3"),
    "hidden_size": ("0", "1000000000", "1000000", "47"),
    "intermediate_size": ("1000000000000", "0"),
    "vocab_size": ("1000000000000", "0", "-1", "10", "1000000"),
    "head_dim": ("0", "1000000000", "13"),
    "max_position_embeddings": ("0", "1", "-1", "1000000000000"),
    "rms_norm_eps": ("NaN", "1e308", "-1.0", "0"),
    "pad_token_id": ("-5", "1000000", "372"),
    "hidden_act": ('"eval"', '"exhume_canary"', '"gelu_python"'),
    "dtype": ('"evil"', '"float8_e4m3fn"', '"int8"', '"bool"', '"auto"'),
    "rope_parameters": (
        '{"rope_type": "yarn", "factor": 1e308}',
        '{"rope_type": "dynamic", "factor": 0}',
        '{"rope_type": "evil"}',
        '{"rope_theta": NaN, "rope_type": "default"}',
        '{"rope_theta": 0, "rope_type": "default"}',
        '{"rope_type": "longrope", "short_factor": [], "long_factor": []}',
    ),
    "quantization_config": (
        '{"quant_method": "gptq"}',
        '{"quant_method": "bitsandbytes", "load_in_4bit": true}',
        '{"quant_method": "evil"}',
        "null",
    ),
    "transformers_weights": ('"../other/model.safetensors"', '"pytorch_model.bin"'),
    "tie_word_embeddings": ("true", '"yes"'),
    "is_encoder_decoder": ("true",),
    "use_cache": ('"no"',),
    "auto_map": (
        '{"AutoConfig": "modeling_evil.Evil", "AutoModel": "modeling_evil.Evil",'
        ' "AutoModelForCausalLM": "modeling_evil.Evil"}',
        '{"AutoModelForCausalLM": "org/repo--modeling_evil.Evil"}',
    ),
}
_PATTERNS = ("(a+)+$", "(.*)*(.*)*(.*)*x", "(((.*)*)*)*q_proj!", ".*", "[", "q_proj|" * 9999)
_ADAPTER: dict[str, tuple[str, ...]] = {
    "target_modules": (
        *(json.dumps(each) for each in _PATTERNS),
        '["lm_head"]',
        '["embed_tokens"]',
        "[]",
        '"all-linear"',
        '["nothing"]',
    ),
    "exclude_modules": tuple(json.dumps(each) for each in _PATTERNS),
    "rank_pattern": (
        *(json.dumps({each: 1}) for each in _PATTERNS),
        '{"q_proj": 1000000000}',
        '{"q_proj": -1}',
        '{"q_proj": NaN}',
    ),
    "alpha_pattern": ('{"q_proj": NaN}', '{"q_proj": 1e308}', '{"(a+)+$": 1}'),
    "lora_alpha": ("NaN", "1e308", "Infinity", "-1", "0", "1e39"),
    "r": ("0", "-1", "1000000000", "NaN", "3", "true", '"2"'),
    "init_lora_weights": (
        *('"pissa_niter_1000000"', '"pissa"', '"olora"', '"loftq"', '"eva"', '"corda"'),
        *('"gaussian"', '"orthogonal"', '"lora_ga"', "false"),
    ),
    "layer_replication": (json.dumps([[0, 2]] * 100_000), "[[0, 2]]", "[[0, 9]]", "[]"),
    "modules_to_save": ('["lm_head"]', '["evil"]', '["model"]'),
    "layers_to_transform": ("[0]", "[-1]", "[1000000]", "3"),
    "use_dora": ("true",),
    "use_rslora": ("true",),
    "bias": ('"all"', '"evil"'),
    "lora_bias": ("true",),
    "megatron_config": ("{}", '{"a": 1}'),
    "megatron_core": ('"exhume_canary"',),
    "base_model_name_or_path": (
        *('"{evil}"', '"org/base"', '"."', '"../adapter"', '"/"', '"base/../base"'),
        *('"{fifo}"', '"{missing}"'),
    ),
    "target_parameters": ('["model.layers.0.mlp.up_proj.weight"]', '["(a+)+$"]'),
    "trainable_token_indices": ("[0, 1]", "[1000000]", "[-1]", '{"(a+)+$": [1]}'),
    "loftq_config": ('{"loftq_bits": 4}',),
    "eva_config": ("{}",),
    "peft_version": ('"999"', '"evil"'),
    "inference_mode": ("false",),
}
_NORMALIZERS = (
    {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 200},
    {"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": ""},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Prepend", "prepend": "x" * 1_000_000},
)


def _set(file: str, key: str, raw: str) -> Edit:
    return Edit(file, "text", (key,), raw)


def _adapters() -> Iterator[Case]:
    file = "in/adapter/adapter_config.json"
    fields = tuple(_set(file, key, raw) for key, raw in _FURTHER.items())
    for kind in PEFT_TYPES:
        name = _set(file, "peft_type", json.dumps(kind))
        yield Case("LoRA adapter", (name,))
        yield Case("LoRA adapter", (*fields, name))
    for key, values in _ADAPTER.items():
        for raw in values:
            yield Case("LoRA adapter", (_set(file, key, raw),))
    for name in ("adapter_model.bin", "adapter_model.pt"):
        beside = Edit(file, "beside", (), (name, "torch archive"))
        gone = Edit("in/adapter/adapter_model.safetensors", "place", (), "missing")
        yield Case("LoRA adapter", (beside,))
        yield Case("LoRA adapter", (beside, gone))


def _models() -> Iterator[Case]:
    for kind, folder in (("model validated", "in/model"), ("model audited", "in/model")):
        file = f"{folder}/config.json"
        for name in MODEL_TYPES:
            text = json.dumps(name)
            yield Case(kind, (_set(file, "model_type", text),))
            both = _set(file, "architectures", "null")
            yield Case(kind, (_set(file, "model_type", text), both))
        for name in ARCHITECTURES:
            yield Case(kind, (_set(file, "architectures", json.dumps([name])),))
        for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
            for name in _IMPLEMENTATIONS:
                yield Case(kind, (_set(file, key, json.dumps(name)),))
        for key, values in _SETTINGS.items():
            for raw in values:
                yield Case(kind, (_set(file, key, raw),))
        pickle = Edit(file, "beside", (), ("pytorch_model.bin", "torch archive"))
        gone = Edit(f"{folder}/model.safetensors", "place", (), "missing")
        moved = _set(file, "transformers_weights", '"pytorch_model.bin"')
        yield Case(kind, (pickle,))
        yield Case(kind, (pickle, gone))
        yield Case(kind, (pickle, gone, moved))
        yield from _tokenizers(kind, folder)


def _tokenizers(kind: str, folder: str) -> Iterator[Case]:
    file = f"{folder}/tokenizer.json"
    for one in _NORMALIZERS:
        for count in (1, 4):
            chain = {"type": "Sequence", "normalizers": [one] * count}
            yield Case(kind, (_set(file, "normalizer", json.dumps(chain)),))
    for one in (
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    ):
        yield Case(kind, (_set(file, "pre_tokenizer", json.dumps(one)),))
    for text in ("{{ ''.__class__.__mro__ }}", "{% for a in range(10**9) %}x{% endfor %}"):
        settings = f"{folder}/tokenizer_config.json"
        yield Case(kind, (_set(settings, "chat_template", json.dumps(text)),))
    for name in ("evil", "PreTrainedTokenizerBase", "AutoTokenizer", "T5Tokenizer"):
        settings = f"{folder}/tokenizer_config.json"
        yield Case(kind, (_set(settings, "tokenizer_class", json.dumps(name)),))


def _pga() -> Iterator[Case]:
    file = "in/pga/pga.yaml"
    for key, raw in (
        ("seed", "99999999999999999999999"),
        ("epochs", "1000000000000"),
        ("permutations", "1000000000000"),
        ("random_inits", "1000000000000"),
        ("folds", "1000000000000"),
        ("erase_share", ".nan"),
        ("align_weight", ".inf"),
        ("align_weight", "1e308"),
        ("margin", "2024-01-01"),
        ("erasers", "[]"),
        ("erasers", '["pga", "pga"]'),
        ("device", '"meta"'),
    ):
        yield Case("pga settings", (_set(file, key, raw),))


def _conditions() -> Iterator[Case]:
    """Good inputs where the terminal or the disk is full, or the folder was deleted."""
    for name, kind in ALL.items():
        if not kind.twin and not name.startswith("arguments"):
            for each in CONDITIONS:
                yield Case(name, (Edit("", "condition", (), each),))


def scenarios() -> list[Case]:
    """All of them."""
    return [*_adapters(), *_models(), *_pga(), *_conditions()]
