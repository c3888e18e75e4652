"""Output folders: who owns one, and which of its files may be deleted."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evidence.errors import InputError
from evidence.storage.files import disk_errors, read_json, write_atomic
from evidence.storage.locks import LOCK, run_lock
from evidence.storage.removal import check_owned, delete_owned_folder
from evidence.storage.scratch import SCRATCH_NAME
from evidence.typed_json import Json

WORK, MARK = "work", "work/fingerprint.json"
MAX_RESULT_BYTES = 256 << 20
OWNER_MARK = "exhume.json"
"""Marker file of a folder that belongs to one command."""
# Every file that an audit or experiment writes into its work folder.
WORK_FILES = re.compile(
    r"fingerprint\.json|planted\.safetensors|stages/[\w.+-]+\.json"
    r"|activations/[0-9a-f]{64}/([\w.]+/)?(zarr\.json|c(/\d+)+)"
    r"|saes/[0-9a-f]{32}(\.part)?/[\w.]+"
)


@dataclass(frozen=True)
class OutputKind:
    """The files that a command writes into its output folder.

    Attributes:
        name: Used in error messages and in the folder's marker; begins with a vowel.
        results: Files beside the work folder; the first is its JSON document.
        keys: Top-level keys that identify this document.
    """

    name: str
    results: tuple[str, ...]
    keys: frozenset[str]


AUDIT = OutputKind(
    "audit", ("audit.json", "report.html"), frozenset({"schema_version", "verdict", "manifest"})
)
EXPERIMENT = OutputKind(
    "experiment",
    ("pga.json", "report.html"),
    frozenset({"schema_version", "claims", "interventions"}),
)


def check_output_folder(root: Path, kind: OutputKind = AUDIT) -> str | None:
    """Check whether a run of this kind may write into ``root``; nothing is changed.

    Returns:
        The digest of the run in the folder, empty where it is unreadable; None for a free
        folder.

    Raises:
        InputError: it is a file, its work folder is a link, or it holds files of another kind.
    """
    with disk_errors(root):
        if (root.is_symlink() or root.exists()) and not root.is_dir():
            raise InputError(
                f"{root} is a file", expected=f"a folder to write the {kind.name} into"
            )
        if (root / WORK).is_symlink():
            raise InputError(
                f"{root / WORK} is a link, and links are not followed", fix="choose another --out"
            )
        mark = _mark(root)
        if mark is not None:
            if mark["kind"] == kind.name:
                return mark["sha256"]
            raise InputError(
                f"{root} holds the work of another command",
                expected="an empty or new folder",
                fix="choose another --out",
            )
        if _written(root, kind) or _lost_mark(root):
            return ""
        if not root.exists() or _only_leftovers(root):
            return None
    raise InputError(
        f"{root} holds files that are not an {kind.name}'s",
        expected="an empty or new folder",
        fix="choose another --out",
    )


def clear_outputs(root: Path, kind: OutputKind) -> None:
    """Remove the files of an earlier run, results first: they must not outlive their work."""
    with disk_errors(root):
        if (root / WORK).exists():
            check_owned(root / WORK, WORK_FILES)
        for name in kind.results:
            (root / name).unlink(missing_ok=True)
        if (root / WORK).exists():
            delete_owned_folder(root / WORK, WORK_FILES)


def _mark(root: Path) -> dict[str, str] | None:
    """Kind and digest from the marker of ``root``; None without a valid marker."""
    try:
        mark = read_json(root / MARK)
    except InputError:
        return None
    if not isinstance(mark.get("sha256"), str) or not isinstance(mark.get("inputs"), dict):
        return None
    kind = mark.get("kind", EXPERIMENT.name if "pga" in mark["inputs"] else AUDIT.name)
    return {"kind": kind, "sha256": mark["sha256"]}


def _written(root: Path, kind: OutputKind) -> bool:
    """Whether a finished result of this kind is there, though its work folder is missing."""
    try:
        document = read_json(root / kind.results[0], max_bytes=MAX_RESULT_BYTES)
    except InputError:
        return False
    return kind.keys <= document.keys()


def _lost_mark(root: Path) -> bool:
    """Whether our work is there under an unreadable marker."""
    results = {*AUDIT.results, *EXPERIMENT.results}
    if not (root / MARK).is_file() or any((root / name).exists() for name in results):
        return False
    try:
        check_owned(root / WORK, WORK_FILES)
    except InputError:
        return False
    return True


def _only_leftovers(root: Path) -> bool:
    """Whether there is nothing but what a run leaves that was killed at its start."""
    for folder, folders, names in os.walk(root):
        if any(Path(folder, name).is_symlink() for name in [*folders, *names]):
            return False
        folders[:] = [subfolder for subfolder in folders if not SCRATCH_NAME.fullmatch(subfolder)]
        if Path(folder) == root and set(folders) - {WORK}:
            return False
        if not all(SCRATCH_NAME.fullmatch(name) or name == LOCK for name in names):
            return False
    return True


@contextmanager
def hold_folder(
    root: Path,
    command: str,
    names: Sequence[str],
    settings: Mapping[str, Json],
    clear: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Hold the output folder of a command for a block, and mark it as that command's.

    Args:
        root: The folder; created if needed, and removed again if it stays empty.
        command: Name of the command.
        names: Files and folders that the command writes. One of these in a folder without the
            marker belongs to somebody else.
        settings: What a later call must share to continue there.
        clear: Removes what depends on settings; called where the marker exists, and allows
            other settings.

    Raises:
        InputError: the folder belongs to somebody else, another run or other settings; nothing
            was changed.
    """
    marker: Mapping[str, Json] = {"command": command, "settings": settings}
    fresh = clear is not None
    _own(root, marker, names, fresh)
    with run_lock(root):
        existing = _own(root, marker, names, fresh)
        if clear is not None and existing is not None:
            clear()
        if existing != marker:
            write_atomic(root / OWNER_MARK, json.dumps(marker) + "\n")
        try:
            yield
        finally:
            if set(os.listdir(root)) <= {OWNER_MARK, LOCK}:
                (root / OWNER_MARK).unlink(missing_ok=True)


def _own(
    root: Path, marker: Mapping[str, Json], names: Sequence[str], fresh: bool
) -> Mapping[str, Json] | None:
    """The marker in the folder of a command; None where it has none yet."""
    present = [name for name in names if os.path.lexists(root / name)]
    for name in present:
        if (root / name).is_symlink():
            raise InputError(
                f"{root / name} is a link, and links are not followed", fix="choose another --out"
            )
    if not os.path.lexists(root / OWNER_MARK):
        if present:
            raise InputError(
                f"{root / present[0]} was not written by exhume {marker['command']}",
                fix="move it away, or choose another --out",
            )
        return None
    existing = read_json(root / OWNER_MARK)
    if existing.get("command") != marker["command"]:
        raise InputError(
            f"{root} holds the work of another command",
            expected="an empty or new folder",
            fix="choose another --out",
        )
    if existing != marker and not fresh:
        raise InputError(
            f"{root} holds the {marker['command']} of a call with other settings",
            expected=json.dumps(marker["settings"]),
            got=json.dumps(existing.get("settings"))[:200],
            fix="choose another --out, or pass --fresh to replace it",
        )
    return existing
