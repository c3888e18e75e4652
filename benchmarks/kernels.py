"""Every speed claim about probes, in one run of ``python -m benchmarks.kernels``.

Each figure is a pair, ours and a named peer, on the same threads and clock; results
are checked for agreement with the true optimum before they are counted.
"""

import argparse
import json
import sys

import torch
from threadpoolctl import threadpool_info, threadpool_limits

from benchmarks import closed_forms, logistic, report
from benchmarks.timing import Clock, Rows, commit, machine, matmul_peak

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


def earlier() -> dict:
    """Results of earlier runs: parts not measured now stay, and say their commit."""
    try:
        return json.loads((report.RESULTS / "kernels.json").read_text())
    except FileNotFoundError:
        return {"rows": [], "curves": {}}


def main() -> None:
    """Measure the parts asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="smaller samples")
    parser.add_argument("--only", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    clock, rows = Clock(asked.threads, asked.repeats), Rows()
    curves: dict[str, list] = {}
    with threadpool_limits(asked.threads):
        pools = sorted({pool["num_threads"] for pool in threadpool_info()})
        print(f"threads: torch {torch.get_num_threads()}, pools {pools}")
        peaks = {
            name: matmul_peak(kind, clock) for name, kind in logistic.PRECISIONS.items()
        }
        for name, peak in peaks.items():
            rows.add(
                f"torch.matmul peak, {name}",
                peak / 1e9,
                None,
                ">=",
                "GFLOP/s",
                "",
                0,
                5,
            )
        for part in asked.only:
            rows.part = part
            if part == "leave_one_out":
                logistic.leave_one_out(rows, clock, peaks, asked.quick)
            elif part == "growth":
                curves = logistic.growth(rows, clock, asked.quick)
            elif part == "capture":
                from benchmarks import capture_cost

                capture_cost.measure(rows, clock, asked.quick)
            else:
                home = logistic if hasattr(logistic, part) else closed_forms
                getattr(home, part)(rows, clock, asked.quick)
    if asked.dry:
        return
    before, measured = earlier(), {row["part"] for row in rows.rows}
    kept = [row for row in before["rows"] if row["part"] not in measured]
    curves = curves or before["curves"]
    results = {
        "command": "python -m benchmarks.kernels " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": machine(),
        "threads": asked.threads,
        "rows": [*rows.rows, *kept],
        "curves": curves,
    }
    report.RESULTS.mkdir(exist_ok=True)
    text = json.dumps(results, indent=1) + "\n"
    (report.RESULTS / "kernels.json").write_text(text)
    if curves:
        report.plot(curves)
    report.write_page(results)


if __name__ == "__main__":
    main()
