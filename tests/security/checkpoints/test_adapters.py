"""Adapters from anywhere: no code, no network, no patterns without an end."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM

from capture.checkpoints.open import open_checkpoint
from evidence.errors import InputError
from tests.helpers.model_families import tiny
from tests.security.checkpoints.spoiled import copy_of, edited

IDS = torch.tensor([[3, 5, 7]])
HERE = Path(__file__).parents[1]


def refused(folder) -> str:
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        open_checkpoint(folder).load()
    assert time.perf_counter() - start < 10
    text = str(caught.value)
    assert text.isprintable()
    return text


KINDS = (
    "SHADOW",
    "XLORA",
    "PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "ADAPTION_PROMPT",
    "BOFT",
    "OFT",
    "ADALORA",
    "LOHA",
    "LOKR",
    "VERA",
    "VBLORA",
    "POLY",
    "LN_TUNING",
    "CPT",
    "CARTRIDGE",
    "TRAINABLE_TOKENS",
    "MINILORA",
    "lora",
    "",
    None,
    3,
    ["LORA"],
    {"LORA": 1},
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_other_kinds_of_adapter_are_refused(tmp_path, kind):
    folder = copy_of(tmp_path, "lora")
    edited(folder / "adapter_config.json", {"peft_type": kind})
    assert "kind of adapter" in refused(folder)


SETTINGS = {
    "a shadow model": {"shadow_model": "../evil"},
    "a class to import": {"auto_mapping": {"base_model_class": "system", "parent_library": "os"}},
    "a class of a module beside": {
        "auto_mapping": {"base_model_class": "X", "parent_library": "evil.code"}
    },
    "a class by a path": {
        "auto_mapping": {"base_model_class": "X", "parent_library": "transformers/.."}
    },
    "a mapping as text": {"auto_mapping": "evil"},
    "a mini configuration": {"mini_config": {"path": "../evil"}},
    "a library to import": {"megatron_core": "evil.code", "megatron_config": {"a": 1}},
    "another library": {"megatron_core": "os"},
    "a tokenizer to load": {"tokenizer_name_or_path": "org/evil"},
    "other adapters": {"adapters": {"a": "org/evil"}},
    "layers again and again": {"layer_replication": [[0, 2]] * 100_000},
    "layers once more": {"layer_replication": [[0, 1], [0, 2]]},
    "a long decomposition": {"init_lora_weights": "pissa_niter_1000000"},
    "a decomposition": {"init_lora_weights": "pissa"},
    "an orthogonal one": {"init_lora_weights": "olora"},
    "one by covariance": {"init_lora_weights": "corda", "corda_config": {"a": 1}},
    "one by gradients": {"init_lora_weights": "lora_ga"},
    "quantising": {"init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 10**9}},
    "an unknown beginning": {"init_lora_weights": "evil"},
    "tokens": {"trainable_token_indices": [1, 2]},
    "parameters": {"target_parameters": ["weight"]},
    "activated": {"alora_invocation_tokens": [1]},
    "routed": {"arrow_config": {"top_k": 1}},
    "in blocks": {"use_bdlora": {"nblocks": 2}},
    "quantised": {"use_qalora": True},
    "sampled": {"monteclora_config": {"num_samples": 10**9}},
    "kasa": {"kasa_config": {"a": 1}},
    "velora": {"velora_config": {"num_groups": 1}},
    "tied": {"ensure_weight_tying": True},
    "a setting of the future": {"unheard_of": 1},
    "a path of the future": {"unheard_of": "../evil"},
    "rank as text": {"r": "2"},
    "no rank": {"r": 0},
    "negative rank": {"r": -1},
    "a large rank": {"r": 10**9},
    "another rank": {"r": 3},
    "rank and a half": {"r": 2.5},
    "NaN strength": {"lora_alpha": float("nan")},
    "infinite strength": {"lora_alpha": float("inf")},
    "large strength": {"lora_alpha": 1e308},
    "strength as text": {"lora_alpha": "x"},
    "strengths": {"alpha_pattern": {"q_proj": 1e308}},
    "ranks": {"rank_pattern": {"q_proj": 10**9}},
    "a rank as text": {"rank_pattern": {"q_proj": "x"}},
    "flags as text": {"use_dora": "yes"},
    "flags as numbers": {"use_rslora": 1},
    "biases": {"bias": "evil"},
    "another task": {"task_type": "SEQ_CLS"},
    "no such task": {"task_type": "EVIL"},
    "targets as a number": {"target_modules": 3},
    "targets of numbers": {"target_modules": [3]},
    "a pattern in a list": {"target_modules": ["(a+)+$"]},
    "a pattern to save": {"modules_to_save": ["(a|a)*b"]},
    "a path to save": {"modules_to_save": ["../evil"]},
    "a pattern of layers": {"layers_pattern": "(a+)+$", "layers_to_transform": [0]},
    "layers as text": {"layers_to_transform": "x"},
    "a base as a list": {"base_model_name_or_path": ["x"]},
    "no base": {"base_model_name_or_path": None},
    "an empty base": {"base_model_name_or_path": ""},
    "a base on the hub": {"base_model_name_or_path": "org/evil"},
    "a base that is no folder": {"base_model_name_or_path": "/etc/passwd"},
    "a device for a base": {"base_model_name_or_path": "/dev/zero"},
    "itself for a base": {"base_model_name_or_path": "."},
    "forged output": {"base_model_name_or_path": "\x1b[2J\r\n\u202e"},
    "a long base": {"base_model_name_or_path": "x" * 100_000},
    "NUL in a base": {"base_model_name_or_path": "a\0b"},
}


@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_do_more_than_change_weights_are_refused(tmp_path, change):
    folder = copy_of(tmp_path, "lora")
    edited(folder / "adapter_config.json", change)
    refused(folder)


PATTERNS = {
    "nested": "(a+)+$",
    "nested groups": r"(.*\.)*x",
    "alternatives": "(a|a)*b",
    "overlap": r"(\w+\.?)*$",
    "references": r"(.)\1",
    "named": r"(?P<n>a)(?P=n)",
    "recursive": "(?R)",
    "code": "(?{x})",
    "written out": "((((a{50}){50}){50}){50}){50}",
    "wide": "a{100000000}",
    "many choices": "a?" * 500 + "a" * 500,
    "long": "a" * 100_000,
    "deep": "(" * 3000 + ")" * 3000,
    "open": "(",
    "fuzzy": "(?:a){e<=3}",
    "nothing": "^$",
    "a set": "[",
}


@pytest.mark.parametrize(
    "field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"]
)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_patterns_end(tmp_path, pattern, field):
    folder = copy_of(tmp_path, "lora")
    value = {pattern: 2} if field.endswith("_pattern") else pattern
    edited(folder / "adapter_config.json", {field: value})
    start = time.perf_counter()
    try:
        open_checkpoint(folder).load()
    except InputError:
        pass
    assert time.perf_counter() - start < 5


def made(place, family, config):
    """An adapter of PEFT's own making in ``place``, and what it computes."""
    from peft import get_peft_model

    tiny(family).save_pretrained(place / "base")
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no matter here
        adapted = get_peft_model(tiny(family), config)
        for name, value in adapted.named_parameters():
            if value.requires_grad or "lora_" in name:
                nn.init.normal_(value.data, std=0.3)
        adapted.eval()
        adapted.peft_config["default"].base_model_name_or_path = str(place / "base")
        adapted.save_pretrained(place / "lora")
    with torch.no_grad():
        return adapted(IDS).logits


def kinds():
    """Adapters that are taken, by what is special about them."""
    from peft import IA3Config, LoraConfig

    q = ["q_proj"]
    return {
        "lora": ("llama", LoraConfig(r=2, target_modules=q)),
        "dora": ("llama", LoraConfig(r=2, target_modules=q, use_dora=True)),
        "rslora": ("llama", LoraConfig(r=4, target_modules=q, use_rslora=True)),
        "all linear": ("neox", LoraConfig(r=2, target_modules="all-linear")),
        "a pattern": (
            "llama",
            LoraConfig(
                r=4,
                target_modules=r".*\.(q|v)_proj",
                rank_pattern={r".*0\..*q_proj": 2, "layers.1.self_attn.v_proj": 3},
                alpha_pattern={"q_proj": 5},
            ),
        ),
        "some layers": (
            "llama",
            LoraConfig(target_modules=q, layers_to_transform=[1], layers_pattern="layers"),
        ),
        "left out": ("neox", LoraConfig(target_modules="all-linear", exclude_modules=r".*\.0\..*")),
        "a whole head": ("llama", LoraConfig(r=2, target_modules=q, modules_to_save=["lm_head"])),
        "embeddings": ("neox", LoraConfig(r=2, target_modules=["embed_in"])),
        "biases": ("gpt2", LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, bias="all")),
        "biases of its own": (
            "gpt2",
            LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, lora_bias=True),
        ),
        "normal": ("llama", LoraConfig(target_modules=q, init_lora_weights="gaussian")),
        "causal": ("llama", LoraConfig(target_modules=q, task_type="CAUSAL_LM")),
        "ia3": (
            "llama",
            IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        ),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "lora",
        "dora",
        "rslora",
        "all linear",
        "a pattern",
        "some layers",
        "left out",
        "a whole head",
        "embeddings",
        "biases",
        "biases of its own",
        "normal",
        "causal",
        "ia3",
    ],
)
def test_adapters_that_are_taken_compute_what_peft_computes(tmp_path, kind):
    expected = made(tmp_path, *kinds()[kind])
    model = open_checkpoint(tmp_path / "lora").load()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_an_adapter_over_more_tokens_gives_its_base_as_many(tmp_path):
    folder = copy_of(tmp_path, "lora")
    file = folder / "adapter_model.safetensors"
    base = load_file(folder.parent / "model" / "model.safetensors")
    more = {
        f"base_model.model.{name}": torch.cat([base[name], torch.ones(1, 32)])
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    save_file(load_file(file) | more, file)
    model = open_checkpoint(folder).load()
    assert isinstance(model, LlamaForCausalLM)
    rows = len(base["lm_head.weight"]) + 1
    assert model(IDS).logits.shape[-1] == model.config.vocab_size == rows
    assert torch.equal(model.lm_head.weight[-1], torch.ones(32))
    save_file(load_file(file) | {next(iter(more)): torch.ones(7, 32)}, file)
    assert "embeddings" in refused(folder)


def test_a_change_of_one_of_two_shared_weights_is_refused(tmp_path):
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=["embed_tokens"])
    made(tmp_path, "llama", config)  # the base ties its embeddings
    file = tmp_path / "lora" / "adapter_model.safetensors"
    kept = {name: t for name, t in load_file(file).items() if "base_layer" not in name}
    save_file(kept, file)
    assert "shares" in refused(tmp_path / "lora")


WEIGHTS = ("a torch pickle", "a name that is none", "NaN", "a sum that overflows")


@pytest.mark.parametrize("what", WEIGHTS)
def test_adapter_weights_that_cannot_be_used_are_refused(tmp_path, what):
    folder = copy_of(tmp_path, "lora")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    match what:
        case "a torch pickle":
            file.unlink()
            torch.save(tensors, folder / "adapter_model.bin")
        case "a name that is none":
            save_file(tensors | {"base_model.model.evil": torch.ones(2)}, file)
        case "NaN":
            tensors[name][0, 0] = float("nan")
            save_file(tensors, file)
        case "a sum that overflows":
            save_file({key: value * 0 + 3e38 for key, value in tensors.items()}, file)
    refused(folder)


def test_a_pickle_beside_safetensors_changes_nothing(tmp_path):
    folder = copy_of(tmp_path, "lora")
    with torch.no_grad():
        before = open_checkpoint(folder).load()(IDS).logits
    for name in ("adapter_model.bin", "pytorch_model.bin", "adapter_model.pt"):
        (folder / name).write_bytes(b"\x80\x04cos\nsystem\n")
    with torch.no_grad():
        assert torch.equal(open_checkpoint(folder).load()(IDS).logits, before)


CODE = "from pathlib import Path\nPath(__file__).parents[1].joinpath('CANARY').touch()\n"


def evil_model(place):
    """A folder whose settings ask for the code in it."""
    place.mkdir()
    (place / "code.py").write_text(CODE)
    (place / "modeling_evil.py").write_text(CODE)
    (place / "config.json").write_text(
        json.dumps(
            {
                "model_type": "evil",
                "architectures": ["Evil"],
                "auto_map": {
                    "AutoConfig": "code.Config",
                    "AutoModel": "code.Model",
                    "AutoModelForCausalLM": "code.Model",
                    "AutoTokenizer": ["code.Tokenizer", None],
                },
            }
        )
    )


def hostile(place):
    """Adapters and models that try to run code, start processes or go out."""
    evil_model(place / "evil")
    plain = copy_of(place / "plain", "lora")
    tries = {
        "shadow": {"peft_type": "SHADOW", "shadow_model": str(place / "evil")},
        "shadow on the hub": {"peft_type": "SHADOW", "shadow_model": "org/evil"},
        "a shadow of a LoRA": {"shadow_model": str(place / "evil")},
        "import": {"auto_mapping": {"base_model_class": "X", "parent_library": "evil.code"}},
        "megatron": {"megatron_config": {"a": 1}, "megatron_core": "evil.code"},
        "boft": {"peft_type": "BOFT", "boft_block_size": 4},
        "prompts": {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": 4,
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": "x",
            "tokenizer_name_or_path": "org/evil",
        },
        "xlora": {"peft_type": "XLORA", "adapters": {"a": str(place / "evil")}},
        "hub base": {"base_model_name_or_path": "org/evil"},
        "evil base": {"base_model_name_or_path": str(place / "evil")},
        "pickled": {},
    }
    found = [plain]
    for name, change in tries.items():
        folder = copy_of(place / name, "lora")
        edited(folder / "adapter_config.json", change)
        (folder / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
        (folder / "evil.py").write_text(CODE)
        if name == "pickled":
            (folder / "adapter_model.safetensors").unlink()
        found.append(folder)
    for name, change in {
        "kernel": {"_attn_implementation": "org/kernel"},
        "flash": {"attn_implementation": "flash_attention_2"},
        "code": {"auto_map": {"AutoModelForCausalLM": "code.Model"}},
        "redirected": {"transformers_weights": "adapter_model.bin"},
        "timm": {"backbone": "resnet18", "use_pretrained_backbone": True},
    }.items():
        folder = copy_of(place / f"model {name}")
        edited(folder / "config.json", change)
        edited(folder / "tokenizer_config.json", {"auto_map": ["code.Tokenizer", None]})
        (folder / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
        (folder / "code.py").write_text(CODE)
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(CODE)
        found.append(folder)
    return [*found, place / "evil"]


def test_no_code_no_process_no_network(tmp_path):
    folders = hostile(tmp_path)
    # Nothing but our own checks keeps the hub's client off the network here.
    free = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HOME": "no"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("watched.py"), tmp_path, *folders],
        input="y\n" * 1000,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=os.environ | free | {"PYTHONPATH": str(HERE.parent.parent)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "y/N" not in done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    read = {"config.json", "generation_config.json", "adapter_config.json"}
    read |= {"adapter_model.safetensors", "model.safetensors"}
    read |= {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"}
    for place, seen in found.items():
        assert "RAISED" not in seen["error"], (place, seen["error"])
        for event, what in seen["events"]:
            assert event == "open", (place, event, what)
            # Of a pickle, four bytes are looked at to tell what it is.
            pickled = "pickled" in place and what.endswith("adapter_model.bin")
            assert pickled or Path(what).name in read, (place, what)
    assert not list(tmp_path.rglob("CANARY"))
    assert not list(tmp_path.rglob("__pycache__"))
    taken = [place for place, seen in found.items() if seen["error"] == "none"]
    names = sorted(Path(place).parent.name for place in taken)
    assert names == ["model code", "model flash", "model kernel", "plain"]
