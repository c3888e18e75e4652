"""Every speed claim about probes: a suite of pairs, ours and a named peer.

Both sides have the same threads and clock; results are checked for agreement with the
true optimum before their times are compared.
"""

import argparse
from collections.abc import Iterator

from benchmarks.harness.clock import matmul_peak
from benchmarks.harness.pages import DOCS, Page, results
from benchmarks.harness.plots import draw_costs
from benchmarks.harness.results import Row, at_least, row
from benchmarks.harness.runner import Run, Suite
from benchmarks.suites import capture, closed_forms, logistic

FILES = {"cpu": "kernels", "cuda": "kernels-cuda"}
SPEED = ("concept vectors", "SmolLM2 resid", "encode and decode")
"""Figures of the restoration suite that the page shows as well: what they speak of."""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="smaller samples")


def _context() -> dict:
    runs = {device: results(name) for device, name in FILES.items()}
    rows = results("restoration")["rows"]
    concepts = [row for row in rows if any(words in row["figure"] for words in SPEED)]
    return {"runs": runs, "concepts": concepts}


PAGE = Page(
    "performance",
    _context,
    {DOCS / "kernels.svg": lambda v, path: draw_costs(v["runs"]["cpu"]["curves"], path)},
)
SUITE = Suite(
    "probes",
    "Solvers, closed forms, CKA and capture against scikit-learn and other peers. With "
    "--device cuda ours runs on a GPU, copies to it included; scikit-learn stays on the CPU.",
    result=lambda args: FILES[args.device],
    pages=(PAGE,),
    options=_options,
    devices=tuple(FILES),
    threads=1,
    cpu_targets=True,
)


@SUITE.part("machine", always=True)
def peaks(run: Run) -> Iterator[Row]:
    """Peaks of torch.matmul on this machine."""
    for name, kind in logistic.PRECISIONS.items():
        peak = matmul_peak(kind, run.clock)
        run.clock.peaks[name] = peak
        yield row(f"torch.matmul peak, {name}", peak / 1e9, at_least(), "GFLOP/s", n=5)


for measure in (
    *(logistic.leave_one_out, logistic.within_fold, logistic.penalties),
    *(logistic.permutations, logistic.many_classes),
    *(closed_forms.discriminant, closed_forms.ridge, closed_forms.cka, logistic.growth),
):
    SUITE.part()(measure)


SUITE.part("capture", devices=("cpu",))(capture.measure)
