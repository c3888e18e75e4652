"""Fingerprints of checkpoints: hashes over everything that affects their behavior."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

import torch
from torch import nn

from evidence.typed_json import Json

_IRRELEVANT_FIELDS = ("_name_or_path", "name_or_path", "transformers_version")
"""Fields of a configuration without effect on the model."""


def digest(parts: Mapping[str, Any]) -> str:
    """sha256, in hex, of plain data, independent of the order of keys."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def identifying_config(config: Mapping[str, Any]) -> dict[str, Json]:
    """The fields of a configuration that affect the model."""
    return {name: config[name] for name in config if name not in _IRRELEVANT_FIELDS}


def tokenizer_hash(tokenizer: Any) -> str | None:
    """Hash of how a tokenizer encodes and decodes text; None without a tokenizer.

    Padding and truncation are left out, because every call sets them.
    """
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        core = json.loads(backend.to_str())
        core.pop("padding", None)
        core.pop("truncation", None)
    else:
        core = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
    settings = {
        name: getattr(tokenizer, name, None)
        for name in (
            "special_tokens_map",
            "extra_special_tokens",
            "chat_template",
            "model_input_names",
            "padding_side",
            "clean_up_tokenization_spaces",
            "split_special_tokens",
            "add_bos_token",
            "add_eos_token",
        )
    }
    return digest({"class": type(tokenizer).__name__, "core": core, **settings})


def module_hash(module: nn.Module) -> str:
    """Hash of the visible behavior of a live module beyond its weights.

    Covers the structure, the code of classes, hooks and replaced methods, plain attributes of
    each submodule, and non-persistent buffers. State that a hook reads from elsewhere is not
    covered.
    """
    hasher = hashlib.sha256(str(module).encode("utf-8", "surrogatepass"))
    for kind in sorted({type(part) for part in module.modules()}, key=str):
        hasher.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        hasher.update(_code(getattr(kind, "forward", None)))
    for name, part in module.named_modules():
        for label, value in _behavior(part):
            hasher.update(f"{name}:{label}".encode("utf-8", "surrogatepass"))
            hasher.update(value)
    state = module.state_dict()
    for name, buffer in module.named_buffers():
        if name not in state and not buffer.is_meta:
            hasher.update(name.encode())
            flat = buffer.detach().cpu().contiguous().reshape(-1)
            hasher.update(flat.view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _behavior(part: nn.Module) -> Iterator[tuple[str, bytes]]:
    """Hooks, replaced methods and plain attributes of one submodule."""
    for name, value in sorted(vars(part).items()):
        if name in ("training", *_IRRELEVANT_FIELDS):
            continue
        if name.endswith("_hooks") and isinstance(value, Mapping):
            for hook in value.values():
                yield name, repr(getattr(hook, "__qualname__", type(hook))).encode()
                yield name, _code(hook)
        elif isinstance(value, bool | int | float | str):
            yield name, repr(value).encode("utf-8", "surrogatepass")
        elif callable(value) and not isinstance(value, nn.Module | type):
            yield name, _code(value)


def _code(function: Any) -> bytes:
    """Bytes that are equal for functions with equal code."""
    inner = getattr(function, "__func__", function)
    code = getattr(inner, "__code__", None)
    return b"".join(_compiled(code)) if isinstance(code, CodeType) else b""


def _compiled(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield repr((code.co_names, code.co_varnames)).encode()
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _compiled(value)
        elif isinstance(value, frozenset):  # iteration order varies between processes
            yield repr(sorted(map(repr, value))).encode("utf-8", "surrogatepass")
        else:
            yield repr(value).encode("utf-8", "surrogatepass")
