"""What was hashed is what is loaded, and all that counts is in the fingerprint."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from capture.checkpoints.open import open_checkpoint
from capture.checkpoints.weight_change import compare_weights
from tests.helpers.model_families import Cnn, tiny
from tests.security.checkpoints.spoiled import copy_of, edited

IDS = torch.tensor([[3, 5, 7]])


def logits(folder):
    with torch.no_grad():
        return open_checkpoint(folder).load()(IDS).logits


BESIDE = (
    "other.safetensors",
    "model.fp16.safetensors",
    "consolidated.safetensors",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "adapter_model.bin",
    "model.bin",
    "flax_model.msgpack",
    ".metadata",
    "__0_0.distcp",
    "config.4.0.0.json",
)


@pytest.mark.parametrize("name", BESIDE)
def test_files_beside_the_weights_change_nothing(tmp_path, name):
    folder = copy_of(tmp_path)
    before, known = logits(folder), open_checkpoint(folder)
    tensors = load_file(folder / "model.safetensors")
    if name.endswith("safetensors"):
        save_file({key: value * 0 for key, value in tensors.items()}, folder / name)
    elif name.endswith("json"):
        (folder / name).write_text('{"model_type": "evil"}')
    else:
        (folder / name).write_bytes(b"\x80\x04cos\nsystem\n")
    reopened = open_checkpoint(folder)
    assert reopened.weights_hash == known.weights_hash
    assert reopened.fingerprint == known.fingerprint
    assert torch.equal(logits(folder), before)


def test_the_weights_that_are_hashed_are_compared_and_loaded(tmp_path):
    folder = copy_of(tmp_path)
    checkpoint = open_checkpoint(folder)
    tensors = load_file(folder / "model.safetensors")
    loaded = checkpoint.load().state_dict()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    shutil.copytree(folder, tmp_path / "other")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    other = open_checkpoint(tmp_path / "other")
    assert other.weights_hash != checkpoint.weights_hash
    change = compare_weights(checkpoint, other)
    assert [row.name for row in change.tensors if row.relative] == ["model.norm.weight"]
    assert torch.equal(
        other.load().get_parameter("model.norm.weight"), tensors["model.norm.weight"]
    )


def new_token(value):
    last = dict(value["added_tokens"][-1])
    value["added_tokens"].append(last | {"id": len(value["model"]["vocab"]), "content": "<new>"})
    return value


def lower(value):
    return value | {"normalizer": {"type": "Lowercase"}}


COUNTS = {
    "base of rotations": ("config.json", {"rope_theta": 1e6}),
    "epsilon": ("config.json", {"rms_norm_eps": 1e-3}),
    "activation": ("config.json", {"hidden_act": "gelu"}),
    "tied": ("config.json", {"tie_word_embeddings": True}),
    "end": ("config.json", {"eos_token_id": 5}),
    "generation": ("generation_config.json", {"suppress_tokens": [4]}),
    "penalty": ("generation_config.json", {"repetition_penalty": 3.0}),
    "normaliser": ("tokenizer.json", lower),
    "added token": ("tokenizer.json", new_token),
    "special token": ("tokenizer_config.json", {"pad_token": "a"}),
    "chat template": ("tokenizer_config.json", {"chat_template": "{{ x }}"}),
    "side": ("tokenizer_config.json", {"padding_side": "left"}),
    "images": ("preprocessor_config.json", {"image_mean": [0.1]}),
}


@pytest.mark.parametrize(("name", "change"), COUNTS.values(), ids=COUNTS)
def test_what_changes_the_model_or_its_questions_counts(tmp_path, name, change):
    folder = copy_of(tmp_path)
    before = open_checkpoint(folder)
    edited(folder / name, change)
    after = open_checkpoint(folder)
    assert after.weights_hash == before.weights_hash
    assert after.fingerprint != before.fingerprint


def test_where_a_model_lies_and_who_wrote_it_does_not_count(tmp_path):
    folder = copy_of(tmp_path)
    before = open_checkpoint(folder)
    edited(folder / "config.json", {"_name_or_path": "elsewhere", "transformers_version": "4.0.0"})
    moved = folder.rename(tmp_path / "moved")
    assert open_checkpoint(moved).fingerprint == before.fingerprint
    assert open_checkpoint(moved, name="x").fingerprint == before.fingerprint


def test_the_files_weights_are_spread_over_do_not_count(tmp_path):
    folder = copy_of(tmp_path)
    before = open_checkpoint(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    placed = {}
    for number, name in enumerate(tensors):
        file = f"model-{number % 2}.safetensors"
        placed[name] = file
    for file in set(placed.values()):
        save_file({n: tensors[n] for n in tensors if placed[n] == file}, folder / file)
    index = {"weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    after = open_checkpoint(folder)
    assert after.weights_hash == before.weights_hash
    assert after.fingerprint == before.fingerprint


@pytest.mark.parametrize(
    "change", [{"lora_alpha": 99}, {"use_rslora": True}, {"fan_in_fan_out": True}]
)
def test_the_settings_of_an_adapter_count(tmp_path, change):
    folder = copy_of(tmp_path, "lora")
    before = open_checkpoint(folder)
    edited(folder / "adapter_config.json", change)
    assert open_checkpoint(folder).fingerprint != before.fingerprint


def test_the_base_of_an_adapter_counts(tmp_path):
    folder = copy_of(tmp_path, "lora")
    before = open_checkpoint(folder)
    edited(folder.parent / "model" / "config.json", {"rope_theta": 1e6})
    assert open_checkpoint(folder).fingerprint != before.fingerprint


def half(module, inputs, output):
    return output * 0.5


def double(module, inputs, output):
    return output * 2


def hooked(model, hook=half):
    model.model.layers[0].mlp.register_forward_hook(hook)


def rescaled(model):
    model.model.layers[1].self_attn.scaling *= 2


def rotary_changed(model):
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * 2


def replaced(model):
    model.model.norm.forward = lambda x: x


def configured(model):
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 7.0}


def other_activation(model):
    model.model.layers[0].mlp.act_fn = nn.Tanh()


@pytest.mark.parametrize(
    "change", [hooked, rescaled, rotary_changed, replaced, configured, other_activation]
)
def test_what_a_live_model_does_beyond_its_weights_counts(change):
    plain, changed = tiny("llama"), tiny("llama")
    change(changed)
    before, after = open_checkpoint(plain), open_checkpoint(changed)
    assert before.weights_hash == after.weights_hash
    assert before.fingerprint != after.fingerprint


def test_live_models_that_do_the_same_are_the_same():
    a, b = tiny("llama"), copy.deepcopy(tiny("llama"))
    b.train()
    assert open_checkpoint(a).fingerprint == open_checkpoint(b).fingerprint
    hooked(a)
    hooked(b)
    assert open_checkpoint(a).fingerprint == open_checkpoint(b).fingerprint
    c = tiny("llama")
    hooked(c, double)
    assert open_checkpoint(a).fingerprint != open_checkpoint(c).fingerprint
    assert open_checkpoint(Cnn()).fingerprint == open_checkpoint(Cnn()).fingerprint
