"""Restoration and concept figures: what comes back, what it shows, what tools cost.

Models, activations and axes are kept in ``--root`` and ``--work`` and not computed
twice.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from audits.validation.error_rates import VERDICTS
from benchmarks.harness.pages import Page, results
from benchmarks.harness.results import Row, read_lines
from benchmarks.harness.runner import Run, Suite
from benchmarks.harness.zoo import zoo_options
from benchmarks.suites import concepts
from benchmarks.suites.restoration.figures import rate_rows, shown_cases, verdicts, zoo_rows
from benchmarks.suites.restoration.zoo import KINDS_ASKED, measured, models_of
from capture.checkpoints.cache import cache_root
from testbeds.zoo.build import build_zoo


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    zoo_options(parser, seeds=(12,), families=("llama", "gpt2"), kinds=KINDS_ASKED)
    add("--made", action="store_true", help="only models that are there")
    add("--others", type=Path, help="audits by the part audits of the verdict suite")
    add("--work", type=Path, default=cache_root() / "restoration")


def context(document: dict) -> dict:
    """Variables of the page."""
    models = {name: document[name] for name in ("zoo", "tuning") if name in document}
    return document | {"zoo": models, "classes": VERDICTS}


PAGE = Page("restoration", lambda: context(results("restoration")))
SUITE = Suite(
    "restoration",
    "Restoration and concept axes on the zoo; autoencoders and concept vectors.",
    result="restoration",
    pages=(PAGE,),
    options=_options,
    bars=True,
)


@SUITE.part()
def zoo(run: Run) -> Iterator[Row]:
    """Both axes on held-out models, and what they do to verdicts."""
    yield from _axes(run, "held-out")


@SUITE.part(default=False)
def tuning(run: Run) -> Iterator[Row]:
    """The same on tuning models."""
    yield from _axes(run, "tuning")


for name, measure in (
    ("autoencoder", concepts.autoencoder),
    ("overhead", concepts.overhead),
    ("vectors", concepts.vectors),
):
    SUITE.part(name)(measure)


def _axes(run: Run, which: str) -> Iterator[Row]:
    """The axes on models of the zoo that are there, or are made."""
    args = run.args
    if not args.made:
        build_zoo(args.root, seeds=args.seeds, families=args.families, only=args.kinds)
    models = models_of(args.root, args.kinds, args.seeds)
    cases = list(measured(models, args.root, args.work / run.part))
    what = f"{which} bios, seeds {','.join(map(str, args.seeds))}"
    yield from zoo_rows(cases, what)
    yield from rate_rows(cases, what)
    others = read_lines(args.others) if args.others else []
    run.payload[run.part] = {"cases": shown_cases(cases), "verdicts": verdicts(cases, others)}
