"""Edge attribution against real interventions, a public implementation, and the zoo.

The peer is circuitkit 0.2.0, whose dependencies do not fit ours: unpack its wheel
somewhere and pass the folder as ``--peer``; only its edge attribution is loaded, from
there. Models of the zoo are kept in ``--root`` and not made twice.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.harness.pages import Page, results
from benchmarks.harness.results import Row
from benchmarks.harness.runner import Run, Suite, by_part
from benchmarks.harness.zoo import zoo_options
from benchmarks.suites import quantization
from benchmarks.suites.circuits import edges, zoo


def _options(parser: argparse.ArgumentParser) -> None:
    zoo_options(parser, seeds=(10,), families=("llama", "gpt2"))
    parser.add_argument("--peer", type=Path, help="folder of the unpacked circuitkit wheel")


def _keep(run: Run, suite: Suite, rows: list[Row], stamps: dict) -> dict[str, Any]:
    """The rows by part, and which models they speak of; a part left out keeps its rows."""
    if not rows:
        return run.document
    models = {"seeds": run.args.seeds, "families": run.args.families}
    return by_part(run, suite, rows, stamps) | models


PAGE = Page("circuits", lambda: results("circuits"))
SUITE = Suite(
    "circuits",
    "Edge attribution against cutting edges and circuitkit; circuit axis and depth on the zoo.",
    result="circuits",
    pages=(PAGE,),
    options=_options,
    threads=1,
    keep=_keep,
)
for measure in (
    *(edges.effects, edges.sums, edges.known, edges.cost, edges.peer),
    *(zoo.audits, zoo.depth, zoo.ablation, quantization.bins),
):
    SUITE.part()(measure)
