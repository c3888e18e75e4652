"""Storage of erasers as one safetensors file with JSON metadata in its header."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evidence.errors import InputError
from evidence.storage.files import write_atomic
from evidence.storage.regular_files import as_path, file_kind
from evidence.storage.strict_json import parse_json

# Header key of the JSON metadata, and the version of its layout.
HEADER, VERSION = "exhume_eraser", 1


def write_eraser(
    path: Path | str, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write an eraser atomically.

    Args:
        kind: Name of the eraser's class.
        tensors: Tensors by name.
        metadata: JSON-ready attributes.

    Raises:
        InputError: the disk is full, read-only or not writable.
    """
    from safetensors.torch import save

    note = {"kind": kind, "version": VERSION, **metadata}
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(note, sort_keys=True)
    write_atomic(Path(path), save(contiguous, metadata={HEADER: text}))


def read_eraser(path: Path | str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata of an eraser of class ``kind``.

    Raises:
        InputError: there is no such file, or it is not an eraser of this class.
    """
    file = as_path(path, "the eraser")
    text, tensors = read_tensors(file)
    note = parse_json(text, f"the note in {file}")
    if not isinstance(note, dict):
        raise InputError(f"{file} is not an eraser", expected="a file save() wrote")
    if note.get("kind") != kind or note.get("version") != VERSION:
        raise InputError(
            f"{path} is an eraser of another kind",
            expected=f"{kind}, version {VERSION}",
            got=f"{note.get('kind')}, version {note.get('version')}",
        )
    return tensors, note


@contextmanager
def eraser_errors(path: Path | str) -> Iterator[None]:
    """Convert errors of constructing an eraser from missing or wrong parts.

    Raises:
        InputError: in place of the original exception.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not an eraser: its parts do not fit ({type(error).__name__}: {error})",
            expected="a file that save() wrote",
        ) from error


def read_tensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Metadata text (default "{}") and tensors of a safetensors file.

    Raises:
        InputError: there is no such file, it is damaged, or contains NaN or infinity.
    """
    from safetensors import SafetensorError, safe_open

    kind = file_kind(path)
    if kind != "a file":
        raise InputError("there is no eraser", expected="a file", got=f"{path}: {kind}")
    try:
        with safe_open(path, framework="pt") as file:
            note = (file.metadata() or {}).get(HEADER, "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not an eraser ({error})", expected="a file that save() wrote"
        ) from error
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} of the eraser {path} contains NaN or infinity")
    return note, tensors
