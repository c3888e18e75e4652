"""A work folder whose finished stages survive any interruption."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from evidence.axis import AxisResult
from evidence.errors import InputError
from evidence.files import disk_errors, write_atomic

# Raise when stage contents change meaning, so that old work is not mixed in.
STAGE_VERSION = "1"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)


@dataclass(frozen=True)
class Stage:
    """What a stage gave and what it cost in the run that computed it."""

    result: Any
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Workspace:
    """``OUT/work``: one JSON file a finished stage, kept until the inputs change."""

    root: Path

    @property
    def work(self) -> Path:
        """Where stages and activations lie."""
        return self.root / "work"

    @classmethod
    def open(cls, root: Path, fingerprint: dict[str, Any], fresh: bool) -> "Workspace":
        """Open or make the folder for exactly these inputs.

        Args:
            root: The audit's output folder.
            fingerprint: Everything the result depends on.
            fresh: Throw away what another audit left there.

        Raises:
            InputError: the folder holds another audit, or is a file, or holds
                files that are not an audit's.
        """
        text = canonical(fingerprint | {"stage_version": STAGE_VERSION})
        digest = hashlib.sha256(text.encode()).hexdigest()
        mark = root / "work" / "fingerprint.json"
        if root.exists() and not root.is_dir():
            raise InputError(
                f"{root} is a file", expected="a folder to write the audit into"
            )
        if root.exists() and any(root.iterdir()):
            ours = mark.exists() or (root / "audit.json").exists()
            if not ours and not _only_leftovers(root):
                raise InputError(
                    f"{root} holds files that are not an audit's",
                    expected="an empty or new folder",
                    fix="choose another --out",
                )
            same = mark.exists() and _read(mark).get("sha256") == digest
            if ours and not same and not fresh:
                raise InputError(
                    f"{root} holds another audit (other inputs, settings or version)",
                    fix="choose another --out, or pass --fresh to replace it",
                )
            if fresh or not same:
                with disk_errors(root):
                    for name in ("audit.json", "report.html"):
                        (root / name).unlink(missing_ok=True)
                    shutil.rmtree(root / "work", ignore_errors=True)
        write_atomic(mark, canonical({"sha256": digest, "inputs": fingerprint}))
        return cls(root)

    def run(self, name: str, compute: Callable[[], Any]) -> Stage:
        """The stage's saved result, or compute it and save it.

        The result always comes back through its JSON text, so that a resumed audit
        and an uninterrupted one continue from the same bytes.
        """
        path = self.work / "stages" / f"{name}.json"
        if not path.exists():
            start = perf_counter()
            result = compute()
            saved = {
                "result": result,
                "seconds": perf_counter() - start,
                "peak_memory_bytes": peak_memory(),
            }
            write_atomic(path, canonical(saved))
        return Stage(**_read(path))


@dataclass(frozen=True)
class Ledger:
    """Runs the stages of one audit and keeps what each took.

    Attributes:
        space: Where finished stages lie.
        cost: Seconds and peak memory by stage.
    """

    space: Workspace
    cost: dict[str, dict[str, float]] = field(default_factory=dict)

    def stage(self, name: str, compute: Callable[[], Any]) -> Any:
        """The stage's result, computed or found."""
        done = self.space.run(name, compute)
        self.cost[name] = {
            "seconds": done.seconds,
            "peak_memory_bytes": done.peak_memory_bytes,
        }
        return done.result

    def charged(self, axes: dict[str, AxisResult]) -> dict[str, AxisResult]:
        """The axes with what the stage of the same name took, if there is one."""
        nothing = {"seconds": 0.0, "peak_memory_bytes": 0}
        spent = {name: self.cost.get(name, nothing) for name in axes}
        return {
            name: replace(
                axis,
                seconds=spent[name]["seconds"],
                peak_memory_bytes=int(spent[name]["peak_memory_bytes"]),
            )
            for name, axis in axes.items()
        }


def axis_of(
    stage: Callable[[str, Callable[[], Any]], Any],
    name: str,
    compute: Callable[[], AxisResult],
) -> AxisResult:
    """An axis whose result is a stage's, computed or found."""
    return AxisResult.from_dict(stage(name, lambda: compute().to_dict()))


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    info = psutil.Process().memory_info()
    try:
        import resource

        # Linux counts in KiB.
        return max(info.rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    except ImportError:  # Windows has no resource module, but a peak of its own.
        return getattr(info, "peak_wset", info.rss)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not readable as JSON", fix="pass --fresh to start over"
        ) from error


def _only_leftovers(root: Path) -> bool:
    """Whether only an interrupted first write is there (hidden scratch files)."""
    entries = [path for path in root.rglob("*") if path.is_file()]
    return all(path.name.startswith(".") for path in entries)
