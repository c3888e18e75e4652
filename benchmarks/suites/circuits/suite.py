"""Edge attribution against real interventions, a public implementation, and the zoo.

Run by hand: ``make bench-circuits``. The peer is circuitkit 0.2.0, whose dependencies
do not fit ours: unpack its wheel somewhere and pass the folder as ``--peer``; only its
edge attribution is loaded, from there. Models of the zoo are kept in ``--root`` and not
made twice. A part that is not asked for keeps its earlier rows.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.harness.circuit_page import PAGE, page
from benchmarks.harness.results import Rows, commit, machine
from benchmarks.suites.circuits import edges, zoo
from benchmarks.suites.circuits.every_axis import every_axis
from capture.checkpoints.cache import cache_root

RESULT = Path(__file__).parents[2] / "results" / "circuits.json"
PARTS = {
    "effects": edges.effects,
    "sums": edges.sums,
    "known": edges.known,
    "cost": edges.cost,
    "peer": edges.peer,
    "audits": zoo.audits,
    "depth": zoo.depth,
    "ablation": every_axis,
    "bins": zoo.bins,
}


def main() -> None:
    """Run the parts asked for, write their rows and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--root", type=Path, default=cache_root() / "zoo")
    parser.add_argument("--seeds", type=int, nargs="*", default=[10])
    parser.add_argument("--families", nargs="*", default=["llama", "gpt2"])
    parser.add_argument("--peer", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="only write the page again")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    RESULT.parent.mkdir(exist_ok=True)
    for part in [] if asked.page else asked.only:
        # Written part by part: what was measured is not lost with what follows.
        rows = Rows(part=part)
        PARTS[part](rows, asked)
        if rows.rows:
            write(merged(asked, rows.rows, known(), part))
    write(known())


def known() -> dict:
    """What was measured before."""
    return (
        json.loads(RESULT.read_text(encoding="utf-8"))
        if RESULT.is_file()
        else {"rows": []}
    )


def write(document: dict) -> None:
    """The results, and the page made of them."""
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(document), encoding="utf-8")


def merged(asked: argparse.Namespace, fresh: list, before: dict, part: str) -> dict:
    """The document with one part's rows exchanged."""
    kept = [row for row in before["rows"] if row["part"] != part]
    order = list(PARTS)
    return {
        "command": "python -m benchmarks.suites.circuits.suite"
        + (f" --only {' '.join(asked.only)}" if "--only" in sys.argv else ""),
        "commit": commit(),
        "machine": machine(),
        "threads": asked.threads,
        "seeds": asked.seeds,
        "families": asked.families,
        "rows": sorted([*fresh, *kept], key=lambda row: order.index(row["part"])),
    }


if __name__ == "__main__":
    main()
