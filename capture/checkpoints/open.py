"""Opening of checkpoints: folders, hub ids, GGUF files, adapters and live models.

Checkpoints are untrusted. Configuration files are validated before any library reads them,
weights are read from safetensors only, code in a checkpoint is never run, names in its files are
never looked up on the network, and all tensors must be finite. Missing and unexpected tensors are
errors.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
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
from capture.checkpoints.weights.weight_files import find_shards, read_headers, refuse_pickle
from evidence.errors import InputError, printable, quoted
from evidence.progress import AUTO, Progress
from evidence.storage.files import read_json
from evidence.storage.regular_files import as_path, is_file, is_folder, list_folder

CONFIG = "config.json"


@dataclass(frozen=True)
class AdapterChange:
    """An adapter on top of a base model.

    Attributes:
        folder: Its folder.
        settings: Its validated settings.
        files: Its weight files, with their state at the time of the check.
    """

    folder: Path
    settings: adapters.AdapterSettings
    files: CheckedFiles


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """A validated model that is not loaded yet.

    Attributes:
        name: Name in reports.
        source: Text that names the origin.
        tokenizer: The tokenizer, or None.
        weights_hash: sha256 over names, types, shapes and bytes of the tensors; for an adapter,
            over those of base and adapter and the adapter's settings.
        fingerprint: sha256 over everything that affects its behavior: weights, configuration,
            tokenizer, chat template, generation settings, image preprocessing; for a live model,
            structure, code and hooks.
        config: Configuration as plain data; for an adapter, that of the base.
        path: Folder with the weights (of the base, for an adapter); None for a live model.
        live: The live module, if opened from one.
        files: The weight files in ``path``, with their state at the time of the check.
        generation: Generation settings.
        adapter_change: The adapter on top, if any.
        vocabulary: Number of tokens to keep; rows of embeddings beyond them, which belong to
            tokens added later, are left out. None for all.

    Examples:
        >>> first, second = exhume.open_checkpoint("original"), exhume.open_checkpoint("unlearned")
        >>> first.weights_hash == second.weights_hash
        False
        >>> type(second.load()).__name__
        'LlamaForCausalLM'
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
    vocabulary: int | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        kinds = self.config.get("architectures") or ["live model"]
        return (
            f"Checkpoint({self.name!r}, {printable(kinds[0])}, weights "
            f"{self.weights_hash[:12]}, from {quoted(self.source)})"
        )

    @property
    def adapter(self) -> Path | None:
        """Folder of the adapter on top, if there is one."""
        return None if self.adapter_change is None else self.adapter_change.folder

    def load(self, device: str | torch.device = "cpu") -> nn.Module:
        """Load a new copy in float32 and evaluation mode.

        Raises:
            InputError: the files changed since they were checked, or an adapter does not fit
                its base.
        """
        if self.live is not None:
            return self._cropped(copy.deepcopy(self.live).float()).to(device).eval()
        if self.path is None or self.files is None:
            raise InputError(f"checkpoint {self.name} has neither a folder nor a module")
        model_type = model_class(self.config)
        with self.files.slices() as state:
            model = build_model(
                model_type, self.config, state, self.path, generation=self.generation
            )
        if self.adapter_change is not None:
            from capture.checkpoints.adapter_merge import merge_adapter

            with self.adapter_change.files.tensors() as tensors:
                model = merge_adapter(
                    model, self.adapter_change.settings, tensors, self.adapter_change.folder
                )
        # Where texts for this model find its tokenizer.
        if (config := vars(model).get("config")) is not None:
            config._name_or_path = str(self.path)
        return self._cropped(model).to(device).eval()

    def _cropped(self, model: Any) -> nn.Module:
        """The model without the rows of tokens beyond ``vocabulary``."""
        if self.vocabulary is None:
            return model
        from capture.checkpoints.adapter_merge import crop_vocabulary

        return crop_vocabulary(model, self.vocabulary)


def open_checkpoint(
    source: Any,
    *,
    name: str | None = None,
    revision: str | None = None,
    tokenizer: Any = None,
    base: str | Path | None = None,
    cache: Path | None = None,
    progress: Progress = AUTO,
) -> Checkpoint:
    """Validate and fingerprint a model without loading it.

    Args:
        source: A Hugging Face folder, a hub id, a GGUF file, a PEFT adapter folder, or a live
            ``nn.Module``, ``HookedTransformer``, ``TransformerBridge`` or nnsight model.
        name: Name in reports; by default, the file or class name.
        revision: Branch, tag or commit of a hub id.
        tokenizer: A tokenizer, or the folder or hub id of one, in place of the checkpoint's own.
            Live models rarely have one.
        base: The base model of an adapter, in place of the one the adapter names. The latter is
            looked up on this machine only.
        cache: Folder for converted weights; ``cache_root()`` by default.

    Raises:
        InputError: there is no model, or it is unsafe, damaged or incomplete.

    Examples:
        >>> checkpoint = exhume.open_checkpoint("original")
        >>> checkpoint
        Checkpoint('original', LlamaForCausalLM, weights d4a85b7c187f, from 'original')
        >>> model = checkpoint.load()
        >>> exhume.open_checkpoint(model, tokenizer=checkpoint.tokenizer)
        Checkpoint('LlamaForCausalLM', LlamaForCausalLM, weights d4a85b7c187f, from 'live
        LlamaForCausalLM')
    """
    if is_live(source):
        return _open_live(source, name, tokenizer, progress)
    if not isinstance(source, str | Path):
        raise InputError(
            "the model has an unsupported type",
            expected="a path, a hub id or a live torch module",
            got=type(source).__name__,
        )
    path = as_path(source, "the model")
    if is_file(path):
        return _open_file(path, name, tokenizer, cache, progress)
    folder = path if is_folder(path) else download(str(source), revision)
    label = name or folder.resolve().name
    if is_file(folder / adapters.CONFIG):
        return _open_adapter(folder, label, tokenizer, base=base, cache=cache, progress=progress)
    return _open_folder(folder, label, str(source), tokenizer, progress)


def _open_live(source: Any, name: str | None, tokenizer: Any, progress: Progress) -> Checkpoint:
    live = unwrap(source)
    resolved = live.tokenizer if tokenizer is None else _resolve_tokenizer(tokenizer)
    weights_hash = check_and_hash(module_tensors(live.module), progress)
    config = _live_config(live.module)
    parts = {
        "weights": weights_hash,
        "config": identity.identifying_config(config),
        "module": identity.module_hash(live.module),
        "tokenizer": identity.tokenizer_hash(resolved),
    }
    return Checkpoint(
        name=name or type(live.module).__name__,
        source=f"live {live.source}",
        tokenizer=resolved,
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
    # Plain modules with equal weights may still differ in structure.
    return {"structure": str(module)}


def _open_file(
    path: Path, name: str | None, tokenizer: Any, cache: Path | None, progress: Progress
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
    resolved = _choose_tokenizer(tokenizer, folder, config)
    parts = {
        "weights": weights_hash,
        "config": identity.identifying_config(config),
        "tokenizer": identity.tokenizer_hash(resolved),
        "generation": generation,
        "images": read_preprocessor(folder),
    }
    return Checkpoint(
        name=name,
        source=source,
        tokenizer=resolved,
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
            got=", ".join(path.name for path in list_folder(folder)[:8]) or "nothing",
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
    settings, raw = adapters.read_adapter(folder)
    path = folder / adapters.WEIGHTS
    if not is_file(path):
        for file in sorted(folder.glob("adapter_model.*")):
            refuse_pickle(file)
        raise InputError(f"{folder} holds no adapter weights", expected=path.name)
    read_headers([path])
    files = CheckedFiles.of([path])
    base_source = base if base is not None else _named_base(folder, raw)
    if is_folder(Path(base_source)) and is_file(Path(base_source) / adapters.CONFIG):
        raise InputError(
            f"{folder} adapts {base_source}, which is itself an adapter",
            expected="a base model",
            fix="Merge that adapter into its base first",
        )
    base_checkpoint = open_checkpoint(base_source, cache=cache, progress=progress)
    if base_checkpoint.path is None:
        raise InputError("an adapter needs a base with files", expected="a folder or hub id")
    with file_tensors([path]) as tensors:
        own_hash = check_and_hash(tensors, progress)
    weights = [base_checkpoint.weights_hash, own_hash, json.dumps(raw, sort_keys=True)]
    weights_hash = hashlib.sha256("\n".join(weights).encode()).hexdigest()
    resolved = _choose_tokenizer(
        tokenizer, folder, base_checkpoint.config, base_checkpoint.tokenizer
    )
    parts = {
        "base": base_checkpoint.fingerprint,
        "weights": weights_hash,
        "tokenizer": identity.tokenizer_hash(resolved),
    }
    return Checkpoint(
        name=name,
        source=str(folder),
        tokenizer=resolved,
        weights_hash=weights_hash,
        fingerprint=identity.digest(parts),
        config=base_checkpoint.config,
        path=base_checkpoint.path,
        files=base_checkpoint.files,
        generation=base_checkpoint.generation,
        adapter_change=AdapterChange(folder, settings, files),
    )


def _named_base(folder: Path, raw: Mapping[str, Any]) -> Path:
    """The base model named by an adapter, if it is on this machine.

    Hub ids are looked up in the local cache only: a file must not trigger a download.
    """
    base_name = raw.get("base_model_name_or_path")
    if not isinstance(base_name, str) or not base_name:
        raise InputError(
            f"{folder} does not name the model it adapts",
            expected="base_model_name_or_path in its adapter_config.json",
            fix="Pass the model it was trained on: --base, or base= in Python",
        )
    for candidate in (folder / base_name, Path(base_name)):
        if is_folder(candidate):
            return candidate
    downloaded = find_downloaded(base_name, raw.get("revision"))
    if downloaded is not None:
        return downloaded
    raise InputError(
        f"{folder} adapts {base_name}, which is not on this machine",
        expected="the folder of its base, or a hub id that was downloaded before",
        fix="Pass the model it was trained on: --base, or base= in Python",
    )


def check_base(base: Any, sources: Iterable[Any]) -> None:
    """Refuse a base of adapters where no model is an adapter.

    Args:
        base: The base, or None.
        sources: The models, as they were given.

    Raises:
        InputError: it is no path or name, or there is no adapter.
    """
    if base is None:
        return
    if not isinstance(base, str | Path):
        raise InputError(
            "the base of adapters has an unsupported type",
            expected="a folder or hub id",
            got=type(base).__name__,
        )
    sources = list(sources)
    if not any(_may_be_adapter(source) for source in sources):
        raise InputError(
            f"a base was given ({quoted(base)}), but no model is an adapter",
            expected=f"a folder with {adapters.CONFIG} among the models",
            fix="Leave --base out",
        )


def _may_be_adapter(source: Any) -> bool:
    """Whether a source is the folder of an adapter, or not on this machine yet."""
    if not isinstance(source, str | Path):
        return False
    path = as_path(source, "the model")
    return is_file(path / adapters.CONFIG) or not lexists(path)


def _choose_tokenizer(
    given: Any, folder: Path, config: Mapping[str, Any], default: Any = None
) -> Any:
    """The given tokenizer, else the one in ``folder``, else ``default``."""
    if given is not None:
        return _resolve_tokenizer(given)
    return open_tokenizer(folder, config) if holds_tokenizer(folder) else default


def _resolve_tokenizer(source: Any) -> Any:
    """Open a tokenizer from a folder or hub id; tokenizer objects are returned unchanged."""
    if not isinstance(source, str | Path):
        return source
    folder = as_path(source, "the tokenizer")
    if not is_folder(folder):
        folder = download(str(source), None, TOKENIZER_PATTERNS)
    config = {}
    if is_file(folder / CONFIG):
        config = read_json(folder / CONFIG, max_bytes=MAX_BYTES, max_depth=MAX_DEPTH)
    return open_tokenizer(folder, config)
