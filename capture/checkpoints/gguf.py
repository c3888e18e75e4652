"""Conversion of GGUF files to cached Hugging Face folders with dequantized weights."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capture.checkpoints.cache import cache_root
from capture.checkpoints.schemas.configuration import check_config
from capture.checkpoints.schemas.library_errors import (
    library_errors,
    offline_hub,
    quiet_transformers,
    silent_stderr,
)
from capture.checkpoints.weights.gguf_header import read_gguf_header
from capture.checkpoints.weights.skeleton import limit_construction
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.storage.files import atomic_folder, disk_errors
from evidence.storage.locks import creation_lock
from evidence.storage.regular_files import open_regular
from evidence.storage.scratch import scratch_folder

CONVERSION = "1"  # part of the cache key: increment if the result would change


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is a GGUF file by content."""
    with open_regular(path) as file:
        return file.read(4) == b"GGUF"


def gguf_folder(path: Path, *, cache: Path | None = None, progress: Progress = AUTO) -> Path:
    """The cached Hugging Face folder with the dequantized weights of a GGUF file.

    Weights are float32, which represents all dequantized values exactly; the tokenizer is saved
    with them. The cache key is the hash of the file. The folder is kept only if it loads back to
    identical weights.

    Raises:
        InputError: the file is damaged, transformers does not support its architecture, or the
            disk is full.
    """
    digest = hashlib.sha256(CONVERSION.encode())
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    root = cache if cache is not None else cache_root()
    folder = root / "gguf" / digest.hexdigest()[:24]
    if folder.is_dir():
        return folder
    with creation_lock(folder, progress):
        if not folder.is_dir():
            _convert(path, folder, progress)
    return folder


def _convert(path: Path, folder: Path, progress: Progress) -> None:
    with as_progress(progress).task(f"dequantizing {path.name}", 3) as advance:
        with disk_errors(folder, about_path=False), scratch_folder(folder) as place:
            model, tokenizer = _read(path, place)
        advance(1)
        with atomic_folder(folder) as scratch:
            _save(model, tokenizer, scratch)
            advance(1)
            _check_round_trip(model, scratch)
            advance(1)


def _read(path: Path, place: Path) -> tuple[Any, Any]:
    """The model with dequantized weights and its tokenizer, read by transformers."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

    header = read_gguf_header(path)
    count = len(header.shapes)
    # Without this, kernels from the hub would compute on quantized weights.
    kind = getattr(transformers, "GgufConfig", None)
    dequantize = {} if kind is None else {"quantization_config": kind(dequantize=True)}
    # Read through a link in an empty folder, so that files beside it are not taken
    # for parts of the model.
    with (
        library_errors(
            f"{path} could not be read as GGUF",
            expected="a complete GGUF file of an architecture that transformers supports",
            fix="Download it again, or pass the model as a Hugging Face folder",
        ),
        quiet_transformers(),
        offline_hub(),
        silent_stderr(),
        _parse_once(),
        limit_construction(count, header.n_values, path),
    ):
        (place / "model.gguf").symlink_to(path.resolve())
        config, _ = PreTrainedConfig.get_config_dict(place, gguf_file="model.gguf")
        check_config(config, path, count)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            gguf_file="model.gguf",
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **dequantize,
        )
        model, report = loaded
        tokenizer = AutoTokenizer.from_pretrained(
            place, gguf_file="model.gguf", trust_remote_code=False, local_files_only=True
        )
    missing = [*report["missing_keys"], *map(str, report["mismatched_keys"])]
    if missing:
        raise InputError(
            f"{path} lacks tensors of its configuration",
            expected=f"the weights of a {type(model).__name__}",
            got=f"{len(missing)} missing or of another shape, such as {missing[0]}",
        )
    return model, tokenizer


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    settings = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    # GGUF stores settings as float32, so 1e-5 is read as 9.999999747378752e-06.
    for name, value in settings.items():
        if isinstance(value, float) and float(np.float32(value)) == value:
            settings[name] = float(str(np.float32(value)))
    # A model read from GGUF is marked as quantized and cannot be saved; a new one of
    # the same class with the same tensors can.
    with torch.device("meta"):
        plain = type(model)(type(model.config).from_dict(settings))
    plain.load_state_dict(model.state_dict(), strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    with quiet_transformers():
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _check_round_trip(model: Any, folder: Path) -> None:
    with quiet_transformers():
        reloaded = type(model).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    expected, actual = model.state_dict(), reloaded.state_dict()
    if expected.keys() != actual.keys() or not all(
        torch.equal(expected[name], actual[name]) for name in expected
    ):
        raise InputError(
            "the dequantized weights did not load back as they were saved",
            fix="Check the disk of the cache folder, or set EXHUME_CACHE to another folder",
        )


@contextmanager
def _parse_once() -> Iterator[None]:
    """Make transformers parse the file once, and hide its progress bar.

    Otherwise it parses the file again for model, configuration and tokenizer, and rebuilds the
    table of tensor names for each module, which takes two thirds of the time. The progress bar
    cannot be disabled by a setting.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reader

    with ExitStack() as stack:
        for place, name, ours in (
            (gguf, "GGUFReader", lru_cache(None)(gguf.GGUFReader)),
            (gguf, "get_tensor_name_map", lru_cache(None)(gguf.get_tensor_name_map)),
            (reader, "tqdm", partial(reader.tqdm, disable=True)),
        ):
            stack.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, ours)
        yield
