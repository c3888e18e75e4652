"""Which files hold a checkpoint's weights, and what they say they hold.

Only safetensors is read. A pickle runs code when it is opened, so it is recognised
by its first bytes, whatever the file is called, and refused.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from capture.checkpoints.weights.safetensors_headers import TensorEntry, read_header
from evidence.errors import InputError
from evidence.storage.files import read_json
from evidence.storage.regular_files import file_kind, is_file, open_regular

ANY_SIZE = 1 << 62
MAX_INDEX_BYTES = 32 << 20
"""Bytes of an index; one of 65,536 tensors takes a quarter of them."""
PICKLE_NAMES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def is_pickle(path: Path) -> bool:
    """Whether the content of ``path`` is a pickle, plain or in a torch zip archive.

    Protocols 2 and later begin with byte 0x80 and the protocol number; torch's
    archives begin as zip files; protocols 0 and 1 are text without a signature and
    are recognised only by the file's name.
    """
    with open_regular(path, ANY_SIZE) as file:
        start = file.read(4)
    plain = len(start) >= 2 and start[0] == 0x80 and 2 <= start[1] <= 6
    return plain or start == b"PK\x03\x04"


def refuse_pickle(path: Path) -> None:
    """Stop before anything reads a pickle.

    Raises:
        InputError: ``path`` is a pickle by content, or has a pickle's name and is
            not safetensors.
    """
    if path.suffix.lower() in PICKLE_NAMES or is_pickle(path):
        raise InputError(
            f"{path} is a pickle checkpoint: opening one can run any code in it",
            expected="safetensors weights",
            got=f"a {path.suffix or 'nameless'} file",
            fix="Save the model with save_pretrained, which writes safetensors, in the "
            "environment you trust it in, and pass that folder",
        )


def list_names(folder: Path) -> list[str]:
    """Names of what lies in a folder, sorted.

    Raises:
        InputError: it may not be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read", expected="a folder", got=str(error.strerror)
        ) from error


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights of a Hugging Face folder, sorted.

    These and no others are checked, hashed, compared and loaded.

    Raises:
        InputError: there are none, one named in the index is missing, the index is
            not valid or another than ``model.safetensors``, or there are only pickles.
    """
    index, single = folder / INDEX, folder / SINGLE
    if is_file(index):
        named = _indexed(folder, index)
        if is_file(single) and named != [single]:
            raise InputError(
                f"{folder} holds weights twice",
                expected=f"{SINGLE}, or {INDEX} and the files it names",
                got=f"{SINGLE} beside {named[0].name}",
                fix="Remove those that are not the model's",
            )
        return named
    if is_file(single):
        return [single]
    names = list_names(folder)
    for name in names:
        if Path(name).suffix.lower() in PICKLE_NAMES:
            refuse_pickle(folder / name)
    found = [each for each in (single, index) if os.path.lexists(each)]
    raise InputError(
        f"{folder} holds no weights",
        expected=f"{SINGLE}, or {INDEX} with the files it names",
        got=f"{file_kind(found[0])} of the name {found[0].name}"
        if found
        else ", ".join(names[:8]) or "nothing",
    )


def _indexed(folder: Path, index: Path) -> list[Path]:
    try:
        placed = read_json(index, max_bytes=MAX_INDEX_BYTES, max_depth=4).get(
            "weight_map"
        )
    except InputError as error:
        raise InputError(
            f"{index} is not a valid index of weight files ({error.wrong})",
            expected="a JSON object with a weight_map",
            got=error.got,
        ) from error
    if not isinstance(placed, dict) or not all(
        isinstance(name, str) for name in placed.values()
    ):
        raise InputError(
            f"{index} is not a valid index of weight files",
            expected="a JSON object with a weight_map",
        )
    names = set(placed.values())
    # A name with a folder in it could point anywhere on the disk.
    strange = [
        name
        for name in sorted(names)
        if Path(name).name != name or not name.endswith(".safetensors")
    ]
    if strange or not names:
        raise InputError(
            f"{index} names files outside its folder or of another kind"
            if strange
            else f"{index} is empty",
            expected="plain names of safetensors files",
            got=repr(strange[:3]),
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
    found: dict[str, TensorEntry] = {}
    for path in paths:
        refuse_pickle(path)
        for name, entry in read_header(path).items():
            if name in found:
                raise InputError(f"tensor {name} is in two files, one is {path}")
            found[name] = entry
    return found
