"""Storage of results as one safetensors file: arrays, and JSON metadata in the header."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evidence.errors import InputError
from evidence.storage.files import write_atomic
from evidence.storage.regular_files import as_path, file_kind
from evidence.storage.strict_json import parse_json

# Header key of the JSON metadata, and the version of its layout.
HEADER, VERSION = "exhume_result", 1


def write_arrays(
    path: Path | str, kind: str, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]
) -> None:
    """Write a result atomically; reading it gives the same arrays, bit by bit.

    Args:
        kind: Name of the result's class.
        arrays: Arrays by name.
        metadata: JSON-ready attributes.

    Raises:
        InputError: The disk is full, read-only or not writable, or the path is invalid.
    """
    from safetensors.numpy import save

    note = json.dumps({"kind": kind, "version": VERSION, **metadata}, sort_keys=True)
    contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    write_atomic(as_path(path, "the file"), save(contiguous, metadata={HEADER: note}))


def read_arrays(path: Path | str, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read arrays and metadata of a result of class ``kind``.

    Raises:
        InputError: There is no such file, it is damaged, or it holds something else.
    """
    from safetensors import SafetensorError, safe_open

    file = as_path(path, "the file")
    found = file_kind(file)
    if found != "a file":
        raise InputError(f"there is no {kind} at {file}", expected="a file", got=found)
    try:
        with safe_open(file, framework="np") as opened:
            text = (opened.metadata() or {}).get(HEADER)
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{file} is damaged or no safetensors file ({error})",
            expected=f"a file that {kind}.save wrote",
        ) from error
    note = {} if text is None else parse_json(text, f"the note in {file}")
    stated = note.get("kind") if isinstance(note, dict) else None
    if not isinstance(note, dict) or stated != kind or note.get("version") != VERSION:
        raise InputError(
            f"{file} holds something else",
            expected=f"a file that {kind}.save wrote, version {VERSION}",
            got="no note" if stated is None else f"{stated}, version {note.get('version')}",
        )
    return arrays, note


@contextmanager
def part_errors(path: Path | str, kind: str) -> Iterator[None]:
    """Convert errors of building a result from missing or wrong parts.

    Raises:
        InputError: In place of the original exception.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is no {kind}: its parts do not fit ({type(error).__name__}: {error})",
            expected=f"a file that {kind}.save wrote",
        ) from error
