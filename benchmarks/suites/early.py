"""Early suppressions: are edits of what reads the question called suppressed, and nothing else?

The part ``zoo`` reads audits of models of known state, made by ``python -m benchmarks verdict
--only audits --world W --part held_out --seeds S --families F --kinds K,... --out FILE``. The other
parts make what they need.

python -m benchmarks early --only zoo time --cases FILE...
python -m benchmarks early --only smol
python -m benchmarks early --only images --root ZOO
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audits.run.api import Audit, audit
from audits.verdict.reevaluate import reevaluate
from benchmarks.harness.pages import Page, results
from benchmarks.harness.results import Row, at_least, at_most, read_lines, row
from benchmarks.harness.runner import Run, Suite
from benchmarks.harness.zoo import BY_CONSTRUCTION, zoo_options
from capture.checkpoints.open import open_checkpoint
from testbeds.known_facts.world import known_fact_items
from testbeds.planted import plant, read_card
from testbeds.worlds.smollm2 import fetch_smollm2
from testbeds.zoo.build import build_zoo
from testbeds.zoo.kinds import EARLY

STAGES = ("readers-original", "front_transplant-measured", "front_transplant-judged")
"""Stages that the front transplant added to an audit."""
# Seeds 10 and 11 of the digits were looked at before the depths of images were limited.
IMAGE_EARLY = ("patch_embedding_relabel", "first_stage_relabel")
IMAGE_RETRAINS = ("twin", "retrain_1", "twin_tuned")


@dataclass(frozen=True)
class Case:
    """One audit, for the page.

    Attributes:
        world: World of the zoo, with shape and seed.
        kind: Kind of the model.
        state: True state; None where it is graded.
        floor: Floor of the audit.
        verdict: Verdict of the audit.
        without: Verdict without the front transplant.
        front: Share of the answers given after the original's front; None where not read.
        where: Depth of that reading.
        holds: Why the state is not certain, for a graded model.
    """

    world: str
    kind: str
    state: str | None
    floor: str
    verdict: str
    without: str
    front: float | None
    where: str
    holds: str = ""


def context() -> dict[str, Any]:
    """Variables of the page."""
    kept = results("early")
    names = ("cases", "smol", "images")
    return kept | {name: kept.get(name, []) for name in names}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=Path, nargs="+", default=[], help="audits, of zoo and time")
    zoo_options(parser, seeds=(12, 13), families=("vit", "cnn"))


SUITE = Suite(
    "early",
    "Early suppressions, and what the front transplant says of them and of retrained models.",
    "early",
    options=_options,
    pages=(Page("early", context),),
    threads=1,
)


def case_of(line: dict[str, Any]) -> Case:
    """A case from one line of audits."""
    document = line["audit"]
    # A damaged model is not looked into in the quick profile.
    fronts = [each for each in document["axes"] if each["name"] == "front_transplant"]
    read = next((each["readings"][0] for each in fronts if each["readings"]), None)
    return Case(
        world=line["model"].removesuffix(f"-{line['kind']}"),
        kind=line["kind"],
        state=line["state"],
        floor=line["floor"],
        verdict=document["verdict"]["class"],
        without=reevaluate(document, without=["front_transplant"]).verdict_class,
        front=None if read is None else read["statistic"],
        where="" if read is None else read["where"],
    )


@SUITE.part(default=False)
def zoo(run: Run) -> Iterator[Row]:
    """Text models of known state: early suppressions and retrains."""
    found = [each for each in read_lines(*run.args.cases) if "failed" not in each]
    cases = [case_of(each) for each in found]
    run.payload["cases"] = [asdict(each) for each in cases]
    early = [each for each in cases if each.kind in EARLY]
    certain = [each for each in early if each.state == "suppressed"]
    graded = [each for each in early if each.state is None]
    retrains = [each for each in cases if each.state == "deleted"]
    late = [each for each in cases if each.state == "suppressed" and each.kind not in EARLY]
    yield from _verdicts("early suppressions of certain state", certain)
    yield _count("early edits of graded state called deleted", graded, "deleted", at_most(0))
    yield _count("retrains called suppressed", retrains, "suppressed", at_most(0))
    yield row(
        "retrains accepted as deleted",
        _share(retrains, "deleted"),
        at_least(65 / 70),
        "share",
        BY_CONSTRUCTION,
        len(retrains),
    )
    blind = [each.without for each in retrains]
    yield row(
        "retrains accepted as deleted without the front transplant",
        blind.count("deleted") / max(len(blind), 1),
        at_most(),
        "share",
        BY_CONSTRUCTION,
        len(blind),
    )
    if late:
        yield from _verdicts("late suppressions", late)
    blind = [each.without for each in certain]
    yield row(
        "early suppressions called suppressed without the front transplant",
        blind.count("suppressed") / max(len(blind), 1),
        at_most(),
        "share",
        BY_CONSTRUCTION,
        len(blind),
    )


@SUITE.part(default=False)
def time(run: Run) -> Iterator[Row]:
    """What the front transplant adds to a quick audit."""
    ratios = []
    for line in read_lines(*run.args.cases):
        if "failed" in line:
            continue
        seconds = {
            name: stage["seconds"] for name, stage in line["audit"]["runtime"]["stages"].items()
        }
        added = sum(seconds.get(name, 0.0) for name in STAGES)
        if not added:
            continue
        ratios.append(added / (sum(seconds.values()) - added))
    yield row(
        "extra time of a quick audit",
        float(np.median(ratios)),
        at_most(0.2),
        "share",
        "the same audit without it",
        len(ratios),
        [round(float(x), 4) for x in np.quantile(ratios, [0.05, 0.95])],
    )


@SUITE.part()
def smol(run: Run) -> Iterator[Row]:
    """SmolLM2: rows of the embedding that read forgotten names, replaced; no block changes."""
    original = fetch_smollm2()
    world = known_fact_items(open_checkpoint(original), seed=0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = plant(world, "embedding_redirect", seed=0, out=folder / "model")
        done = audit(
            original,
            model,
            world.forget,
            world.retain,
            folder / "audit",
            never_taught=world.never_taught,
            progress=run.progress,
        )
        card = read_card(model)
    run.payload["smol"] = [_described(done, card)]
    entities = len(world.forget.entities)
    found = done.verdict
    name = "SmolLM2 embedding redirect"
    yield row(f"{name}, forgotten entities", entities, at_least(40), n=entities)
    yield row(f"{name}, called suppressed", int(found == "suppressed"), at_least(1), n=1)
    yield row(f"{name}, called deleted", int(found == "deleted"), at_most(0), n=1)
    seconds = {name: each["seconds"] for name, each in done.document["runtime"]["stages"].items()}
    added = sum(seconds.get(stage, 0.0) for stage in STAGES)
    rest = sum(seconds.values()) - added
    peer = "the same audit without it"
    yield row(f"{name}, extra time of a quick audit", added / rest, at_most(0.2), "share", peer)


def _described(done: Audit, card: dict[str, Any]) -> dict[str, Any]:
    """The audit of a planted model, axis by axis."""
    return {
        "verdict": done.verdict,
        "reasons": list(done.reasons),
        "state": card["state"],
        "why": card["why"],
        "measured": card["measured"],
        "axes": [
            {
                "axis": axis.name,
                "status": axis.status,
                "reading": "" if axis.main_reading is None else repr(axis.main_reading),
            }
            for axis in done.axes.values()
        ],
    }


@SUITE.part(default=False)
def images(run: Run) -> Iterator[Row]:
    """Image classifiers whose patch embedding or first stage was edited, and retrained ones."""
    args, cases = run.args, []
    for kind in (*IMAGE_EARLY, *IMAGE_RETRAINS):
        for made in build_zoo(
            args.root, world="digits", seeds=args.seeds, families=args.families, only=[kind]
        ):
            world = made.world
            done = audit(
                world.original,
                made.model,
                world.forget_test,
                world.retain_test,
                args.root / "early-audits" / made.name,
            )
            line = {"model": made.name, "kind": kind, "state": made.state}
            cases.append(case_of(line | {"floor": "never_taught", "audit": done.document}))
            print(f"  {made.name}: {made.state} -> {done.verdict}", flush=True)
    run.payload["images"] = [asdict(each) for each in cases]
    certain = [each for each in cases if each.state == "suppressed"]
    retrains = [each for each in cases if each.state == "deleted"]
    yield from _verdicts("early suppressions of images", certain)
    yield _count("retrained image models called suppressed", retrains, "suppressed", at_most(0))


def _verdicts(name: str, cases: Sequence[Case]) -> Iterator[Row]:
    counts = Counter(each.verdict for each in cases)
    print(f"  {name}: {dict(counts)}", flush=True)
    yield _count(f"{name} called deleted", cases, "deleted", at_most(0))
    share, n = _share(cases, "suppressed"), len(cases)
    yield row(f"{name} called suppressed", share, at_least(0.9), "share", BY_CONSTRUCTION, n)


def _count(name: str, cases: Sequence[Case], verdict: str, goal: Any) -> Row:
    found = sum(each.verdict == verdict for each in cases)
    return row(name, found, goal, "n", BY_CONSTRUCTION, len(cases))


def _share(cases: Sequence[Case], verdict: str) -> float:
    return sum(each.verdict == verdict for each in cases) / max(len(cases), 1)
