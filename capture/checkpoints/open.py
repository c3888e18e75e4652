"""Opening checkpoints: folders, hub ids, GGUF files, adapters and live models.

A checkpoint is untrusted input. Its settings are checked before any library sees them,
its weights come from safetensors alone, no code from it is ever run, nothing named in
it is looked for on the network, every tensor is read once and must be finite, and a
tensor that is missing or left over is an error.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os.path import lexists
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capture.checkpoints import adapters, identity
from capture.checkpoints.gguf import gguf_folder, is_gguf
from capture.checkpoints.hub import TOKENIZER_PATTERNS, download, find_downloaded
from capture.checkpoints.live import is_live, unwrap
from capture.checkpoints.safetensors_files import (
    CheckedFiles,
    check_and_hash,
    file_tensors,
    module_tensors,
)
from capture.checkpoints.schemas.configuration import (
    MAX_BYTES,
    MAX_DEPTH,
    check_config,
    model_class,
)
from capture.checkpoints.schemas.generation import read_generation
from capture.checkpoints.schemas.preprocessing import read_preprocessor
from capture.checkpoints.tokenizers.files import holds_tokenizer, open_tokenizer
from capture.checkpoints.weights.skeleton import build_model, check_fit
from capture.checkpoints.weights.weight_files import (
    find_shards,
    list_names,
    read_headers,
    refuse_pickle,
)
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.storage.files import read_json
from evidence.storage.regular_files import as_path, is_file, is_folder

CONFIG = "config.json"


@dataclass(frozen=True)
class AdapterChange:
    """An adapter's change of its base.

    Attributes:
        folder: Where it lies.
        settings: Of which kind and strength it is.
        files: Its weights, as they were when they were checked.
    """

    folder: Path
    settings: adapters.AdapterSettings
    files: CheckedFiles


@dataclass(frozen=True)
class Checkpoint:
    """A checked model that has not been loaded yet.

    Attributes:
        name: What reports call it.
        source: What it was opened from, as text.
        tokenizer: Its tokenizer, or None where it has none.
        weights_hash: sha256 over the names, types, shapes and bytes of its tensors;
            for an adapter, over those of base and adapter and the adapter's settings.
        fingerprint: sha256 over all that changes what it computes or is asked: the
            weights, configuration, tokenizer, chat template, generation settings,
            preparation of images; of a live model its structure, code and hooks.
        config: Its configuration, as plain data; that of the base, for an adapter.
        path: Folder with the weights (of the base, for an adapter); None when live.
        live: The module it was opened from, if it was a live one.
        files: The weights in ``path``, as they were when they were checked.
        generation: What it generates with.
        adapter_change: The adapter on top, if any.
    """

    name: str
    source: str
    tokenizer: Any = field(repr=False)
    weights_hash: str
    fingerprint: str
    config: dict[str, Any] = field(repr=False)
    path: Path | None = None
    live: nn.Module | None = field(default=None, repr=False)
    files: CheckedFiles | None = field(default=None, repr=False)
    generation: Mapping[str, Any] = field(default_factory=dict, repr=False)
    adapter_change: AdapterChange | None = field(default=None, repr=False)

    @property
    def adapter(self) -> Path | None:
        """Folder of the adapter on top, if there is one."""
        return None if self.adapter_change is None else self.adapter_change.folder

    def load(self, device: str | torch.device = "cpu") -> nn.Module:
        """A fresh copy in float32 and evaluation mode, the caller's to modify.

        Raises:
            InputError: the files are others than those that were checked, or an
                adapter does not fit its base.
        """
        if self.live is not None:
            return copy.deepcopy(self.live).float().to(device).eval()
        if self.path is None or self.files is None:
            raise InputError(
                f"checkpoint {self.name} has neither a folder nor a module"
            )
        kind = model_class(self.config)
        with self.files.slices() as state:
            model = build_model(
                kind, self.config, state, self.path, generation=self.generation
            )
        if self.adapter_change is not None:
            from capture.checkpoints.adapter_merge import merge_adapter

            with self.adapter_change.files.tensors() as tensors:
                model = merge_adapter(
                    model,
                    self.adapter_change.settings,
                    tensors,
                    self.adapter_change.folder,
                )
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
    """Check a model and fingerprint it, without keeping it in memory.

    Args:
        source: A Hugging Face folder, a hub id, a GGUF file, a PEFT adapter folder,
            or a live ``nn.Module``, ``HookedTransformer``, ``TransformerBridge`` or
            nnsight model.
        name: What reports call it; by default, its file name or class name.
        revision: Branch, tag or commit, for hub ids alone.
        tokenizer: A tokenizer, or the folder or hub id of one, to use in place of
            the checkpoint's own. Live models rarely bring one.
        base: The model under an adapter, in place of the one the adapter names. One
            that the adapter names is looked for on this machine alone.
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
    path = as_path(source, "the model")
    if is_file(path):
        return _open_file(path, name, tokenizer, cache, progress)
    folder = path if is_folder(path) else download(str(source), revision)
    label = name or folder.resolve().name
    if is_file(folder / adapters.CONFIG):
        return _open_adapter(
            folder, label, tokenizer, base=base, cache=cache, progress=progress
        )
    return _open_folder(folder, label, str(source), tokenizer, progress)


def _open_live(
    source: Any, name: str | None, tokenizer: Any, progress: Progress
) -> Checkpoint:
    live = unwrap(source)
    own = live.tokenizer if tokenizer is None else _tokenizer(tokenizer)
    weights_hash = check_and_hash(module_tensors(live.module), progress)
    config = _live_config(live.module)
    parts = {
        "weights": weights_hash,
        "config": identity.identifying_config(config),
        "module": identity.module_hash(live.module),
        "tokenizer": identity.tokenizer_hash(own),
    }
    return Checkpoint(
        name=name or type(live.module).__name__,
        source=f"live {live.source}",
        tokenizer=own,
        weights_hash=weights_hash,
        fingerprint=identity.digest(parts),
        config=config,
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
    config = _read_config(folder)
    paths = find_shards(folder)
    entries = read_headers(paths)
    check_config(config, folder / CONFIG, len(entries))
    files = CheckedFiles.of(paths)
    ignored = check_fit(model_class(config), config, entries, folder)
    generation = read_generation(folder, config)
    with file_tensors(paths, ignored) as tensors:
        weights_hash = check_and_hash(tensors, progress)
    own = None
    if tokenizer is not None:
        own = _tokenizer(tokenizer)
    elif holds_tokenizer(folder):
        own = open_tokenizer(folder, config)
    parts = {
        "weights": weights_hash,
        "config": identity.identifying_config(config),
        "tokenizer": identity.tokenizer_hash(own),
        "generation": generation,
        "images": read_preprocessor(folder),
    }
    return Checkpoint(
        name=name,
        source=source,
        tokenizer=own,
        weights_hash=weights_hash,
        fingerprint=identity.digest(parts),
        config=config,
        path=folder,
        files=files,
        generation=generation,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not lexists(path):
        raise InputError(
            f"{folder} is not a model folder",
            expected=f"a {CONFIG} in it",
            got=", ".join(list_names(folder)[:8]) or "nothing",
        )
    return read_json(path, max_bytes=MAX_BYTES, max_depth=MAX_DEPTH)


def _open_adapter(
    folder: Path,
    name: str,
    tokenizer: Any,
    *,
    base: str | Path | None,
    cache: Path | None,
    progress: Progress,
) -> Checkpoint:
    settings, said = adapters.read_adapter(folder)
    path = folder / adapters.WEIGHTS
    if not is_file(path):
        for each in sorted(folder.glob("adapter_model.*")):
            refuse_pickle(each)
        raise InputError(f"{folder} holds no adapter weights", expected=path.name)
    read_headers([path])
    files = CheckedFiles.of([path])
    under = base if base is not None else _named_base(folder, said)
    if is_folder(Path(under)) and is_file(Path(under) / adapters.CONFIG):
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
    with file_tensors([path]) as tensors:
        own_hash = check_and_hash(tensors, progress)
    weights = [lower.weights_hash, own_hash, json.dumps(said, sort_keys=True)]
    weights_hash = hashlib.sha256("\n".join(weights).encode()).hexdigest()
    if tokenizer is not None:
        own = _tokenizer(tokenizer)
    elif holds_tokenizer(folder):
        own = open_tokenizer(folder, lower.config)
    else:
        own = lower.tokenizer
    parts = {
        "base": lower.fingerprint,
        "weights": weights_hash,
        "tokenizer": identity.tokenizer_hash(own),
    }
    return Checkpoint(
        name=name,
        source=str(folder),
        tokenizer=own,
        weights_hash=weights_hash,
        fingerprint=identity.digest(parts),
        config=lower.config,
        path=lower.path,
        files=lower.files,
        generation=lower.generation,
        adapter_change=AdapterChange(folder, settings, files),
    )


def _named_base(folder: Path, said: Mapping[str, Any]) -> Path:
    """The model an adapter says it was trained on, if it is on this machine.

    A file must not make us go to the network, so a hub id is looked for among the
    models that were downloaded before.
    """
    under = said.get("base_model_name_or_path")
    if not isinstance(under, str) or not under:
        raise InputError(
            f"{folder} does not name the model it adapts",
            expected="base_model_name_or_path in its adapter_config.json",
            fix="Pass base=, the model the adapter was trained on",
        )
    for place in (folder / under, Path(under)):
        if is_folder(place):
            return place
    found = find_downloaded(under, said.get("revision"))
    if found is not None:
        return found
    raise InputError(
        f"{folder} adapts {under}, which is not on this machine",
        expected="the folder of its base, or a hub id that was downloaded before",
        fix="Download the base, or write its folder into base_model_name_or_path of "
        f"{adapters.CONFIG}, or pass base= in Python",
    )


def _tokenizer(source: Any) -> Any:
    """A tokenizer from a folder or hub id; one that is live passes through."""
    if not isinstance(source, str | Path):
        return source
    folder = as_path(source, "the tokenizer")
    if not is_folder(folder):
        folder = download(str(source), None, TOKENIZER_PATTERNS)
    config = {}
    if is_file(folder / CONFIG):
        config = read_json(folder / CONFIG, max_bytes=MAX_BYTES, max_depth=MAX_DEPTH)
    return open_tokenizer(folder, config)
