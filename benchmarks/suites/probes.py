"""Every speed claim about probes, in one run of ``python -m benchmarks.suites.probes``.

Each figure is a pair, ours and a named peer, on the same threads and clock; results
are checked for agreement with the true optimum before they are counted. With
``--device cuda`` ours runs on a GPU, copies to it included, and the peer where it can:
scikit-learn stays on the CPU.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from threadpoolctl import threadpool_info, threadpool_limits

from benchmarks.harness import performance_page
from benchmarks.harness.results import Clock, Rows, commit, machine, matmul_peak
from benchmarks.suites import closed_forms, logistic

PARTS = (
    "leave_one_out",
    "within_fold",
    "penalties",
    "permutations",
    "many_classes",
    "discriminant",
    "ridge",
    "cka",
    "growth",
    "capture",
)


def measure(part: str, rows: Rows, clock: Clock, quick: bool) -> dict[str, list]:
    """Add the rows of one part; its curves, if it has any."""
    rows.part = part
    if part == "growth":
        return logistic.growth(rows, clock, quick)
    if part == "capture":
        from benchmarks.suites import capture

        capture.measure(rows, clock, quick)
    else:
        home = logistic if hasattr(logistic, part) else closed_forms
        getattr(home, part)(rows, clock, quick)
    return {}


def write(file: Path, rows: Rows, curves: dict[str, list], clock: Clock) -> None:
    """Rows measured now, and of earlier runs the parts that were not."""
    before: dict = {"rows": [], "curves": {}}
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
    fresh = {row["part"] for row in rows.rows}
    kept = [row for row in before["rows"] if row["part"] not in fresh]
    order = ("machine", *PARTS)
    results = {
        "command": "python -m benchmarks.suites.probes " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": machine(),
        "device": clock.device,
        "clock": clock.name,
        "threads": clock.threads,
        "rows": sorted([*rows.rows, *kept], key=lambda row: order.index(row["part"])),
        "curves": curves or before["curves"],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if file in performance_page.FILES.values():
        performance_page.write_page()


def main() -> None:
    """Measure the parts asked for and write the results, part by part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="smaller samples")
    parser.add_argument("--only", nargs="*", choices=PARTS)
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    parser.add_argument(
        "--device", default="cpu", choices=tuple(performance_page.FILES)
    )
    parser.add_argument("--result", type=Path, help="where to write the results")
    asked = parser.parse_args()
    here = asked.device == "cpu"
    if not here and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and there is none here")
    parts = asked.only or [part for part in PARTS if here or part != "capture"]
    if not here and "capture" in parts:
        parser.error("capture is measured on the CPU alone")
    torch.set_num_threads(asked.threads)
    clock = Clock(asked.threads, asked.repeats, asked.device)
    rows, curves = Rows(judged=here), {}
    with threadpool_limits(asked.threads):
        pools = sorted({pool["num_threads"] for pool in threadpool_info()})
        print(f"threads: torch {torch.get_num_threads()}, pools {pools}")
        peaks = {
            name: matmul_peak(kind, clock) for name, kind in logistic.PRECISIONS.items()
        }
        for name, peak in peaks.items():
            figure = f"torch.matmul peak, {name}"
            rows.add(figure, peak / 1e9, None, ">=", "GFLOP/s", "", 0, 5)
        clock.peaks.update(peaks)
        for part in parts:
            curves |= measure(part, rows, clock, asked.quick)
            if not asked.dry:
                file = asked.result or performance_page.FILES[asked.device]
                write(file, rows, curves, clock)


if __name__ == "__main__":
    main()
