"""Steering vectors as control vectors of llama.cpp, in its GGUF format.

In llama.cpp, ``direction.N`` is added to the output of block N at every position, where blocks are
counted from 0 (``llama_adapter_cvec`` in ``src/llama-adapter.cpp``), so it is our site ``resid.N``.
It has no direction for block 0.
"""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from capture.checkpoints.schemas.library_errors import library_errors
from capture.checkpoints.weights.gguf_header import read_gguf_header
from evidence.errors import InputError
from evidence.storage.files import write_atomic
from evidence.storage.regular_files import as_path, file_kind

ARCHITECTURE = "controlvector"
_SITE, _DIRECTION = re.compile(r"resid\.(\d{1,6})"), re.compile(r"direction\.(\d{1,6})")
_FLOAT32 = 0  # code of the type in GGUF


def write_control_vector(
    path: str | Path, vectors: Mapping[str, Tensor | ArrayLike], *, model_hint: str = ""
) -> None:
    """Write steering vectors as a GGUF control vector for llama.cpp.

    ``llama-cli --control-vector FILE`` then adds each vector as ``exhume.steer`` does; the scale
    belongs into the vectors or into ``--control-vector-scaled``.

    Args:
        path: The file.
        vectors: Site ``resid.L`` to a vector (d,) in units of the stream; written as float32.
        model_hint: Architecture of the model, such as "llama"; llama.cpp does not check it.

    Raises:
        InputError: A site is no ``resid.L`` with L of 1 or more, vectors are not finite or differ
            in width, or the disk is full or not writable.

    Source: llama.cpp, ``common_control_vector_load`` and ``tools/cvector-generator``.

    Examples:
        >>> exhume.write_control_vector("lisbon.gguf", {"resid.1": torch.ones(32)})
        >>> exhume.read_control_vector("lisbon.gguf")["resid.1"].shape
        torch.Size([32])
    """
    from gguf import GGUFWriter

    layers = {_layer(site): _as_float32(site, vector) for site, vector in vectors.items()}
    widths = {len(vector) for vector in layers.values()}
    if len(widths) != 1:
        raise InputError(
            "vectors of one control vector have one width",
            expected="one or more vectors (d,)",
            got=", ".join(map(str, sorted(widths))) or "no vectors",
        )
    target = as_path(path, "the control vector")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vector.gguf"
        writer = GGUFWriter(file, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(layers))
        for layer in sorted(layers):
            writer.add_tensor(f"direction.{layer}", layers[layer])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        content = file.read_bytes()
    write_atomic(target, content)


def read_control_vector(path: str | Path) -> dict[str, Tensor]:
    """Read a GGUF control vector, as written by ``write_control_vector``, llama.cpp or repeng.

    Returns:
        Site ``resid.L`` to a float32 vector (d,), for ``exhume.steer``.

    Raises:
        InputError: There is no such file, it is damaged, or it is no control vector.

    Examples:
        >>> exhume.write_control_vector("lisbon.gguf", {"resid.1": torch.ones(32)})
        >>> vectors = exhume.read_control_vector("lisbon.gguf")
        >>> with torch.no_grad(), exhume.steer(model, vectors, scale=2.0):
        ...     _ = model(torch.tensor(rows.ids[:1]))
    """
    from gguf import GGUFReader

    file = as_path(path, "the control vector")
    found = file_kind(file)
    if found != "a file":
        raise InputError(f"there is no control vector at {file}", expected="a file", got=found)
    header = read_gguf_header(file)
    names = {name: _DIRECTION.fullmatch(name) for name in header.shapes}
    widths = {shape for shape in header.shapes.values()}
    architecture = header.metadata.get("general.architecture")
    if architecture != ARCHITECTURE or not all(names.values()) or len(widths) != 1:
        raise InputError(
            f"{file} is no control vector",
            expected=f"the architecture {ARCHITECTURE!r} and tensors direction.N of one width",
            got=f"{architecture!r} with {', '.join(list(names)[:3]) or 'no tensors'}",
        )
    with library_errors(
        f"{file} is damaged", expected="a whole GGUF file", fix="Copy or write it again"
    ):
        tensors = GGUFReader(file).tensors
    vectors = {}
    for tensor in tensors:
        if tensor.tensor_type != _FLOAT32 or len(tensor.shape) != 1:
            raise InputError(
                f"{tensor.name} in {file} is no vector of float32", got=tensor.tensor_type.name
            )
        match = _DIRECTION.fullmatch(tensor.name)
        site = f"resid.{int(match[1])}" if match else tensor.name
        _layer(site)
        vectors[site] = torch.from_numpy(_as_float32(site, np.array(tensor.data)))
    return vectors


def _layer(site: str) -> int:
    found = _SITE.fullmatch(site)
    if found is None:
        raise InputError(
            f"a control vector has no place for {site}: it holds outputs of blocks alone",
            expected="sites resid.1, resid.2, and so on",
        )
    if int(found[1]) == 0:
        raise InputError(
            "a control vector has no place for resid.0: llama.cpp knows no direction for block 0",
            expected="sites resid.1, resid.2, and so on",
        )
    return int(found[1])


def _as_float32(site: str, vector: Tensor | ArrayLike) -> np.ndarray:
    if isinstance(vector, Tensor):
        vector = vector.detach().float().cpu().numpy()
    with np.errstate(over="ignore"):
        values = np.asarray(vector).astype(np.float32)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(
            f"the vector at {site} is not finite or not one vector",
            expected="shape (d,), finite in float32",
            got=str(values.shape),
        )
    return values
