"""What people have on their disks opens: families, old files, tokenizers of all kinds.

Checks of untrusted files are worth nothing if they refuse honest ones.
"""

import io
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel

from capture.checkpoints.open import open_checkpoint
from capture.checkpoints.tokenizers.files import open_tokenizer
from capture.checkpoints.tokenizers.schema import check_tokenizer
from tests.helpers import tiny_models
from tests.helpers.model_families import tiny

SIZES = {
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_seq_len": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "image_size": 32,
    "patch_size": 8,
    "num_local_experts": 4,
    "num_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_labels": 3,
}
FAMILIES = (
    "BloomForCausalLM",
    "CohereForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "GPT2LMHeadModel",
    "GPTJForCausalLM",
    "GPTNeoXForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "MptForCausalLM",
    "Olmo2ForCausalLM",
    "OlmoForCausalLM",
    "OPTForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
    "BertForMaskedLM",
    "RobertaForMaskedLM",
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "BeitForImageClassification",
    "Dinov2ForImageClassification",
)


def made(name):
    """A small random model of a class of transformers."""
    kind = getattr(transformers, name)
    default = kind.config_class()
    settings: dict[str, object] = {
        key: value for key, value in SIZES.items() if hasattr(default, key)
    }
    if getattr(default, "layer_types", None):
        settings["layer_types"] = [default.layer_types[0], default.layer_types[-1]]
    torch.manual_seed(0)
    return kind(kind.config_class(**settings)).eval()


def same(a, b) -> bool:
    """Whether two models hold the same numbers, buffers included."""
    one = {**a.state_dict(), **dict(a.named_buffers())}
    other = {**b.state_dict(), **dict(b.named_buffers())}
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_loads_as_its_library_loads_it(tmp_path, name):
    made(name).save_pretrained(tmp_path)
    theirs = getattr(transformers, name).from_pretrained(tmp_path)
    ours = open_checkpoint(tmp_path).load()
    assert isinstance(ours, PreTrainedModel)
    assert type(ours) is type(theirs) and same(ours, theirs)
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    left_out = {"dtype", "_name_or_path"}
    expected, known = theirs.config.to_dict(), ours.config.to_dict()
    assert {k: known[k] for k in known if k not in left_out} == {
        k: expected[k] for k in expected if k not in left_out
    }


def test_old_files_hold_buffers_that_are_no_weights_any_more(tmp_path):
    for family, buffers in {
        "gpt2": {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64),
            "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        },
        "neox": {
            "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8).bool(),
            "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9).half(),
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(3),
        },
        "gptj": {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64).bool(),
            "transformer.h.1.attn.masked_bias": torch.tensor(-1e9),
        },
        "llama": {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(3)},
        "bert": {"embeddings.position_ids": torch.arange(64)[None]},
    }.items():
        folder = tmp_path / family
        model = made("GPTJForCausalLM") if family == "gptj" else tiny(family)
        model.save_pretrained(folder)
        file = folder / "model.safetensors"
        save_file(load_file(file) | buffers, file, metadata={"format": "pt"})
        assert same(open_checkpoint(folder).load(), model)


def test_names_without_the_models_prefix_are_found(tmp_path):
    model = tiny("gpt2")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    bare = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    assert same(open_checkpoint(tmp_path).load(), model)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_output_layers_tied_or_not_held_or_not(tmp_path, tied, held):
    config = tiny("llama").config
    assert isinstance(config, transformers.LlamaConfig)
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    if held:
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"] + 0)
    else:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, file, metadata={"format": "pt"})
    if not tied and not held:
        with pytest.raises(Exception, match="missing"):
            open_checkpoint(tmp_path)
        return
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert same(open_checkpoint(tmp_path).load(), theirs)


def test_several_files_with_an_index(tmp_path):
    model = tiny("neox")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same(open_checkpoint(tmp_path).load(), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_widths(tmp_path, dtype):
    model = tiny("llama").to(dtype)
    model.save_pretrained(tmp_path)
    loaded, kept = open_checkpoint(tmp_path).load().state_dict(), model.state_dict()
    assert all(torch.equal(loaded[name], kept[name].float()) for name in kept)


def test_a_configuration_of_long_ago(tmp_path):
    """Names, types and leftovers of other versions and of other people's tools."""
    tiny("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config.pop("rope_parameters")
    config |= {
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "_name_or_path": "somebody/something",
        "_flash_attn_2_enabled": False,
        "_attn_implementation_autoset": True,
        "attn_implementation": "flash_attention_2",
        "auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"},
        "pad_token_id": -1,
        "pretraining_tp": 1,
        "unsloth_fixed": True,
        "unsloth_version": "2025.1",
        "task_specific_params": {"text-generation": {"do_sample": True}},
        "max_sequence_length": 2048,
        "quantization_config": None,
        "_from_model_config": True,
        "temperature": 0.7,
    }
    path.write_text(json.dumps(config))
    assert same(open_checkpoint(tmp_path).load(), tiny("llama"))


BPE = json.loads(tiny_models.byte_level().backend_tokenizer.to_str())["model"]
MERGES = [tuple(pair) for pair in BPE["merges"]]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cap", "##ital", "of"]


def pieces(kind: str) -> bytes:
    """A vocabulary of SentencePiece, with its table of replacements."""
    spm = pytest.importorskip("sentencepiece")
    made = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([*tiny_models.TEXT] * 60),
        model_writer=made,
        vocab_size=70,
        model_type=kind,
        minloglevel=2,
    )
    return made.getvalue()


def merges() -> bytes:
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    return "\n".join(lines).encode()


def token(content: str) -> dict:
    flags = ("lstrip", "normalized", "rstrip", "single_word")
    return {"__type": "AddedToken", "content": content, **dict.fromkeys(flags, False)}


TOKENIZERS = {
    "GPT2Tokenizer": ("gpt2", lambda: {"vocab": BPE["vocab"], "merges": MERGES}),
    "Qwen2Tokenizer": ("qwen2", lambda: {"vocab": BPE["vocab"], "merges": MERGES}),
    "GPTNeoXTokenizer": ("gpt_neox", lambda: {"vocab": BPE["vocab"], "merges": MERGES}),
    "RobertaTokenizer": ("roberta", lambda: {"vocab": BPE["vocab"], "merges": MERGES}),
    "CohereTokenizer": ("cohere", lambda: {"vocab": BPE["vocab"], "merges": MERGES}),
    "LlamaTokenizer": ("llama", lambda: llama_vocabulary()),
    "GemmaTokenizer": ("gemma", lambda: llama_vocabulary()),
    "BertTokenizer": ("bert", lambda: {"vocab": {w: i for i, w in enumerate(WORDS)}}),
}


def llama_vocabulary():
    model = json.loads(tiny_models.metaspace().backend_tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(m) for m in model["merges"]]}


def check_like_theirs(folder, config):
    """Our tokenizer reads as the library's, and is the same in all that is kept."""
    (folder / "config.json").write_text(json.dumps(config))
    theirs, ours = AutoTokenizer.from_pretrained(folder), open_tokenizer(folder, config)
    text = "The capital of France is Paris; 1,234 naïve\n\t漢字 🙂 don't <s> <x>  two"
    assert type(ours) is type(theirs)
    assert ours(text) == theirs(text)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    for name in (
        "special_tokens_map",
        "all_special_tokens",
        "chat_template",
        "model_max_length",
        "padding_side",
        "model_input_names",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_of_each_class(tmp_path, name):
    family, vocabulary = TOKENIZERS[name]
    getattr(transformers, name)(**vocabulary()).save_pretrained(tmp_path)
    check_like_theirs(tmp_path, {"model_type": family})


def files_of(kind: str) -> dict[str, bytes | dict | str]:
    match kind:
        case "llama":
            return {
                "tokenizer.model": pieces("bpe"),
                "tokenizer_config.json": {
                    "tokenizer_class": "LlamaTokenizer",
                    "bos_token": token("<s>"),
                    "add_bos_token": True,
                    "add_eos_token": False,
                    "legacy": False,
                    "sp_model_kwargs": {},
                    "model_max_length": 1000000000000000019884624838656,
                },
                "special_tokens_map.json": {
                    "bos_token": token("<s>"),
                    "eos_token": "</s>",
                    "additional_special_tokens": ["<x>"],
                },
                "chat_template.jinja": "{% for m in messages %}{{ m }}{% endfor %}",
            }
        case "gemma":
            return {"tokenizer.model": pieces("bpe")}
        case "xlm-roberta":
            return {"sentencepiece.bpe.model": pieces("unigram")}
        case "t5":
            return {
                "spiece.model": pieces("unigram"),
                "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "extra_ids": 10},
            }
        case "gpt2":
            return {
                "vocab.json": BPE["vocab"],
                "merges.txt": merges(),
                "added_tokens.json": {"<x>": len(BPE["vocab"])},
                "special_tokens_map.json": {"pad_token": "<x>"},
            }
        case "qwen2":
            return {
                "vocab.json": BPE["vocab"],
                "merges.txt": merges(),
                "tokenizer_config.json": {
                    "tokenizer_class": "Qwen2Tokenizer",
                    "added_tokens_decoder": {"400": token("<x>") | {"special": True}},
                    "additional_special_tokens": ["<x>"],
                    "errors": "replace",
                    "chat_template": "{{ x }}",
                },
            }
        case _:
            return {"vocab.txt": "\n".join(WORDS)}


@pytest.mark.parametrize("kind", ["llama", "gemma", "xlm-roberta", "t5", "gpt2", "qwen2", "bert"])
def test_vocabularies_from_before_tokenizer_json(tmp_path, kind):
    for name, content in files_of(kind).items():
        text = json.dumps(content) if isinstance(content, dict) else content
        data = text.encode() if isinstance(text, str) else text
        (tmp_path / name).write_bytes(data)
    check_like_theirs(tmp_path, {"model_type": kind})


def test_a_tokenizer_without_a_model(tmp_path):
    tiny_models.byte_level().save_pretrained(tmp_path)
    shutil.copytree(tmp_path, tmp_path.parent / "again")
    assert open_tokenizer(tmp_path, {})("Paris") == tiny_models.byte_level()("Paris")


def test_tables_and_models_of_real_tokenizers_pass(tmp_path):
    from transformers import XLMRobertaTokenizer

    (tmp_path / "sentencepiece.bpe.model").write_bytes(pieces("unigram"))
    made = XLMRobertaTokenizer.from_pretrained(tmp_path)
    value = json.loads(made.backend_tokenizer.to_str())
    assert "Precompiled" in str(value["normalizer"])[:5000]
    check_tokenizer(value, tmp_path)
