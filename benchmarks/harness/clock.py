"""The clock of a benchmark, and the peak of the machine it runs on."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Clock:
    """One clock for both sides.

    Own CPU time on one thread; wall time on more, and where ours runs on a GPU: the
    clock then waits for what was queued there.

    Attributes:
        threads: Of both sides.
        repeats: Of each measurement.
        device: Where ours runs.
        peaks: Operations a second of ``torch.matmul`` by type.
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

    def times(self, work: Callable[[], object], repeats: int | None = None) -> list[float]:
        """Seconds of each repeat; on a GPU after one that loads its libraries."""
        found = []
        if self.device != "cpu":
            work()
        for _ in range(self.repeats if repeats is None else repeats):
            start = self.now()
            work()
            found.append(self.now() - start)
        return found

    def measured(
        self, work: Callable[[], Any], repeats: int | None = None
    ) -> tuple[list[float], Any]:
        """Seconds of each repeat, and what the last one gave."""
        kept = []

        def keep() -> None:
            kept[:] = [work()]

        seconds = self.times(keep, repeats)
        return seconds, kept[0]


def matmul_peak(dtype: torch.dtype, clock: Clock) -> float:
    """Best floating-point operations a second of a large ``torch.matmul``."""
    n = 1500 if clock.device == "cpu" else 8192
    a = torch.randn(n, n, dtype=dtype, device=clock.device)
    out = torch.empty_like(a)
    return 2 * n**3 / min(clock.times(lambda: torch.mm(a, a, out=out), 5))
