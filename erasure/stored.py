"""Erasers on disk: one safetensors file, its facts as JSON in the header, no pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from evidence.errors import InputError
from evidence.files import write_atomic

# Name of the JSON text in the header, and the version of what it says.
HEADER, VERSION = "exhume_eraser", 1


def write_eraser(
    path: Path | str, kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write an eraser to ``path``, whole or not at all.

    Args:
        path: The file.
        kind: Name of the eraser's class.
        tensors: Its tensors.
        facts: What else it is made of, fit for JSON.

    Raises:
        InputError: the disk is full, read-only or not ours to write.
    """
    from safetensors.torch import save

    note = {"kind": kind, "version": VERSION, **facts}
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
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError("there is no eraser", expected="a file", got=str(path))
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} is not an eraser", expected="a file that save() wrote"
        ) from error
    if note.get("kind") != kind or note.get("version") != VERSION:
        raise InputError(
            f"{path} is not such an eraser",
            expected=f"{kind}, version {VERSION}",
            got=f"{note.get('kind')}, version {note.get('version')}",
        )
    return tensors, note
