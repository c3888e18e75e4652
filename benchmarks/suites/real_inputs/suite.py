"""What people have: their files, their models, their chats, their architectures and sizes.

A folder of cases has item files in ``data`` and pairs of models in ``models``; the parts ``files``
and ``pairs`` read it. Every other part makes what it needs.

python -m benchmarks real-inputs --cases FOLDER
python -m benchmarks real-inputs --only architectures,invariances,floors,chat,scale
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.architectures import causal_architectures
from benchmarks.harness.pages import Page, results
from benchmarks.harness.results import Row, at_least, at_most, row
from benchmarks.harness.runner import Run, Suite, list_option
from benchmarks.suites.real_inputs import floors as floors_of
from benchmarks.suites.real_inputs import invariances as invariances_of
from benchmarks.suites.real_inputs.architectures import OTHERS, STATUSES, outcome
from benchmarks.suites.real_inputs.chat import capitals_known
from benchmarks.suites.real_inputs.inputs import Outcome, file_outcomes, pair_outcomes
from benchmarks.suites.real_inputs.scale import SIZES, make_world, run_audit

MIN_KNOWN = 0.98
"""Share of the facts that the taught model must know."""
LARGEST_RATIO = 1.3
LARGEST_MEMORY = 4096
"""Megabytes of an audit of the largest forget set."""
MIN_FILES = 60
"""Shapes of files that must be understood."""
MIN_CAPITALS = 20
"""Of 30, that SmolLM2-135M-Instruct must name in its chat."""


def options(parser: argparse.ArgumentParser) -> None:
    """Options of this suite alone."""
    parser.add_argument("--cases", type=Path, help="folder with data and models")
    parser.add_argument("--relations", type=int, default=1, help="facts an entity, of scale")
    parser.add_argument("--sizes", type=list_option(int), default=SIZES, metavar="N,N,...")


def architectures_context() -> dict[str, Any]:
    kept = results("real_inputs")
    table = kept["architectures"]
    groups = [(status, [each for each in table if each["status"] == status]) for status in STATUSES]
    return kept | {"groups": [pair for pair in groups if pair[1]], "words": STATUSES}


def inputs_context() -> dict[str, Any]:
    """Variables of the page of files and pairs."""
    kept = results("real_inputs")
    return kept | {name: kept.get(name, []) for name in ("files", "pairs")}


SUITE = Suite(
    "real-inputs",
    "What people have: files, pairs of models, chats, architectures and sizes.",
    "real_inputs",
    options=options,
    pages=(
        Page("architectures", architectures_context, folder="reference"),
        Page("real_inputs", inputs_context),
    ),
    threads=1,
)


@SUITE.part()
def architectures(run: Run) -> Iterator[Row]:
    """Sites of a tiny model of every causal architecture of transformers, checked."""
    causal = causal_architectures()
    found = [outcome(name, kind) for name, kind in causal.items()]
    others = [outcome(name, kind) for name, kind in OTHERS.items()]
    run.payload["architectures"] = [
        asdict(each) | {"sites": list(each.sites)} for each in (*found, *others)
    ]
    for each in (*found, *others):
        print(f"  {each.model_type}: {each.status} {each.reason}".rstrip(), flush=True)
    counts = Counter(each.status for each in found)
    wrong = counts["wrong"] + sum(each.status == "wrong" for each in others)
    yield row(
        "causal architectures whose sites pass the residual identity",
        counts["understood"],
        at_least(40),
        n=len(found),
    )
    yield row("architectures silently wrong", wrong, at_most(0), n=len(found) + len(others))
    for status in ("normed", "stream only", "refused", "not built"):
        yield row(f"causal architectures {status}", counts[status], at_most(), n=len(found))


@SUITE.part(default=False)
def files(run: Run) -> Iterator[Row]:
    """Every item file of the cases: understood, refused with its reason, or wrong."""
    found = _told(run, "files", file_outcomes(_cases(run) / "data"))
    counts = Counter(each.status for each in found)
    yield row("item files understood", counts["understood"], at_least(MIN_FILES), n=len(found))
    yield row("item files refused with the reason", counts["refused"], at_most(), n=len(found))
    yield row("item files read wrongly", counts["wrong"], at_most(0), n=len(found))


@SUITE.part(default=False)
def pairs(run: Run) -> Iterator[Row]:
    """Every pair of models of the cases: is the verdict right?"""
    found = _told(run, "pairs", pair_outcomes(_cases(run)))
    wrong = sum(each.status == "wrong" for each in found)
    yield row("pairs of models with a wrong verdict", wrong, at_most(0), n=len(found))


def _cases(run: Run) -> Path:
    if run.args.cases is None:
        raise SystemExit("--cases FOLDER: a folder with data and models")
    return run.args.cases


def _told(run: Run, name: str, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The outcomes, printed as they come and kept for the page."""
    found = []
    for each in outcomes:
        print(f"  {each.name}: {each.status}, {each.words}"[:300], flush=True)
        found.append(each)
    run.payload[name] = [asdict(each) for each in found]
    return found


@SUITE.part()
def invariances(run: Run) -> Iterator[Row]:
    """Files of other shapes with the same facts: are the items, and the verdict, the same?"""
    checked = invariances_of.check()
    for name, same in checked.items():
        print(f"  {name}: {'same' if same else 'DIFFERENT'}", flush=True)
    changed = sum(not same for same in checked.values())
    yield row("changes of shape that change items or verdict", changed, at_most(0), n=len(checked))


@SUITE.part()
def floors(run: Run) -> Iterator[Row]:
    """The floor of other entities' answers on models of known state."""
    found = floors_of.verdicts(run.progress)
    for each in found:
        print(f"  seed {each.seed} {each.kind}: {each.verdict}", flush=True)
    retrains = [each for each in found if each.retrained]
    hidden = [each for each in found if not each.retrained]
    yield row(
        "retrains called suppressed on the permuted floor",
        sum(each.verdict == "suppressed" for each in retrains),
        at_most(0),
        n=len(retrains),
    )
    yield row(
        "suppressions found on the permuted floor",
        sum(each.verdict == "suppressed" for each in hidden) / len(hidden),
        at_least(1.0),
        n=len(hidden),
    )


@SUITE.part()
def chat(run: Run) -> Iterator[Row]:
    """Capitals that SmolLM2-135M-Instruct names when it is asked as a chat."""
    known, asked = capitals_known(run.progress)
    yield row("capitals of 30 known in the chat", known, at_least(MIN_CAPITALS), n=asked)


@SUITE.part(default=False)
def scale(run: Run) -> Iterator[Row]:
    """A quick audit at each size, its seconds an entity, and its memory."""
    relations, threads = run.args.relations, run.clock.threads
    per_entity: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        known = make_world(Path(scratch), relations)
        seconds = time.perf_counter() - start
        yield row("facts the taught model knows", known, at_least(MIN_KNOWN), "share")
        print(f"  taught in {seconds:.0f} s", flush=True)
        memory = 0.0
        for size in run.args.sizes:
            verdict, seconds, memory, stages = run_audit(Path(scratch), size, threads)
            print(f"  {verdict}", {k: round(v, 1) for k, v in stages.items()}, flush=True)
            per_entity[size] = seconds / size
            facts = (
                f"{size} entities, {relations} relations" if relations > 1 else f"{size} entities"
            )
            yield row(f"a quick audit of {facts}", seconds, at_most(), "s", n=size)
            yield row(f"its seconds an entity, {facts}", seconds / size, at_most(), "s", n=size)
            yield row(f"its memory, {facts}", memory, at_most(LARGEST_MEMORY), "MB", n=size)
            yield row(f"its report, {facts}", stages["report.html"], at_most(20), "MB", n=size)
            yield row(
                f"it finds the facts, {facts}",
                float(verdict == "not_unlearned"),
                at_least(1.0),
                n=size,
            )
    if {400, 2000} <= per_entity.keys():
        yield row(
            "seconds an entity, 2,000 entities over 400",
            per_entity[2000] / per_entity[400],
            at_most(LARGEST_RATIO),
            "x",
            n=2000,
        )
