"""Deleting what we made, and nothing else."""

import os
import re
from pathlib import Path

from evidence.errors import InputError
from evidence.storage.files import disk_errors
from evidence.storage.scratch import SCRATCH_NAME, remove_folder

# Files of a model folder, in the names that transformers gives them, and our notes.
MODEL_FILES = re.compile(
    r"(card|gold|config|generation_config|preprocessor_config|processor_config"
    r"|model\.safetensors\.index|tokenizer|tokenizer_config|special_tokens_map"
    r"|added_tokens|vocab)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|merges\.txt|tokenizer\.model"
    r"|chat_template\.jinja"
)


def delete_owned_folder(folder: Path, owned: re.Pattern[str]) -> None:
    """Delete a folder in which there is nothing but what we put there.

    Args:
        folder: Deleted whole, so that an interruption leaves all of it or nothing.
        owned: What the path of every file in it must match, relative and with slashes.

    Raises:
        InputError: it is a link or no folder, or holds a link or a file that is not
            ours; nothing was deleted. Or the system does not let us.
    """
    check_owned(folder, owned)
    with disk_errors(folder):
        remove_folder(folder)


def check_owned(folder: Path, owned: re.Pattern[str]) -> None:
    """Look whether ``delete_owned_folder`` would delete ``folder``.

    Raises:
        InputError: as ``delete_owned_folder``.
    """
    foreign = _foreign(folder, owned)
    if foreign is not None:
        raise InputError(
            f"{folder} would have to be deleted, but {foreign}",
            fix="Move it away, or choose another folder",
        )


def _foreign(folder: Path, ours: re.Pattern[str]) -> str | None:
    """What in ``folder`` may not be deleted, in words."""
    if folder.is_symlink() or not folder.is_dir():
        return f"{folder.name} is no folder but a link or a file"
    for place, folders, names in os.walk(folder):
        # What an interrupted run left half-made goes with the folder.
        folders[:] = [
            each for each in sorted(folders) if not SCRATCH_NAME.fullmatch(each)
        ]
        for name in [*folders, *sorted(names)]:
            path = Path(place, name)
            shown = path.relative_to(folder).as_posix()
            if path.is_symlink():
                return f"{shown} in it is a link"
            if name in folders or SCRATCH_NAME.fullmatch(name):
                continue
            if not ours.fullmatch(shown):
                return f"{shown} in it was not written by exhume"
    return None
