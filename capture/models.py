"""Opening checkpoints: folders, hub ids, GGUF files, adapters and live models.

A checkpoint is untrusted input. Weights come from safetensors alone, no code from a
checkpoint is ever run, every tensor is read once and must be finite, and a tensor
that is missing is an error, never a random number.
"""

import copy
import hashlib
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capture.gguf import gguf_folder, is_gguf, quiet
from capture.live import is_live, unwrap
from capture.weights import (
    check_and_hash,
    file_tensors,
    module_tensors,
    opened,
    refuse_pickle,
    shards,
)
from evidence.errors import InputError
from evidence.progress import SILENT, Progress

ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Checkpoint:
    """A checked model that has not been loaded yet.

    Attributes:
        name: What reports call it.
        source: What it was opened from, as text.
        tokenizer: Its tokenizer, or None where it has none.
        weights_hash: sha256 over the names, types, shapes and bytes of its tensors;
            for an adapter, over those of base and adapter and the adapter's settings.
        config: Its configuration, as plain data; empty for a plain module.
        path: Folder with the weights (of the base, for an adapter); None when live.
        adapter: Folder of the adapter on top, if any.
        live: The module it was opened from, if it was a live one.
    """

    name: str
    source: str
    tokenizer: Any = field(repr=False)
    weights_hash: str
    config: dict[str, Any] = field(repr=False)
    path: Path | None = None
    adapter: Path | None = None
    live: nn.Module | None = field(default=None, repr=False)

    def load(self, device: str | torch.device = "cpu") -> nn.Module:
        """A fresh copy in float32 and evaluation mode, the caller's to modify.

        Raises:
            InputError: the files do not hold every tensor the architecture needs, or
                hold them in other shapes.
        """
        if self.live is not None:
            return copy.deepcopy(self.live).float().to(device).eval()
        if self.path is None:
            raise InputError(
                f"checkpoint {self.name} has neither a folder nor a module"
            )
        model = _load_folder(self.path, self.config)
        if self.adapter is not None:
            model = _merge(model, self.adapter)
        return model.to(device).eval()


def open_checkpoint(
    source: Any,
    *,
    name: str | None = None,
    revision: str | None = None,
    tokenizer: Any = None,
    base: str | Path | None = None,
    cache: Path | None = None,
    progress: Progress = SILENT,
) -> Checkpoint:
    """Check a model and fingerprint its weights, without keeping it in memory.

    Args:
        source: A Hugging Face folder, a hub id, a GGUF file, a PEFT adapter folder,
            or a live ``nn.Module``, ``HookedTransformer``, ``TransformerBridge`` or
            nnsight model.
        name: What reports call it; by default, its file name or class name.
        revision: Branch, tag or commit, for hub ids alone.
        tokenizer: A tokenizer, or the folder or hub id of one, to use in place of
            the checkpoint's own. Live models rarely bring one.
        base: The model under an adapter, in place of the one the adapter names.
        cache: Where converted weights go; ``cache_root()`` by default.
        progress: Where to show progress.

    Raises:
        InputError: nothing usable is there, or it is unsafe, damaged or incomplete.
    """
    if is_live(source):
        return _open_live(source, name, tokenizer, progress)
    if not isinstance(source, str | Path):
        raise InputError(
            "the model is of a kind that cannot be opened",
            expected="a path, a hub id or a live torch module",
            got=type(source).__name__,
        )
    path = Path(source).expanduser()
    if path.is_file():
        return _open_file(path, name, tokenizer, cache, progress)
    folder = path if path.is_dir() else _download(str(source), revision)
    label = name or path.resolve().name
    if (folder / ADAPTER_CONFIG).is_file():
        return _open_adapter(
            folder, label, tokenizer, base=base, cache=cache, progress=progress
        )
    return _open_folder(folder, label, str(source), tokenizer, progress)


def _open_live(
    source: Any, name: str | None, tokenizer: Any, progress: Progress
) -> Checkpoint:
    live = unwrap(source)
    own = live.tokenizer if tokenizer is None else _tokenizer(tokenizer)
    return Checkpoint(
        name=name or type(live.module).__name__,
        source=f"live {live.source}",
        tokenizer=own,
        weights_hash=check_and_hash(module_tensors(live.module), progress),
        config=_live_config(live.module),
        live=live.module,
    )


def _live_config(module: nn.Module) -> dict[str, Any]:
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        return json.loads(json.dumps(config.to_dict(), default=str))
    hooked = getattr(getattr(module, "hooked", None), "cfg", None)
    if hooked is not None:
        return json.loads(json.dumps(hooked.to_dict(), default=str))
    # Two plain modules with equal weights may still compute different things.
    return {"structure": str(module)}


def _open_file(
    path: Path,
    name: str | None,
    tokenizer: Any,
    cache: Path | None,
    progress: Progress,
) -> Checkpoint:
    if is_gguf(path):
        folder = gguf_folder(path, cache=cache, progress=progress)
        return _open_folder(folder, name or path.stem, str(path), tokenizer, progress)
    refuse_pickle(path)
    raise InputError(
        f"{path} is a single file that is not a model",
        expected="a GGUF file, or the folder that holds config.json and the weights",
        got=f"a {path.suffix or 'nameless'} file of {path.stat().st_size} bytes",
        fix="Pass the folder",
    )


def _open_folder(
    folder: Path, name: str, source: str, tokenizer: Any, progress: Progress
) -> Checkpoint:
    config = _read_json(folder / "config.json")
    if "quantization_config" in config:
        raise InputError(
            f"{folder} holds quantised weights",
            expected="weights in floating point",
            got=str(config["quantization_config"])[:120],
            fix="De-quantise the model and save it again",
        )
    with file_tensors(shards(folder)) as tensors:
        weights_hash = check_and_hash(tensors, progress)
    own = _folder_tokenizer(folder) if tokenizer is None else _tokenizer(tokenizer)
    return Checkpoint(
        name=name,
        source=source,
        tokenizer=own,
        weights_hash=weights_hash,
        config=config,
        path=folder,
    )


def _open_adapter(
    folder: Path,
    name: str,
    tokenizer: Any,
    *,
    base: str | Path | None,
    cache: Path | None,
    progress: Progress,
) -> Checkpoint:
    settings = _read_json(folder / ADAPTER_CONFIG)
    if not (folder / ADAPTER).is_file():
        for path in sorted(folder.glob("adapter_model.*")):
            refuse_pickle(path)
        raise InputError(f"{folder} holds no adapter weights", expected=ADAPTER)
    under = base or settings.get("base_model_name_or_path")
    if not under:
        raise InputError(
            f"{folder} does not name the model it adapts",
            expected="base_model_name_or_path in its adapter_config.json",
            fix="Pass base=, the model the adapter was trained on",
        )
    if base is None and (folder / str(under)).is_dir():
        under = folder / str(under)
    if Path(under).is_dir() and (Path(under) / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"{folder} adapts {under}, which is an adapter itself",
            expected="a whole model underneath",
            fix="Merge the lower adapter first",
        )
    lower = open_checkpoint(under, cache=cache, progress=progress)
    if lower.path is None:
        raise InputError(
            "an adapter needs a base with files", expected="a folder or hub id"
        )
    with file_tensors([folder / ADAPTER]) as tensors:
        own_hash = check_and_hash(tensors, progress)
    parts = [lower.weights_hash, own_hash, json.dumps(settings, sort_keys=True)]
    if tokenizer is not None:
        own = _tokenizer(tokenizer)
    else:
        own = _folder_tokenizer(folder) or lower.tokenizer
    return Checkpoint(
        name=name,
        source=str(folder),
        tokenizer=own,
        weights_hash=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
        config=lower.config,
        path=lower.path,
        adapter=folder,
    )


def _download(source: str, revision: str | None) -> Path:
    """A snapshot of a hub id: weights in safetensors, settings, tokenizer; no code."""
    if not HUB_ID.fullmatch(source):
        raise InputError(
            f"there is no model at {source}", expected="a path or a hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    kinds = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=kinds))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{source} is not a folder here, and the hub did not give it "
            f"({type(error).__name__})",
            expected="an existing folder or file, or a hub id that can be reached",
            fix="Check the spelling; with HF_HUB_OFFLINE set only models already "
            "downloaded are found",
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"{path.parent} is not a model folder",
            expected=f"a {path.name} in it",
            got=", ".join(sorted(p.name for p in path.parent.iterdir())[:8])
            or "nothing",
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object", got=type(value).__name__)
    return value


def _folder_tokenizer(folder: Path) -> Any:
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")
    if not any((folder / name).is_file() for name in names):
        return None
    return _tokenizer(folder)


def _tokenizer(source: Any) -> Any:
    """A tokenizer from a folder or hub id; one that is live passes through."""
    if not isinstance(source, str | Path):
        return source
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise InputError(
            f"the tokenizer in {source} could not be read ({type(error).__name__})",
            expected="tokenizer.json and tokenizer_config.json, without code",
        ) from error


def model_class(config: dict[str, Any]) -> Any:
    """The transformers class the configuration names, or the causal model of its type.

    Only classes of the installed library are looked up; ``auto_map``, which names
    code inside the checkpoint, is never followed.
    """
    import transformers

    for name in config.get("architectures") or []:
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if config.get("model_type") in causal:
        return transformers.AutoModelForCausalLM
    if config.get("model_type") in transformers.CONFIG_MAPPING:
        return transformers.AutoModel
    raise InputError(
        "the installed transformers does not know this architecture"
        + (", and code from a checkpoint is never run" if "auto_map" in config else ""),
        expected="a model_type of transformers",
        got=str(config.get("model_type")),
    )


def _load_folder(folder: Path, config: dict[str, Any]) -> nn.Module:
    kind = model_class(config)
    try:
        with quiet():
            model, report = kind.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (ValueError, OSError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} could not be loaded ({type(error).__name__}: {error})",
            expected=f"weights that fit its config.json ({config.get('model_type')})",
        ) from error
    absent = sorted(report["missing_keys"]) + sorted(
        str(key) for key in report["mismatched_keys"]
    )
    if absent:
        raise InputError(
            f"{folder} does not hold every tensor its config.json asks for",
            expected=f"the weights of a {type(model).__name__}",
            got=f"{len(absent)} missing or of another shape, such as {absent[0]}",
            fix="Check that config.json belongs to these weights",
        )
    return model


def _merge(model: nn.Module, adapter: Path) -> nn.Module:
    from peft import PeftModel

    with opened(adapter / ADAPTER):
        pass
    try:
        with warnings.catch_warnings(), quiet():
            # A tensor that finds no place, or a place without a tensor, only warns.
            warnings.filterwarnings("error", message=".*adapter keys.*")
            # peft asks transformers for an attribute under its old name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            adapted = PeftModel.from_pretrained(
                model,  # pyright: ignore[reportArgumentType]
                str(adapter),
                is_trainable=False,
                use_safetensors=True,
                local_files_only=True,
            )
            return adapted.merge_and_unload()  # pyright: ignore[reportCallIssue]
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the adapter in {adapter} does not fit its base ({error})",
            expected="an adapter of this very architecture that can be merged",
            fix="Pass base=, the model the adapter was trained on",
        ) from error
    except UserWarning as error:
        raise InputError(f"the adapter in {adapter} is incomplete ({error})") from error
