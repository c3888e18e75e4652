"""Output folders: whose work lies in one, and what of it may be deleted."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from evidence.errors import InputError
from evidence.files import disk_errors, read_json
from evidence.removal import delete_ours, refuse_foreign
from evidence.runs import LOCK
from evidence.scratch import NAME

WORK, MARK = "work", "work/fingerprint.json"
RESULT_BYTES = 256 << 20
# Every file that an audit or experiment writes into its work folder.
WORK_FILES = re.compile(
    r"fingerprint\.json|planted\.safetensors|stages/[\w.+-]+\.json"
    r"|activations/[0-9a-f]{64}/([\w.]+/)?(zarr\.json|c(/\d+)+)"
    r"|saes/[0-9a-f]{32}(\.part)?/[\w.]+"
)


@dataclass(frozen=True)
class Kind:
    """What a command writes into its output folder.

    Attributes:
        name: In errors, and in the mark of the folder; begins with a vowel.
        results: Files beside the work folder; the first is its JSON document.
        keys: By which that document is known.
    """

    name: str
    results: tuple[str, ...]
    keys: frozenset[str]


AUDIT = Kind(
    "audit",
    ("audit.json", "report.html"),
    frozenset({"schema_version", "verdict", "manifest"}),
)
EXPERIMENT = Kind(
    "experiment",
    ("pga.json", "report.html"),
    frozenset({"schema_version", "claims", "interventions"}),
)


def look(root: Path, kind: Kind = AUDIT) -> str | None:
    """Whether a run of this kind may write into ``root``, without touching it.

    Returns:
        The digest of what lies there, empty where it cannot be known any more; None
        where nothing does.

    Raises:
        InputError: it is a file, its work folder is a link, or it holds what is not
            this kind's.
    """
    with disk_errors(root):
        if (root.is_symlink() or root.exists()) and not root.is_dir():
            raise InputError(
                f"{root} is a file", expected=f"a folder to write the {kind.name} into"
            )
        if (root / WORK).is_symlink():
            raise InputError(
                f"{root / WORK} is a link, and links are not followed",
                fix="choose another --out",
            )
        found = _mark(root)
        if found is not None:
            if found["kind"] == kind.name:
                return found["sha256"]
            raise InputError(
                f"{root} holds the work of another command",
                expected="an empty or new folder",
                fix="choose another --out",
            )
        if _written(root, kind) or _lost_mark(root, kind):
            return ""
        if not root.exists() or _only_leftovers(root):
            return None
    raise InputError(
        f"{root} holds files that are not an {kind.name}'s",
        expected="an empty or new folder",
        fix="choose another --out",
    )


def clear(root: Path, kind: Kind) -> None:
    """Remove what an earlier run left, the results first: they must not outlive it."""
    with disk_errors(root):
        if (root / WORK).exists():
            refuse_foreign(root / WORK, WORK_FILES)
        for name in kind.results:
            (root / name).unlink(missing_ok=True)
        if (root / WORK).exists():
            delete_ours(root / WORK, WORK_FILES)


def _mark(root: Path) -> dict[str, str] | None:
    """Kind and digest of what lies in ``root``; None where no mark of ours says it."""
    try:
        found = read_json(root / MARK)
    except InputError:
        return None
    if not isinstance(found.get("sha256"), str) or not isinstance(
        found.get("inputs"), dict
    ):
        return None
    kind = found.get(
        "kind", EXPERIMENT.name if "pga" in found["inputs"] else AUDIT.name
    )
    return {"kind": kind, "sha256": found["sha256"]}


def _written(root: Path, kind: Kind) -> bool:
    """Whether a finished result of ours is there, though its work folder is gone."""
    try:
        found = read_json(root / kind.results[0], limit=RESULT_BYTES)
    except InputError:
        return False
    return kind.keys <= found.keys()


def _lost_mark(root: Path, kind: Kind) -> bool:
    """Whether our work is there under a mark that cannot be read any more."""
    if not (root / MARK).is_file() or any(
        (root / each).exists() for each in kind.results
    ):
        return False
    try:
        refuse_foreign(root / WORK, WORK_FILES)
    except InputError:
        return False
    return True


def _only_leftovers(root: Path) -> bool:
    """Whether there is nothing but what a run leaves that is killed as it begins."""
    for place, folders, names in os.walk(root):
        if any(Path(place, each).is_symlink() for each in [*folders, *names]):
            return False
        folders[:] = [each for each in folders if not NAME.fullmatch(each)]
        if Path(place) == root and set(folders) - {WORK}:
            return False
        if not all(NAME.fullmatch(name) or name == LOCK for name in names):
            return False
    return True
