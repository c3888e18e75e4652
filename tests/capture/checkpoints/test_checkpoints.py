"""Checkpoints of every kind open, load afresh, and hold what they should."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from capture.checkpoints.cache import cache_root
from capture.checkpoints.open import check_base, open_checkpoint
from capture.checkpoints.safetensors_files import module_tensors
from capture.checkpoints.weight_change import compare_weights
from evidence.errors import InputError
from tests.helpers.model_families import VOCABULARY, WIDTH, Cnn, tiny
from tests.helpers.tiny_models import byte_level

IDS = torch.tensor([[5, 9, 33, 7]])


def test_the_cache_follows_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("EXHUME_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    monkeypatch.delenv("EXHUME_CACHE")
    assert cache_root().name == "exhume"


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "bert", "vit"])
def test_a_folder_loads_to_the_same_tensors(tmp_path, family):
    model = tiny(family)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path, name="mine")
    loaded = checkpoint.load()
    assert checkpoint.name == "mine" and checkpoint.path == tmp_path
    assert type(loaded) is type(model) and not loaded.training
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_half_precision_loads_as_float32(tmp_path):
    tiny("llama").bfloat16().save_pretrained(tmp_path)
    loaded = open_checkpoint(tmp_path).load()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_loaded_model_is_the_callers_to_modify():
    model = Cnn().train()
    checkpoint = open_checkpoint(model)
    loaded = checkpoint.load()
    with torch.no_grad():
        loaded.get_parameter("first.weight").zero_()
    assert model.first.weight.abs().sum() > 0 and model.training
    assert not loaded.training and checkpoint.live is model


def test_plain_modules_of_equal_weights_keep_their_structure_apart():
    relu = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    tanh = nn.Sequential(relu[0], nn.Tanh())
    a, b = open_checkpoint(relu), open_checkpoint(tanh)
    assert a.weights_hash == b.weights_hash and a.config != b.config


def test_a_tokenizer_comes_from_the_folder_or_from_the_caller(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    assert open_checkpoint(tmp_path).tokenizer is None
    own = byte_level()
    assert open_checkpoint(tmp_path, tokenizer=own).tokenizer is own
    own.save_pretrained(tmp_path)
    text = "The capital city of Peru is"
    assert open_checkpoint(tmp_path).tokenizer(text) == own(text)
    named = open_checkpoint(tiny("llama"), tokenizer=tmp_path)
    assert named.tokenizer(text) == own(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "absent", "hub"),
        (lambda path: path, "config.json"),
        (lambda path: path / "notes.txt", "not a model"),
        (lambda path: 3, "unsupported type"),
        (lambda path: "no such thing!", "no model"),
        (lambda path: "nobody/nothing-at-all", "hub"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, make, message):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=message):
        open_checkpoint(make(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_broken_config_is_refused(tmp_path, text):
    tiny("llama").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is not"):
        open_checkpoint(tmp_path)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "architectures": ["Mine"],
        "auto_map": {"AutoModelForCausalLM": "code.Mine", "AutoConfig": "code.Conf"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('code was executed')")
    with pytest.raises(InputError, match="never run"):
        open_checkpoint(tmp_path).load()


def test_quantised_weights_are_refused(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="holds quantized weights"):
        open_checkpoint(tmp_path)


def adapter(path, base, seed=0):
    """A trained-looking LoRA adapter in ``path``; returns the adapted model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
    with warnings.catch_warnings():
        # peft asks transformers for an attribute under its old name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        adapted = get_peft_model(tiny("llama"), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(path)
    return adapted.eval()


@pytest.fixture
def lora(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "base")
    adapted = adapter(tmp_path / "lora", tmp_path / "base")
    return tmp_path, adapted


def test_an_adapter_is_merged_into_its_base(lora):
    path, adapted = lora
    checkpoint = open_checkpoint(path / "lora")
    base = open_checkpoint(path / "base")
    with torch.no_grad():
        expected = adapted(IDS).logits
        torch.testing.assert_close(checkpoint.load()(IDS).logits, expected)
        assert (base.load()(IDS).logits - expected).abs().max() > 0.01
    assert checkpoint.adapter == path / "lora" and checkpoint.path == path / "base"
    assert checkpoint.weights_hash != base.weights_hash


def test_the_strength_of_an_adapter_is_part_of_its_fingerprint(lora):
    path, _ = lora
    before = open_checkpoint(path / "lora").weights_hash
    settings = json.loads((path / "lora" / "adapter_config.json").read_text())
    settings["lora_alpha"] *= 2
    (path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    assert open_checkpoint(path / "lora").weights_hash != before


def test_the_base_can_be_given(lora, tmp_path):
    path, _ = lora
    (path / "base").rename(path / "moved")
    with pytest.raises(InputError):
        open_checkpoint(path / "lora")
    opened = open_checkpoint(path / "lora", base=path / "moved")
    assert opened.path == path / "moved"


def test_a_base_that_is_not_there_is_asked_for_by_a_name_that_exists(lora):
    path, _ = lora
    (path / "base").rename(path / "moved")
    with pytest.raises(
        InputError, match=r"is not on this machine\. .*: --base, or base= in Python"
    ):
        open_checkpoint(path / "lora")


def test_a_base_without_an_adapter_is_refused(lora):
    path, _ = lora
    check_base(None, [path / "base"])
    check_base(path / "base", [path / "base", path / "lora"])
    with pytest.raises(InputError, match="no model is an adapter"):
        check_base(path / "base", [path / "base"])
    with pytest.raises(InputError, match="unsupported type"):
        check_base(3, [path / "lora"])


def test_prompt_tuning_is_refused_as_what_it_is(lora):
    path, _ = lora
    file = path / "lora" / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}))
    with pytest.raises(InputError, match=r"not a change of weights\..*PROMPT_TUNING"):
        open_checkpoint(path / "lora")


def test_tensors_that_zero_left_empty_are_named_so(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: torch.empty(0)}, file, {"format": "pt"})
    with pytest.raises(InputError, match=f"1 empty, such as {name}.*ZeRO-3"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["live", "folder"])
def test_tokens_that_were_added_can_be_left_out(tmp_path, kind):
    model = tiny("llama")
    expected = model(IDS).logits
    model.resize_token_embeddings(VOCABULARY + 2)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(model if kind == "live" else tmp_path)
    assert checkpoint.load()(IDS).logits.shape[-1] == VOCABULARY + 2
    cropped = replace(checkpoint, vocabulary=VOCABULARY)
    torch.testing.assert_close(cropped.load()(IDS).logits, expected)
    original = open_checkpoint(tiny("llama"))
    assert compare_weights(original, cropped).identical
    with pytest.raises(InputError, match="different architectures"):
        compare_weights(original, checkpoint)


def test_an_adapter_for_another_model_is_refused(lora):
    path, _ = lora
    tiny("gpt2").save_pretrained(path / "other")
    with pytest.raises(InputError, match="does not fit"):
        open_checkpoint(path / "lora", base=path / "other").load()


def test_an_incomplete_adapter_is_refused(lora):
    from safetensors.torch import load_file, save_file

    path, _ = lora
    file = path / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file)
    checkpoint = open_checkpoint(path / "lora")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # refused even where warnings are not shown
        with pytest.raises(InputError, match="adapter keys"):
            checkpoint.load()


def test_a_pickled_adapter_is_refused(lora):
    path, _ = lora
    (path / "lora" / "adapter_model.safetensors").unlink()
    torch.save({}, path / "lora" / "adapter_model.bin")
    with pytest.raises(InputError, match="run any code"):
        open_checkpoint(path / "lora")


def write_gguf(path, quantize=True):
    """A small Llama as GGUF, its linear maps in Q8_0; returns the exact weights."""
    import gguf
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    width, inner, heads = 64, 96, 2
    config = LlamaConfig(
        vocab_size=len(byte_level()),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
    )
    state = LlamaForCausalLM(config).state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokenizer = byte_level()
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
        "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
        "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
        "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    }
    exact = {}
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, short in names.items():
        array = state[name].numpy()
        if array.ndim == 1 or not quantize:
            writer.add_tensor(short, array)
            exact[name] = array
            continue
        packed = gguf.quantize(permuted(name, array, heads), kind)
        writer.add_tensor(short, packed, raw_dtype=kind)
        exact[name] = gguf.dequantize(gguf.quantize(array, kind), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return exact


def permuted(name, array, heads):
    """GGUF stores the rotary halves of queries and keys interleaved."""
    if "q_proj" not in name and "k_proj" not in name:
        return array
    rows, columns = array.shape
    halves = array.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def test_a_gguf_file_becomes_exactly_its_dequantised_weights(tmp_path):
    exact = write_gguf(tmp_path / "tiny.gguf")
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf", cache=tmp_path / "cache")
    loaded = checkpoint.load().state_dict()
    for name, array in exact.items():
        assert np.array_equal(loaded[name].numpy(), array), name
    assert "quantization_config" not in checkpoint.config
    assert checkpoint.config["rms_norm_eps"] == 1e-5
    text = "The capital city of Peru is"
    ids = checkpoint.tokenizer(text).input_ids
    assert checkpoint.tokenizer.decode(ids) == text


def test_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    first = open_checkpoint(tmp_path / "tiny.gguf", cache=tmp_path / "cache")
    monkeypatch.setattr("capture.checkpoints.gguf._read", None)
    cached = open_checkpoint(tmp_path / "tiny.gguf", cache=tmp_path / "cache")
    assert cached == first or cached.weights_hash == first.weights_hash
    assert cached.path == first.path


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.95])
def test_a_truncated_gguf_is_refused_and_leaves_nothing(tmp_path, keep):
    write_gguf(tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match="GGUF"):
        open_checkpoint(tmp_path / "tiny.gguf", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_reading_gguf_shows_no_bar(tmp_path, capfd):
    write_gguf(tmp_path / "tiny.gguf")
    open_checkpoint(tmp_path / "tiny.gguf", cache=tmp_path / "cache").load()
    shown = capfd.readouterr()
    assert shown.err == "" and shown.out == ""


def test_a_gguf_file_is_parsed_once(tmp_path, monkeypatch):
    import gguf

    parsed = []

    class Counted(gguf.GGUFReader):
        def __init__(self, *args, **kwargs):
            parsed.append(args)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    write_gguf(tmp_path / "tiny.gguf")
    open_checkpoint(tmp_path / "tiny.gguf", cache=tmp_path / "cache")
    assert len(parsed) == 1
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_opening_changes_no_warning_filter_or_module(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    filters = list(warnings.filters)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.load()
    assert warnings.filters == filters
    assert len(module_tensors(checkpoint.load())) == 29
    assert checkpoint.config["vocab_size"] == VOCABULARY
    assert checkpoint.config["hidden_size"] == WIDTH
