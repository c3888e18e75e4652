"""Discovery of a checkpoint's weight files.

Only safetensors files are read. Opening a pickle can run code, so pickles are recognized by their
first bytes, whatever their name, and refused.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from capture.checkpoints.weights.safetensors_headers import TensorEntry, read_header
from evidence.errors import InputError
from evidence.storage.files import read_json
from evidence.storage.regular_files import file_kind, is_file, list_folder, open_regular

MAX_INDEX_BYTES = 32 << 20
"""Four times the index of 65,536 tensors."""
PICKLE_NAMES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def is_pickle(path: Path) -> bool:
    """Whether the content of ``path`` is a pickle, plain or in a PyTorch zip archive.

    Protocols 2 and later start with byte 0x80 and the protocol number, and PyTorch's archives
    with the zip signature. Protocols 0 and 1 have no signature and are recognized by the file
    name only.
    """
    with open_regular(path) as file:
        start = file.read(4)
    plain = len(start) >= 2 and start[0] == 0x80 and 2 <= start[1] <= 6
    return plain or start == b"PK\x03\x04"


def refuse_pickle(path: Path) -> None:
    """Refuse a pickle.

    Raises:
        InputError: ``path`` is a pickle by content or by name.
    """
    if path.suffix.lower() in PICKLE_NAMES or is_pickle(path):
        raise InputError(
            f"{path} is a pickle checkpoint: opening one can run any code in it",
            expected="safetensors weights",
            got=f"a {path.suffix or 'nameless'} file",
            fix="Save the model with save_pretrained, which writes safetensors, in an "
            "environment where you trust it, and pass that folder",
        )


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files with the weights of a Hugging Face folder, sorted.

    Only these files are validated, hashed, compared and loaded.

    Raises:
        InputError: there are none, or only pickles; a file of the index is missing; the index is
            invalid or contradicts ``model.safetensors``.
    """
    index, single = folder / INDEX, folder / SINGLE
    if is_file(index):
        indexed = _indexed_shards(folder, index)
        if is_file(single) and indexed != [single]:
            raise InputError(
                f"{folder} holds weights twice",
                expected=f"{SINGLE}, or {INDEX} and the files it names",
                got=f"{SINGLE} beside {indexed[0].name}",
                fix="Remove those that are not the model's",
            )
        return indexed
    if is_file(single):
        return [single]
    names = [path.name for path in list_folder(folder)]
    for name in names:
        if Path(name).suffix.lower() in PICKLE_NAMES:
            refuse_pickle(folder / name)
    existing = [each for each in (single, index) if os.path.lexists(each)]
    raise InputError(
        f"{folder} holds no weights",
        expected=f"{SINGLE}, or {INDEX} with the files it names",
        got=f"{file_kind(existing[0])} of the name {existing[0].name}"
        if existing
        else ", ".join(names[:8]) or "nothing",
    )


def _indexed_shards(folder: Path, index: Path) -> list[Path]:
    try:
        weight_map = read_json(index, max_bytes=MAX_INDEX_BYTES, max_depth=4).get("weight_map")
    except InputError as error:
        raise InputError(
            f"{index} is not a valid index of weight files ({error.wrong})",
            expected="a JSON object with a weight_map",
            got=error.got,
        ) from error
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise InputError(
            f"{index} is not a valid index of weight files",
            expected="a JSON object with a weight_map",
        )
    names = set(weight_map.values())
    # A name with a folder could point anywhere on the disk.
    invalid = [
        name
        for name in sorted(names)
        if Path(name).name != name or not name.endswith(".safetensors")
    ]
    if invalid or not names:
        raise InputError(
            f"{index} names files outside its folder or of another type"
            if invalid
            else f"{index} is empty",
            expected="plain names of safetensors files",
            got=repr(invalid[:3]),
        )
    missing = sorted(name for name in names if not is_file(folder / name))
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of its {len(names)} weight files",
            expected=f"all the files named in {INDEX}",
            got=f"no {', '.join(missing[:3])}",
            fix="Copy or download the checkpoint again",
        )
    return [folder / name for name in sorted(names)]


def read_headers(paths: Sequence[Path]) -> dict[str, TensorEntry]:
    """Names, types and shapes of the tensors of several safetensors files.

    Raises:
        InputError: as ``read_header``, a file is a pickle, or two hold one tensor.
    """
    entries: dict[str, TensorEntry] = {}
    for path in paths:
        refuse_pickle(path)
        for name, entry in read_header(path).items():
            if name in entries:
                raise InputError(f"tensor {name} is in two files, one is {path}")
            entries[name] = entry
    return entries
