"""Clocks, peaks and rows: what every benchmark here shares."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
CODE = (".", ":!benchmarks/results", ":!docs")

WORST = 1e-4
"""Largest error at which a time is worth comparing; float32 answers promise this."""


@dataclass(frozen=True)
class Clock:
    """One clock for both sides.

    Own CPU time on one thread; wall time on more, and where ours runs on a GPU: the
    clock then waits for what was queued there. ``peaks`` are operations a second of
    ``torch.matmul`` by type.
    """

    threads: int
    repeats: int = 3
    device: str = "cpu"
    peaks: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the clock counts."""
        alone = self.threads == 1 and self.device == "cpu"
        return "own CPU time" if alone else "wall time"

    def now(self) -> float:
        """Seconds on the clock."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        alone = self.name == "own CPU time"
        return time.process_time() if alone else time.perf_counter()

    def put(self, array: np.ndarray) -> torch.Tensor:
        """The array where ours computes; on a GPU the copy is part of the work."""
        return torch.from_numpy(array).to(self.device)

    def times(self, work: Callable[[], object], repeats: int | None = None) -> list:
        """Seconds of each repeat; on a GPU after one that loads its libraries."""
        found = []
        if self.device != "cpu":
            work()
        for _ in range(self.repeats if repeats is None else repeats):
            start = self.now()
            work()
            found.append(self.now() - start)
        return found


@dataclass
class Rows:
    """The results table, in the shape of DESIGN section 3.

    ``judged`` is False where the targets, which are for a CPU, mean nothing.
    """

    rows: list[dict] = field(default_factory=list)
    part: str = "machine"
    judged: bool = True

    def add(
        self,
        figure: str,
        value: float,
        target: float | None,
        sense: str,
        unit: str,
        peer: str,
        spread: float,
        n: int,
        **more: object,
    ) -> None:
        """Keep one figure and print it."""
        target = target if self.judged else None
        self.rows.append(
            {
                "part": self.part,
                "commit": commit(),
                "figure": figure,
                "value": value,
                "target": target,
                "sense": sense,
                "unit": unit,
                "peer": peer,
                "spread": spread,
                "n": n,
                **more,
            }
        )
        met = "" if target is None else f" (target {sense} {target:g})"
        print(f"{figure}: {value:.4g} {unit}{met}", flush=True)

    def ratio(
        self,
        figure: str,
        peer_seconds: list[float],
        own_seconds: list[float],
        target: float | None,
        peer: str,
        **more: object,
    ) -> float:
        """Median over median; the spread is the half range of ratios, relative."""
        error = more.get("agreement")
        if isinstance(error, float) and not error <= WORST:
            raise SystemExit(f"{figure}: off by {error:.0e}; its time means nothing")
        value = statistics.median(peer_seconds) / statistics.median(own_seconds)
        pairs = [
            a / b for a in (min(peer_seconds), max(peer_seconds)) for b in own_seconds
        ]
        spread = (max(pairs) - min(pairs)) / 2 / value
        self.add(
            figure,
            value,
            target,
            ">=",
            "x",
            peer,
            spread,
            len(own_seconds),
            own_seconds=statistics.median(own_seconds),
            peer_seconds=statistics.median(peer_seconds),
            **more,
        )
        return value


def matmul_peak(dtype: torch.dtype, clock: Clock) -> float:
    """Best floating-point operations a second of a large ``torch.matmul``."""
    n = 1500 if clock.device == "cpu" else 8192
    a = torch.randn(n, n, dtype=dtype, device=clock.device)
    out = torch.empty_like(a)
    return 2 * n**3 / min(clock.times(lambda: torch.mm(a, a, out=out), 5))


def machine() -> dict[str, object]:
    """What ran this."""
    import sklearn

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(
                line.split(":")[1].strip() for line in file if "model name" in line
            )
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

    What a benchmark writes is no code: a run of many parts changes it on its way.
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
