"""Whether the disk has room for an audit's stored activations."""

import shutil
from pathlib import Path

from evidence.errors import InputError

GIB = 1 << 30


def check_disk_space(out: Path, size: int) -> None:
    """Refuse an output folder that is a file, or without room for the activations.

    Args:
        out: Output folder; need not exist.
        size: Stored activations, in bytes; those already there count as room.

    Raises:
        InputError: there is no room.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", expected="a folder to write the audit into")
    existing = out.resolve()
    while not existing.exists():
        existing = existing.parent
    done = sum(
        path.stat().st_size for path in (out / "work" / "activations").rglob("*") if path.is_file()
    )
    free = shutil.disk_usage(existing).free + done
    if size > free:
        raise InputError(
            f"not enough disk space for the activations of this audit in {out}",
            expected=f"{size / GIB:.2f} GiB",
            got=f"{free / GIB:.2f} GiB free",
            fix="Choose another --out, a smaller profile, or fewer axes",
        )
