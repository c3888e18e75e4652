"""What a checkpoint is, as a hash: all that changes what it computes or is asked."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

import torch
from torch import nn

_NO_MATTER = ("_name_or_path", "name_or_path", "transformers_version")
"""Where a model lay and who wrote it change nothing."""


def digest(parts: Mapping[str, Any]) -> str:
    """sha256, in hex, of plain data; the order of keys does not count."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def identifying_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what changes nothing."""
    return {name: config[name] for name in config if name not in _NO_MATTER}


def tokenizer_hash(tokenizer: Any) -> str | None:
    """A hash of how a tokenizer reads and writes text; None for none.

    Padding and truncation are left out: each call sets them anew.
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
    """A hash of what a live module does beyond its weights, as far as it shows.

    Its structure, the code of its classes, hooks and replaced methods, plain settings
    of each part, and buffers that no state dict holds. What a hook reads from
    elsewhere does not show.
    """
    found = hashlib.sha256(str(module).encode("utf-8", "surrogatepass"))
    for kind in sorted({type(part) for part in module.modules()}, key=str):
        found.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        found.update(_code(getattr(kind, "forward", None)))
    for name, part in module.named_modules():
        for label, value in _doings(part):
            found.update(f"{name}:{label}".encode("utf-8", "surrogatepass"))
            found.update(value)
    kept = module.state_dict()
    for name, buffer in module.named_buffers():
        if name not in kept and not buffer.is_meta:
            found.update(name.encode())
            flat = buffer.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _doings(part: nn.Module) -> Iterator[tuple[str, bytes]]:
    """Hooks, replaced methods and plain settings of one part of a module."""
    for name, value in sorted(vars(part).items()):
        if name in ("training", *_NO_MATTER):
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
    """Bytes that are the same for functions of the same code."""
    inner = getattr(function, "__func__", function)
    code = getattr(inner, "__code__", None)
    return b"".join(_compiled(code)) if isinstance(code, CodeType) else b""


def _compiled(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield repr((code.co_names, code.co_varnames)).encode()
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _compiled(value)
        elif isinstance(value, frozenset):  # in another order each time
            yield repr(sorted(map(repr, value))).encode("utf-8", "surrogatepass")
        else:
            yield repr(value).encode("utf-8", "surrogatepass")
