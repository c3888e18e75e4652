"""Whole audits of image classifiers whose state is known: a confusion table.

Run by hand: ``python -m benchmarks.suites.vision.audits``, on a digits zoo that is
there already; ``benchmarks.suites.vision.suite`` makes one. Every audit is kept in
``--work``, so that an interrupted run goes on. The rows and the table go into the
result and the page of ``benchmarks.suites.vision.suite``, whose own figures stay as
they are, as do audits of other models.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audits.run import document as result
from audits.run.api import audit
from audits.verdict.reevaluate import reevaluate
from benchmarks.harness.results import commit
from benchmarks.harness.vision_page import RESULT, write_page
from benchmarks.suites.vision.suite import SUPPRESSED, row
from capture.checkpoints.cache import cache_root
from evidence.results import AxisResult
from evidence.storage.files import write_atomic
from testbeds.planted import read_card

KINDS = (
    *SUPPRESSED,
    *("twin", "retrain_1", "retrain_2", "twin_tuned"),
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


def audited(
    root: Path, family: str, seed: int, kind: str, floor: str, work: Path
) -> dict[str, Any] | None:
    """One audit, made or found in ``work``; None where model or world is not there.

    The rule is applied anew to what it measured.
    """
    name = f"{family}-{seed}-{kind}-{floor}"
    kept, out = work / f"{name}.json", work / "audits" / name
    models = {
        each: root / "models" / f"digits-{family}-{seed}-{each}"
        for each in (kind, *REFERENCES)
    }
    if not kept.is_file():
        world = world_of(root, family, seed)
        if world is None or not models[kind].is_dir():
            return None
        references = [models[each] for each in REFERENCES if each != kind]
        start = time.perf_counter()
        done = audit(
            world / "original",
            models[kind],
            world / "forget_test.npz",
            world / "retain_test.npz",
            out,
            reference=references if floor == "reference" else (),
            fresh=True,
        )
        seconds = round(time.perf_counter() - start, 1)
        write_atomic(kept, json.dumps({"seconds": seconds, "commit": commit()}) + "\n")
        print(name, done.verdict, seconds, flush=True)
    made, document = (
        json.loads(kept.read_text(encoding="utf-8")),
        result.read_document(out),
    )
    verdict = reevaluate(document)
    return {
        "model": f"digits-{family}-{seed}-{kind}",
        "family": family,
        "seed": seed,
        "kind": kind,
        "state": read_card(models[kind])["state"],
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
            for axis in map(AxisResult.from_dict, document["axes"])
        },
        "seconds": made["seconds"],
        "commit": made["commit"],
    }


def rows_of(found: Sequence[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """Error rates by floor."""
    rows = []
    truth = "state known by construction"
    for floor in FLOORS:
        here = [each for each in found if each["floor"] == floor]
        for name, state, verdict, target, sense in (
            ("retrains called suppressed", "deleted", "suppressed", 0.0, "<="),
            ("suppressions called deleted", "suppressed", "deleted", 0.0, "<="),
            ("suppressions called suppressed", "suppressed", "suppressed", None, ">="),
            ("retrains called deleted", "deleted", "deleted", None, ">="),
            ("wrecks called deleted", "damaged", "deleted", 0.0, "<="),
            (
                "untouched in effect called not_unlearned",
                "not_unlearned",
                "not_unlearned",
                None,
                ">=",
            ),
        ):
            group = [each for each in here if each["state"] == state]
            if group:
                share = sum(each["verdict"] == verdict for each in group) / len(group)
                figure = f"{name}, floor {floor}, {what}"
                rows.append(
                    row(
                        figure,
                        share,
                        target,
                        sense,
                        "share of models",
                        truth,
                        len(group),
                    )
                )
    return rows


def beside(before: list[dict[str, Any]], found: list[dict[str, Any]]) -> list:
    """Audits made now, and those made before of other models or with another floor."""
    new = {(each["model"], each["floor"]) for each in found}
    kept = [each for each in before if (each["model"], each["floor"]) not in new]
    return sorted([*kept, *found], key=lambda each: (each["seed"], each["floor"]))


def main() -> None:
    """Audit what is there, and put rows and table beside those of restoration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="10,11,12")
    parser.add_argument("--families", default="cnn,vit")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--floors", default=",".join(FLOORS))
    parser.add_argument("--root", type=Path, default=cache_root() / "zoo")
    parser.add_argument("--work", type=Path, default=cache_root() / "vision-audits")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument(
        "--kept", action="store_true", help="only audits that were made already"
    )
    given = parser.parse_args()
    found = []
    for seed in map(int, given.seeds.split(",")):
        for floor in given.floors.split(","):
            for kind in given.kinds.split(","):
                for family in given.families.split(","):
                    kept = given.work / f"{family}-{seed}-{kind}-{floor}.json"
                    if given.kept and not kept.is_file():
                        continue
                    made = audited(given.root, family, seed, kind, floor, given.work)
                    if made is not None:
                        found.append(made)
    document = json.loads(given.result.read_text(encoding="utf-8"))
    before = document.get("audits", {"models": [], "command": ""})
    found = beside(before["models"], found)
    command = (
        "python -m benchmarks.suites.vision.audits "
        + f"--seeds {given.seeds} --families {given.families}"
        + (" --kept" if given.kept else "")
    )
    rows = []
    for looked_at in (False, True):
        here = [each for each in found if (each["seed"] in LOOKED_AT) == looked_at]
        if here:
            seeds = ",".join(map(str, sorted({each["seed"] for each in here})))
            note = " (looked at)" if looked_at else ""
            rows += rows_of(here, f"digits, seeds {seeds}{note}, both shapes")
    document["audits"] = {
        "command": "; ".join(each for each in (before["command"], command) if each),
        "commits": sorted({each["commit"] for each in found}),
        "rows": rows,
        "models": found,
    }
    given.result.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if given.result == RESULT:
        write_page(document)


if __name__ == "__main__":
    main()
