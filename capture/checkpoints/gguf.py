"""GGUF files: de-quantised once, kept as an ordinary Hugging Face folder."""

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
from capture.checkpoints.schemas.library_errors import library_errors, silent_stderr
from capture.checkpoints.schemas.quietly import offline_hub, quiet_transformers
from capture.checkpoints.weights.gguf_header import read_gguf_header
from capture.checkpoints.weights.skeleton import limit_construction
from capture.checkpoints.weights.weight_files import ANY_SIZE
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.storage.files import atomic_folder, disk_errors
from evidence.storage.locks import creation_lock
from evidence.storage.regular_files import open_regular
from evidence.storage.scratch import scratch_folder

CONVERSION = "1"  # part of the cache's key: raise it when the result would differ


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is a GGUF file by content."""
    with open_regular(path, ANY_SIZE) as file:
        return file.read(4) == b"GGUF"


def gguf_folder(
    path: Path, *, cache: Path | None = None, progress: Progress = SILENT
) -> Path:
    """The Hugging Face folder with the de-quantised weights of ``path``.

    Weights are float32, which holds every de-quantised value exactly; the tokenizer
    in the file is saved beside them. The folder lives in the cache under the hash of
    the file, and is only kept if it loads back to the very same weights.

    Raises:
        InputError: the file is damaged, of an architecture transformers cannot
            read, or there is no room for the result.
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
    with progress.task(f"de-quantising {path.name}", 3) as advance:
        with disk_errors(folder, about_path=False), scratch_folder(folder) as place:
            model, tokenizer = _read(path, place)
        advance(1)
        with atomic_folder(folder) as scratch:
            _save(model, tokenizer, scratch)
            advance(1)
            _check_same(model, scratch)
            advance(1)


def _read(path: Path, place: Path) -> tuple[Any, Any]:
    """The model with de-quantised weights, and its tokenizer, as transformers sees."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

    header = read_gguf_header(path)
    count = len(header.shapes)
    # Kernels from the hub would compute on the packed weights.
    kind = getattr(transformers, "GgufConfig", None)
    unpacked = {} if kind is None else {"quantization_config": kind(dequantize=True)}
    # The file is reached through a link in a folder of its own, so that nothing
    # lying beside it can be taken for part of the model.
    with (
        library_errors(
            f"{path} could not be read as GGUF",
            expected="a whole GGUF file of an architecture transformers knows",
            fix="Download it again, or pass the model as a Hugging Face folder",
        ),
        quiet_transformers(),
        offline_hub(),
        silent_stderr(),
        _read_once(),
        limit_construction(count, header.n_values, path),
    ):
        (place / "model.gguf").symlink_to(path.resolve())
        said, _ = PreTrainedConfig.get_config_dict(place, gguf_file="model.gguf")
        check_config(said, path, count)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            gguf_file="model.gguf",
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **unpacked,
        )
        model, report = loaded
        tokenizer = AutoTokenizer.from_pretrained(
            place,
            gguf_file="model.gguf",
            trust_remote_code=False,
            local_files_only=True,
        )
    missing = [*report["missing_keys"], *map(str, report["mismatched_keys"])]
    if missing:
        raise InputError(
            f"{path} does not hold every tensor its settings ask for",
            expected=f"the weights of a {type(model).__name__}",
            got=f"{len(missing)} missing or of another shape, such as {missing[0]}",
        )
    return model, tokenizer


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    settings = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    # GGUF stores these as float32, so 1e-5 arrives as 9.999999747378752e-06.
    for name, value in settings.items():
        if isinstance(value, float) and float(np.float32(value)) == value:
            settings[name] = float(str(np.float32(value)))
    # A model read from GGUF is marked as quantised and refuses to be saved; a new one
    # of the same class holding the same tensors is not.
    with torch.device("meta"):
        plain = type(model)(type(model.config).from_dict(settings))
    plain.load_state_dict(model.state_dict(), strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    with quiet_transformers():
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _check_same(model: Any, folder: Path) -> None:
    with quiet_transformers():
        back = type(model).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    expected, found = model.state_dict(), back.state_dict()
    if expected.keys() != found.keys() or not all(
        torch.equal(expected[name], found[name]) for name in expected
    ):
        raise InputError(
            "the de-quantised weights did not load back as they were saved",
            fix="Check the disk of the cache folder, or name another in EXHUME_CACHE",
        )


@contextmanager
def _read_once() -> Iterator[None]:
    """Have transformers parse the file once, and without a bar of its own.

    For model, settings and tokenizer it parses the file, with every word of the
    vocabulary, anew, and it makes the table of tensor names again for each module:
    two thirds of the time. No setting of it turns off its progress bar.
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
