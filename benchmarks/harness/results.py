"""Rows of results, the files that keep them, and the commit and machine they name."""

import json
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from evidence.storage.files import write_atomic

ROOT = Path(__file__).parents[2]
CODE = (".", ":!benchmarks/results", ":!docs")

MAX_ERROR = 1e-4
"""Largest error at which a time is worth comparing; float32 answers promise this."""

Row = dict[str, Any]


class Goal(NamedTuple):
    """Which way is better, and the target, if there is one."""

    sense: str
    target: float | None = None


def at_least(target: float | None = None) -> Goal:
    """More is better."""
    return Goal(">=", target)


def at_most(target: float | None = None) -> Goal:
    """Less is better."""
    return Goal("<=", target)


def row(
    figure: str,
    value: Any,
    goal: Goal,
    unit: str = "",
    peer: str = "",
    n: int = 1,
    spread: Any = None,
    **more: Any,
) -> Row:
    """One figure of a result.

    Args:
        figure: What is measured.
        value: The figure.
        goal: Its target.
        unit: Of the value.
        peer: What it is held against.
        n: Of how many.
        spread: Half the range, where it is known.
        more: Kept beside it.
    """
    fixed = {"figure": figure, "value": value, "target": goal.target}
    fixed |= {"sense": goal.sense, "unit": unit, "peer": peer, "spread": spread, "n": n}
    return fixed | more


def ratio(
    figure: str,
    peer_seconds: Sequence[float],
    own_seconds: Sequence[float],
    target: float | None,
    peer: str,
    **more: Any,
) -> Row:
    """The peer's median time over ours; the spread is the half range of ratios, relative.

    Raises:
        SystemExit: ``agreement``, the largest error, is too large to compare times.
    """
    error = more.get("agreement")
    if isinstance(error, float) and not error <= MAX_ERROR:
        raise SystemExit(f"{figure}: off by {error:.0e}; its time means nothing")
    own, other = statistics.median(own_seconds), statistics.median(peer_seconds)
    ends = (min(peer_seconds), max(peer_seconds))
    pairs = [a / b for a in ends for b in own_seconds]
    spread = (max(pairs) - min(pairs)) / 2 / (other / own)
    more = {"own_seconds": own, "peer_seconds": other} | more
    n = len(own_seconds)
    return row(figure, other / own, at_least(target), "x", peer, n, spread, **more)


def roc_auc(yes: Sequence[float], no: Sequence[float]) -> float | None:
    """Area under the ROC curve; None without values on either side."""
    from sklearn.metrics import roc_auc_score

    if not yes or not no:
        return None
    return float(roc_auc_score([1] * len(yes) + [0] * len(no), [*yes, *no]))


def merge(
    before: Iterable[Row],
    fresh: Iterable[Row],
    by: Sequence[str],
    order: Callable[[Row], Any] | None = None,
) -> list[Row]:
    """Fresh records, and the earlier ones of which none is fresh.

    Args:
        before: Earlier records.
        fresh: Records measured now.
        by: Fields that say which record takes the place of which.
        order: Key to sort all of them by; fresh ones come first where it is left out.
    """

    def key(record: Row) -> tuple:
        return tuple(record.get(name) for name in by)

    fresh = list(fresh)
    new = {key(record) for record in fresh}
    found = [*fresh, *(record for record in before if key(record) not in new)]
    return found if order is None else sorted(found, key=order)


def read(path: Path) -> dict[str, Any]:
    """A result as it was kept; empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, document: dict[str, Any]) -> None:
    """Keep a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(document, indent=1) + "\n")


def read_lines(*paths: Path) -> list[dict[str, Any]]:
    """Records of files of JSON Lines."""
    return [
        json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()
    ]


def once(path: Path, compute: Callable[[], Any]) -> Any:
    """What is kept in ``path``; computed and kept where it is not there yet."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(compute()) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def machine() -> dict[str, Any]:
    """Processor and versions of what ran this."""
    import sklearn

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        pass
    return {
        "cpu": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "numba": version("numba") if find_spec("numba") else None,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def commit() -> str:
    """The commit measured, marked where code differs from it.

    Results and pages are no code: a run of many parts changes them on its way.
    """
    names = ("git", "describe", "--always")
    changes = ("git", "status", "--porcelain", "--untracked-files=no", "--", *CODE)
    try:
        name, changed = (
            subprocess.run(
                each, capture_output=True, encoding="utf-8", check=True, cwd=ROOT
            ).stdout.strip()
            for each in (names, changes)
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}-dirty" if changed else name
