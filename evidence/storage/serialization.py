"""Erasers on disk: one safetensors file, its facts as JSON in the header, no pickle."""

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

# Name of the JSON text in the header, and the version of what it says.
HEADER, VERSION = "exhume_eraser", 1


def write_eraser(
    path: Path | str,
    kind: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
) -> None:
    """Write an eraser to ``path``, whole or not at all.

    Args:
        path: The file.
        kind: Name of the eraser's class.
        tensors: Its tensors.
        metadata: What else it is made of, fit for JSON.

    Raises:
        InputError: the disk is full, read-only or not ours to write.
    """
    from safetensors.torch import save

    note = {"kind": kind, "version": VERSION, **metadata}
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(note, sort_keys=True)
    write_atomic(Path(path), save(whole, metadata={HEADER: text}))


def read_eraser(
    path: Path | str, kind: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts that ``write_eraser`` wrote.

    Raises:
        InputError: there is no such file, or it is not such an eraser.
    """
    place = as_path(path, "the eraser")
    text, tensors = read_tensors(place)
    note = parse_json(text, f"the note in {place}")
    if not isinstance(note, dict):
        raise InputError(f"{place} is not an eraser", expected="a file save() wrote")
    if note.get("kind") != kind or note.get("version") != VERSION:
        raise InputError(
            f"{path} is not such an eraser",
            expected=f"{kind}, version {VERSION}",
            got=f"{note.get('kind')}, version {note.get('version')}",
        )
    return tensors, note


@contextmanager
def eraser_errors(path: Path | str) -> Iterator[None]:
    """Make one error of parts that are missing, too many or of another type.

    Raises:
        InputError: the parts do not make an eraser.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not an eraser: its parts do not fit "
            f"({type(error).__name__}: {error})",
            expected="a file that save() wrote",
        ) from error


def read_tensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The note ("{}" where there is none) and the finite tensors of a safetensors file.

    Raises:
        InputError: there is no such file, it is damaged, or holds NaN or infinity.
    """
    from safetensors import SafetensorError, safe_open

    found = file_kind(path)
    if found != "a file":
        raise InputError(
            "there is no eraser", expected="a file", got=f"{path}: {found}"
        )
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
            raise InputError(f"{name} of the eraser {path} holds NaN or infinity")
    return note, tensors
