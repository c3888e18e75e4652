"""Deletion of folders that contain only our own files."""

import os
import re
from pathlib import Path

from evidence.errors import InputError
from evidence.storage.files import disk_errors
from evidence.storage.scratch import SCRATCH_NAME, remove_folder

# Files of a model folder, as transformers names them, and our own notes.
MODEL_FILES = re.compile(
    r"(card|gold|config|generation_config|preprocessor_config|processor_config"
    r"|model\.safetensors\.index|tokenizer|tokenizer_config|special_tokens_map"
    r"|added_tokens|vocab)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|merges\.txt|tokenizer\.model"
    r"|chat_template\.jinja"
)


def delete_owned_folder(folder: Path, owned: re.Pattern[str]) -> None:
    """Delete a folder atomically if all its files are our own.

    Args:
        owned: Pattern that the relative POSIX path of every file must match.

    Raises:
        InputError: it is a link or not a folder, or contains a link or a foreign file (nothing
            was deleted); or the system refuses.
    """
    check_owned(folder, owned)
    with disk_errors(folder):
        remove_folder(folder)


def check_owned(folder: Path, owned: re.Pattern[str]) -> None:
    """Check whether ``delete_owned_folder`` would delete ``folder``.

    Raises:
        InputError: as ``delete_owned_folder``.
    """
    foreign = _find_foreign(folder, owned)
    if foreign is not None:
        raise InputError(
            f"{folder} would have to be deleted, but {foreign}",
            fix="Move it away, or choose another folder",
        )


def _find_foreign(folder: Path, owned: re.Pattern[str]) -> str | None:
    """A description of something in ``folder`` that must not be deleted, or None."""
    if folder.is_symlink() or not folder.is_dir():
        return f"{folder.name} is a link or a file, not a folder"
    for parent, folders, names in os.walk(folder):
        # Scratch folders of interrupted runs may be deleted.
        folders[:] = [
            subfolder for subfolder in sorted(folders) if not SCRATCH_NAME.fullmatch(subfolder)
        ]
        for name in [*folders, *sorted(names)]:
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                return f"{relative} in it is a link"
            if name in folders or SCRATCH_NAME.fullmatch(name):
                continue
            if not owned.fullmatch(relative):
                return f"{relative} in it was not written by exhume"
    return None
