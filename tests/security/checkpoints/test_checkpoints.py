"""Checkpoints that nobody should trust: one clear error each, or nothing changes."""

import json
import os
import re
import socket
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from capture.checkpoints.open import open_checkpoint
from evidence.errors import InputError
from tests.security.checkpoints.spoiled import copy_of, edited, safetensors

IDS = torch.tensor([[3, 5, 7]])


def refused(folder) -> str:
    """The one error that opening and loading a checkpoint ends in."""
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        open_checkpoint(folder).load()
    assert time.perf_counter() - start < 10
    text = str(caught.value)
    assert text.isprintable() and len(text) < 3000
    return text


def logits(folder):
    with torch.no_grad():
        return open_checkpoint(folder).load()(IDS).logits


# Values of config.json that describe no model, lead to other files, or break numbers.
CONFIGS = {
    "many layers": {"num_hidden_layers": 10**9},
    "layers as a float": {"num_hidden_layers": 1e9},
    "one layer more": {"num_hidden_layers": 3},
    "one layer fewer": {"num_hidden_layers": 1},
    "layers as text": {"num_hidden_layers": "2"},
    "no layers": {"num_hidden_layers": 0},
    "no heads": {"num_attention_heads": 0},
    "no key heads": {"num_key_value_heads": 0},
    "negative heads": {"num_attention_heads": -4},
    "half a head": {"num_attention_heads": 4.5},
    "heads that do not divide": {"num_attention_heads": 3},
    "a wide model": {"hidden_size": 2**40},
    "a wider model": {"hidden_size": 2**62},
    "no width": {"hidden_size": 0},
    "width as a list": {"hidden_size": [32]},
    "another width": {"hidden_size": 64},
    "a large vocabulary": {"vocab_size": 10**12},
    "another vocabulary": {"vocab_size": 400},
    "negative vocabulary": {"vocab_size": -1},
    "inner width": {"intermediate_size": 10**15},
    "width of a head": {"head_dim": 10**9},
    "no positions": {"max_position_embeddings": 0},
    "NaN epsilon": {"rms_norm_eps": float("nan")},
    "infinite epsilon": {"rms_norm_eps": float("inf")},
    "large epsilon": {"rms_norm_eps": 1e30},
    "negative epsilon": {"rms_norm_eps": -1e-6},
    "epsilon as text": {"rms_norm_eps": "1e-6"},
    "NaN theta": {"rope_theta": float("nan")},
    "no theta": {"rope_parameters": {"rope_theta": 0.0, "rope_type": "default"}},
    "large theta": {"rope_parameters": {"rope_theta": 1e300, "rope_type": "default"}},
    "negative theta": {"rope_parameters": {"rope_theta": -1e4, "rope_type": "default"}},
    "no factor": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 0.0}},
    "NaN factor": {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}},
    "kind of rope": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "evil"}},
    "rope as text": {"rope_parameters": "evil"},
    "tagged NaN": {"rms_norm_eps": {"__float__": "NaN"}},
    "NaN range": {"initializer_range": float("nan")},
    "large range": {"initializer_range": 1e308},
    "dropout": {"attention_dropout": 5.0},
    "NaN dropout": {"attention_dropout": float("nan")},
    "an unknown number": {"something_new": 1e300},
    "an unknown NaN": {"something_new": float("nan")},
    "activation as a number": {"hidden_act": 3},
    "activation unknown": {"hidden_act": "evil"},
    "activation as a path": {"hidden_act": "../../evil"},
    "type as a number": {"model_type": 3},
    "type as a list": {"model_type": ["llama"]},
    "type unknown": {"model_type": "evil", "architectures": ["Evil"]},
    "another type": {"model_type": "gpt2"},
    "a class of another type": {"architectures": ["GPT2LMHeadModel"]},
    "classes as text": {"architectures": "LlamaForCausalLM"},
    "classes as numbers": {"architectures": [3]},
    "many classes": {"architectures": ["x"] * 1000},
    "a function for a class": {"architectures": ["pipeline"], "model_type": "x"},
    "dtype evil": {"torch_dtype": "evil"},
    "dtype as a list": {"dtype": ["float32"]},
    "dtype of integers": {"dtype": "int8"},
    "dtype as a function": {"torch_dtype": "load"},
    "negative token": {"eos_token_id": -7},
    "token as text": {"bos_token_id": "0"},
    "token as a float": {"eos_token_id": 1.5},
    "window as text": {"sliding_window": "evil"},
    "window as a list": {"sliding_window": []},
    "labels of another kind": {"num_labels": "3"},
    "many labels": {"num_labels": 10**9},
    "labels as text": {"id2label": "evil"},
    "labels without numbers": {"id2label": {"x": "y"}},
    "labels of labels": {"label2id": {"x": "y"}},
    "other weights": {"transformers_weights": "other.safetensors"},
    "other weights outside": {"transformers_weights": "../other.safetensors"},
    "pickled weights": {"transformers_weights": "adapter_model.bin"},
    "an unknown key with weights": {"weights": "other.safetensors"},
    "an unknown key with names": {"shards": ["a", "b.safetensors"]},
    "an unknown key with a pickle": {"x": {"file": "../other.BIN"}},
    "an unknown key with code": {"loader": ["x", {"module": "evil.py"}]},
    "size of images as text": {"image_size": {"height": "x"}},
    "another configuration": {"configuration_files": ["config.4.0.0.json"]},
    "quantised": {"quantization_config": {"quant_method": "bitsandbytes"}},
    "quantised as text": {"quantization_config": "evil"},
    "compressed": {"compression_config": {"format": "pack-quantized"}},
    "single blocks": {"per_layer_config": {"0": {"hidden_size": 64}}},
    "fusion": {"fusion_config": {"patch_embeddings": True}},
    "kernels": {"use_kernels": True},
    "kernel settings": {"kernel_config": {"RMSNorm": "org/kernel"}},
    "distributed": {"distributed_config": {"tp_size": 2}},
    "backbone": {"backbone": "resnet50", "use_pretrained_backbone": True},
    "timm": {"model_type": "timm_wrapper", "architectures": ["TimmWrapperModel"]},
    "inner timm": {"text_config": {"model_type": "timm_backbone"}},
    "code to generate": {"custom_generate": "org/code"},
    "deep": {"x": json.loads("[" * 50 + "]" * 50)},
    "deep objects": {"x": json.loads('{"a":' * 50 + "1" + "}" * 50)},
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_of_no_model_is_refused(tmp_path, change):
    folder = copy_of(tmp_path)
    edited(folder / "config.json", change)
    text = refused(folder)
    assert "config.json" in text or "architecture" in text or "quantized" in text


# What we set ourselves, and names that would stand before the library's own.
OURS = {
    "attention": {"attn_implementation": "org/kernel"},
    "attention by its inner name": {"_attn_implementation": "org/kernel"},
    "attention by its innermost name": {"_attn_implementation_internal": "org/kernel@main:evil"},
    "flash attention": {"attn_implementation": "flash_attention_2"},
    "attention by part": {"attn_implementation": {"": "org/kernel"}},
    "attention inside": {"inner": {"attn_implementation": "org/kernel"}},
    "attention deep inside": {"x": {"y": [{"_attn_implementation": "org/kernel"}]}},
    "experts": {"experts_implementation": "org/kernel"},
    "code": {"auto_map": {"AutoModelForCausalLM": "evil--code.Evil"}},
    "code of old kind": {"auto_map": ["code.Evil", None]},
    "pipelines": {"custom_pipelines": {"x": {"impl": "code.Evil"}}},
    "plans": {"base_model_tp_plan": {"layers.*": "evil"}},
    "outputs": {"output_attentions": True, "output_hidden_states": True},
    "tuples": {"return_dict": False},
    "torchscript": {"torchscript": True},
    "half precision": {"torch_dtype": "float16"},
    "a method": {"to_dict": "x", "validate": 3, "get_text_config": None},
    "attributes of classes": {"attribute_map": {"layers": "x"}, "sub_configs": {}},
    "a class": {"__class__": "x", "__dict__": {}, "_auto_class": "AutoModel"},
    "more files": {"extra_files": ["other.safetensors"]},
    "a name": {"_name_or_path": "org/evil", "name_or_path": "/etc/passwd"},
    "checkpointing": {"gradient_checkpointing": True},
    "no pad token": {"pad_token_id": -1},
}


@pytest.mark.parametrize("change", OURS.values(), ids=OURS)
def test_what_is_ours_is_never_taken_from_the_file(tmp_path, change):
    folder = copy_of(tmp_path)
    before = logits(folder)
    edited(folder / "config.json", change)
    model = open_checkpoint(folder).load()
    assert isinstance(model, PreTrainedModel)
    assert model.config._attn_implementation == "sdpa"
    assert next(model.parameters()).dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, before)


FILES = {
    "config.json": {"empty": b"", "no object": b"[]", "NUL": b"\0", "cut": b'{"a'},
    "generation_config.json": {
        "no object": b"[1]",
        "negative token": b'{"eos_token_id": -5}',
        "token as text": b'{"eos_token_id": "x"}',
        "tokens as text": b'{"eos_token_id": ["x"]}',
        "NaN": b'{"temperature": NaN}',
        "large": b'{"repetition_penalty": 1e300}',
        "tokens to leave out": b'{"suppress_tokens": [-1]}',
        "biases": b'{"sequence_bias": [[[1], 1e300]]}',
        "a length": b'{"max_length": 1e99}',
        "a share": b'{"top_p": 5}',
    },
    "preprocessor_config.json": {
        "mean as text": b'{"image_mean": "x"}',
        "NaN": b'{"image_mean": [NaN]}',
        "no spread": b'{"image_std": [0.0]}',
        "a large size": b'{"size": 1000000000}',
        "a size of nothing": b'{"crop_size": {"height": 0, "width": 0}}',
        "no object": b'"x"',
    },
}
ANY = {
    "twice": b'{"a": 1, "a": 2}',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "half a character": b'{"a": "\\ud800"}',
    "infinity": b'{"a": Infinity}',
    "a large number": b'{"a": 1e400}',
    "a long number": b'{"a": ' + b"9" * 10_000 + b"}",
    "a pickle": b"\x80\x04cos\nsystem\n",
}
CASES = [
    pytest.param(name, data, id=f"{name}-{what}")
    for name, some in FILES.items()
    for what, data in (some | ANY).items()
]


@pytest.mark.parametrize(("name", "data"), CASES)
def test_a_settings_file_that_is_none_is_refused(tmp_path, name, data):
    folder = copy_of(tmp_path)
    (folder / name).write_bytes(data)
    assert name in refused(folder)


INDEXES = {
    "no map": {},
    "map of another kind": {"weight_map": [1]},
    "numbers for files": {"weight_map": {"a": 3}},
    "a file outside": {"weight_map": {"a": "../x.safetensors"}},
    "an absolute file": {"weight_map": {"a": "/etc/passwd"}},
    "a pickle": {"weight_map": {"a": "pytorch_model.bin"}},
    "a device": {"weight_map": {"a": "/dev/zero"}},
    "nothing": {"weight_map": {}},
    "a file that is absent": {"weight_map": {"a": "x.safetensors"}},
    "a long name": {"weight_map": {"a": "x" * 5000 + ".safetensors"}},
    "forged output": {"weight_map": {"a": "\x1b[2J\n\u202e.safetensors"}},
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, index):
    folder = copy_of(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder)


def test_weights_that_are_there_twice_are_refused(tmp_path):
    folder = copy_of(tmp_path)
    (folder / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    names = load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(names, "other.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "weights twice" in refused(folder)
    # An index may also name the one file.
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert logits(folder).isfinite().all()


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "empty": b"",
    "short": b"\x01\x02",
    "a length beyond the file": b"\xff" * 8 + b"{}",
    "a length of gigabytes": (1 << 33).to_bytes(8, "little") + b"{}",
    "no JSON": safetensors(b"{{{{"),
    "no object": safetensors([]),
    "not UTF-8": safetensors(b'{"\xff": 1}'),
    "deep": safetensors(b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    "a name twice": safetensors(
        b'{"a":' + json.dumps(ONE).encode() + b',"a":' + json.dumps(ONE).encode() + b"}", b"\0" * 4
    ),
    "no fields": safetensors({"a": {}}),
    "no entry": safetensors({"a": 3}),
    "a type that is none": safetensors({"a": ONE | {"dtype": "F99"}}, b"\0" * 4),
    "a negative shape": safetensors({"a": ONE | {"shape": [-1]}}, b"\0" * 4),
    "a shape of text": safetensors({"a": ONE | {"shape": ["x"]}}, b"\0" * 4),
    "a huge shape": safetensors({"a": ONE | {"shape": [1 << 60, 64]}}, b"\0" * 4),
    "a lying shape": safetensors({"a": ONE | {"shape": [2]}}, b"\0" * 4),
    "an end beyond the file": safetensors(
        {"a": ONE | {"shape": [100], "data_offsets": [0, 400]}}, b"\0" * 4
    ),
    "offsets the wrong way": safetensors({"a": ONE | {"data_offsets": [4, 0]}}, b"\0" * 4),
    "an overlap": safetensors({"a": ONE, "b": ONE}, b"\0" * 4),
    "a gap": safetensors({"a": ONE | {"data_offsets": [4, 8]}}, b"\0" * 8),
    "bytes behind": safetensors({"a": ONE}, b"\0" * 8),
    "many tensors": safetensors(
        {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(70_000)}
    ),
    "a long name": safetensors({"a" * 10_000: ONE}, b"\0" * 4),
    "a pickle": b"\x80\x04cos\nsystem\n(S'id'\ntR.",
    "an archive": b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_a_weight_file_that_lies_is_refused(tmp_path, data):
    folder = copy_of(tmp_path)
    (folder / "model.safetensors").write_bytes(data)
    assert "model.safetensors" in refused(folder)


def spoil(tensors, what):
    """Weights that are whole files, but not the model's."""
    down = "model.layers.1.mlp.down_proj.weight"
    more = torch.zeros(32)
    match what:
        case "missing":
            del tensors[down]
        case "another shape":
            tensors[down] = tensors[down][:, :7].contiguous()
        case "transposed":
            tensors[down] = tensors[down].T.contiguous()
        case "empty":
            tensors[down] = torch.zeros(0)
        case "another layer":
            tensors["model.layers.2.input_layernorm.weight"] = more
        case "a layer far off":
            tensors["model.layers.99999.input_layernorm.weight"] = more
        case "a name of its own":
            tensors["evil\x1b[2J\r\n\u202e"] = more
        case "integers":
            tensors[down] = (tensors[down] * 100).to(torch.int8)
        case "flags":
            tensors[down] = tensors[down] > 0
        case "complex numbers":
            tensors[down] = tensors[down].to(torch.complex64)
        case "NaN":
            tensors[down][0, 0] = float("nan")
        case "infinity":
            tensors[down][0, 0] = float("-inf")
        case "too large for float32":
            tensors[down] = tensors[down].double()
            tensors[down][0, 0] = 1e300
    return tensors


@pytest.mark.parametrize(
    "what",
    [
        "missing",
        "another shape",
        "transposed",
        "empty",
        "another layer",
        "a layer far off",
        "a name of its own",
        "integers",
        "flags",
        "complex numbers",
        "NaN",
        "infinity",
        "too large for float32",
    ],
)
def test_weights_that_are_not_the_models_are_refused(tmp_path, what):
    folder = copy_of(tmp_path)
    file = folder / "model.safetensors"
    save_file(spoil(load_file(file), what), file)
    text = refused(folder)
    assert re.search("tensor|weights", text)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "kind", ["pipe", "zero", "folder", "socket", "dangling", "loop", "long", "tty"]
)
def test_only_regular_files_are_read(tmp_path, name, kind):
    folder = copy_of(tmp_path)
    path = folder / name
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "zero":
            path.symlink_to("/dev/zero")
        case "tty":
            path.symlink_to("/dev/tty")
        case "folder":
            path.mkdir()
        case "socket":
            held = socket.socket(socket.AF_UNIX)
            here = os.getcwd()
            os.chdir(folder)  # a socket's path has 108 bytes at most
            held.bind(name)
            os.chdir(here)
            held.close()
        case "dangling":
            path.symlink_to(folder / "nothing")
        case "loop":
            path.symlink_to(path)
        case "long":
            path.symlink_to("x" * 255)
    refused(folder)


def test_a_link_to_a_file_is_followed(tmp_path):
    folder = copy_of(tmp_path)
    (tmp_path / "blobs").mkdir()
    for path in list(folder.iterdir()):
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(tmp_path / "blobs" / path.name)
    assert open_checkpoint(folder).tokenizer is not None
    assert logits(folder).isfinite().all()


@pytest.mark.parametrize("given", ["", "a\0b", "~nobody-here/x", "x" * 5000, 3, b"x"])
def test_a_path_that_is_none_is_refused(given):
    with pytest.raises(InputError):
        open_checkpoint(given)


def test_settings_of_any_size_are_not_read(tmp_path):
    folder = copy_of(tmp_path)
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    assert "too large" in refused(folder)


def test_weights_changed_after_the_check_are_not_loaded(tmp_path):
    folder = copy_of(tmp_path)
    checkpoint = open_checkpoint(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1
    save_file(tensors, file)
    os.utime(file, ns=(1, 1))
    with pytest.raises(InputError, match="changed after"):
        checkpoint.load()


def test_nothing_is_raised_but_our_errors_and_interrupts(tmp_path, monkeypatch):
    from capture.checkpoints.schemas.library_errors import library_errors

    class PanicException(BaseException):
        pass

    for error in (
        RecursionError,
        MemoryError,
        OverflowError,
        AssertionError("a\nb"),
        IndexError,
        ZeroDivisionError,
        StopIteration,
        PanicException("at the disco"),
    ):
        with pytest.raises(InputError, match="x could not be read"):
            with library_errors("x could not be read"):
                raise error
    for error in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(error):
            with library_errors("x could not be read"):
                raise error
    own = InputError("ours")
    with pytest.raises(InputError) as caught:
        with library_errors("x could not be read"):
            raise own
    assert caught.value is own


@pytest.mark.parametrize("kind", ["mra", "rwkv", "yoso"])
def test_no_model_is_built_by_a_compiler(kind):
    from capture.checkpoints.schemas.configuration import model_class

    name = {"mra": "MraForMaskedLM", "rwkv": "RwkvForCausalLM"}.get(kind, "YosoModel")
    for config in ({"model_type": kind}, {"model_type": kind, "architectures": [name]}):
        with pytest.raises(InputError, match="compiles kernels"):
            model_class(config)
