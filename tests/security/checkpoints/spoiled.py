"""A sound checkpoint, adapter and tokenizer, and ways to spoil one file of them."""

import json
import shutil
import struct
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import nn

from tests.helpers.tiny_models import byte_level, llama


@cache
def sound() -> Path:
    """A folder with ``model``, a small Llama with its tokenizer, and ``lora``."""
    from peft import LoraConfig, get_peft_model

    root = Path(mkdtemp(prefix="exhume-sound-"))
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        # peft asks transformers for an attribute under its old name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted.peft_config["default"].base_model_name_or_path = "../model"
    adapted.save_pretrained(str(root / "lora"), save_embedding_layers=False)
    return root


def copy_of(place: Path, what: str = "model") -> Path:
    """A copy of the sound model, or of the adapter beside its base, to spoil."""
    if what == "lora":
        shutil.copytree(sound() / "model", place / "model")
    shutil.copytree(sound() / what, place / what)
    return place / what


def edited(path: Path, change: dict[str, Any] | Callable[[Any], Any]) -> None:
    """Change a JSON file: by new members, or by a function of what it holds."""
    value = json.loads(path.read_text()) if path.exists() else {}
    value = value | change if isinstance(change, dict) else change(value)
    path.write_text(json.dumps(value))


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """Bytes of a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
