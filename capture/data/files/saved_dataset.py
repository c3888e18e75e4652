"""Folders of ``datasets``' save_to_disk: the Arrow files of one split."""

from pathlib import Path

from capture.data.files.rows import choose_split
from evidence.errors import InputError
from evidence.storage.regular_files import is_file, is_folder, read_text
from evidence.storage.strict_json import parse_json

_MAX_STATE_BYTES = 2**20


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by save_to_disk; never raises."""
    return is_folder(path) and any(
        is_file(path / name) for name in ("state.json", "dataset_dict.json")
    )


def saved_files(path: Path) -> list[Path]:
    """The Arrow files of a saved dataset, in order.

    Raises:
        InputError: the folder holds several splits, or its description is damaged.
    """
    if not is_file(path / "state.json"):
        names = _names(path / "dataset_dict.json", "splits")
        return saved_files(choose_split(path, {name: path / name for name in names}, None))
    state = path / "state.json"
    files = [path / name for name in _names(state, "_data_files")]
    if not files:
        raise InputError(f"{state} names no files", expected="the Arrow files of the dataset")
    return files


def _names(path: Path, key: str) -> list[str]:
    value = parse_json(read_text(path, _MAX_STATE_BYTES), str(path))
    listed = value.get(key) if isinstance(value, dict) else None
    names = [
        each.get("filename") if isinstance(each, dict) else each
        for each in (listed if isinstance(listed, list) else [])
    ]
    for name in names:
        # A name with a folder in it could point anywhere.
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise InputError(
                f"{path} is damaged",
                expected=f"names of files in {key}",
                got=repr(name)[:80],
                fix="Save the dataset again with save_to_disk",
            )
    return [str(name) for name in names]
