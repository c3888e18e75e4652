"""Whole audits of image classifiers whose state is known: a confusion table.

A part of the vision suite, on a digits zoo that is there already. Every audit is kept in
``--work``, so that an interrupted run goes on; audits of other models stay in the result.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from audits.run import document as result
from audits.verdict.reevaluate import reevaluate
from benchmarks.harness.results import Row, at_least, at_most, commit, merge, once, row
from benchmarks.harness.runner import Run
from benchmarks.harness.zoo import BY_CONSTRUCTION, KnownModel, audited
from evidence.results import AxisResult
from testbeds.planted import read_card

SUPPRESSED = (
    *("head_only", "logit_mask", "last_block_relabel"),
    *("late_rotation", "class_direction"),
)
RETRAINED = ("twin", "retrain_1", "retrain_2")
KINDS = (
    *(*SUPPRESSED, *RETRAINED, "twin_tuned"),
    *("untouched", "retain_tuned", "collapse", "noise", "random_init"),
)
FLOORS = ("reference", "never_taught")
LOOKED_AT = (10, 11)
"""Held-out seeds that the rule was changed after."""
REFERENCES = ("retrain_1", "retrain_2")
"""Retrains from other starting weights; none is its own reference."""


def world_of(root: Path, family: str, seed: int) -> Path | None:
    """The world of a shape and a seed, where it is there."""
    for found in sorted((root / "worlds").glob("digits-*/manifest.json")):
        manifest = json.loads(found.read_text(encoding="utf-8"))
        if (manifest["seed"], manifest["config"]["family"]) == (seed, family):
            return found.parent
    return None


def looked_into(
    args: argparse.Namespace, family: str, seed: Any, kind: str, floor: str
) -> dict[str, Any] | None:
    """One audit, made or found in ``--work``; None where model or world is not there.

    The rule is applied again to what it measured.
    """
    root, work, name = args.root, args.work, f"{family}-{seed}-{kind}"
    kept, out = work / f"{name}-{floor}.json", work / "audits"
    models = {
        each: root / "models" / f"digits-{family}-{seed}-{each}" for each in (kind, *REFERENCES)
    }
    world = world_of(root, family, seed)
    if not kept.is_file() and (world is None or not models[kind].is_dir()):
        return None
    state = read_card(models[kind])["state"]

    def make() -> dict[str, Any]:
        assert world is not None
        names = ("original", "forget_test.npz", "retain_test.npz")
        original, forget, retain = (world / each for each in names)
        references = tuple(models[each] for each in REFERENCES if each != kind)
        known = KnownModel(name, models[kind], state, original, forget, retain, references)
        start = time.perf_counter()
        done = audited(known, floor, out, fresh=True)
        seconds = round(time.perf_counter() - start, 1)
        print(name, floor, done.verdict, seconds, flush=True)
        return {"seconds": seconds, "commit": commit()}

    made, document = once(kept, make), result.read_document(out / f"{name}-{floor}")
    verdict = reevaluate(document)
    return {
        "model": models[kind].name,
        "family": family,
        "seed": seed,
        "kind": kind,
        "state": state,
        "floor": floor,
        "verdict": verdict.verdict_class,
        "why": verdict.reasons[0],
        "axes": {
            axis.name: {
                "status": axis.status,
                "readings": {
                    each.name: [round(each.statistic, 3), round(each.floor, 3)]
                    for each in axis.readings
                    if not each.name.endswith("against never-taught items")
                },
            }
            for axis in map(AxisResult.from_json, document["axes"])
        },
        "seconds": made["seconds"],
        "commit": made["commit"],
    }


def rows_of(found: Sequence[dict[str, Any]], what: str) -> Iterator[Row]:
    """Error rates by floor."""
    for floor, (name, state, verdict, goal) in product(
        FLOORS,
        (
            ("retrains called suppressed", "deleted", "suppressed", at_most(0.0)),
            ("suppressions called deleted", "suppressed", "deleted", at_most(0.0)),
            ("suppressions called suppressed", "suppressed", "suppressed", at_least()),
            ("retrains called deleted", "deleted", "deleted", at_least()),
            ("wrecks called deleted", "damaged", "deleted", at_most(0.0)),
            (
                "untouched in effect called not_unlearned",
                *("not_unlearned", "not_unlearned", at_least()),
            ),
        ),
    ):
        group = [e for e in found if e["floor"] == floor and e["state"] == state]
        if group:
            share = sum(each["verdict"] == verdict for each in group) / len(group)
            figure, n = f"{name}, floor {floor}, {what}", len(group)
            yield row(figure, share, goal, "share of models", BY_CONSTRUCTION, n)


def beside(before: list[dict[str, Any]], found: list[dict[str, Any]]) -> list:
    """Audits made now, and those made before of other models or with another floor."""
    return merge(before, found, ("model", "floor"), lambda e: (e["seed"], e["floor"]))


def measure(run: Run) -> Iterator[Row]:
    """Whole audits of models that are there, by verdict, kind and floor."""
    args, found = run.args, []
    seeds: Sequence[int] = args.seeds or [10, 11, 12]
    floors: Sequence[str] = args.floors
    kinds: Sequence[str] = args.kinds or KINDS
    families: Sequence[str] = args.families
    for seed, floor, kind, family in product(seeds, floors, kinds, families):
        kept = args.work / f"{family}-{seed}-{kind}-{floor}.json"
        if args.made and not kept.is_file():
            continue
        made = looked_into(args, family, seed, kind, floor)
        if made is not None:
            found.append(made)
    found = beside(run.document.get("audits", {"models": []})["models"], found)
    run.payload = {"commits": sorted({each["commit"] for each in found}), "models": found}
    for looked_at in (False, True):
        here = [each for each in found if (each["seed"] in LOOKED_AT) == looked_at]
        if here:
            listed = ",".join(map(str, sorted({each["seed"] for each in here})))
            note = " (looked at)" if looked_at else ""
            yield from rows_of(here, f"digits, seeds {listed}{note}, both shapes")
