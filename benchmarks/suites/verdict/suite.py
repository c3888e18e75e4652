"""How often is the verdict right? Every model of one part of the zoo is audited.

Models and audits are kept in ``--root``; the same command goes on where it was cut off.
The whole held-out part takes days, and two hours of one core a world and shape.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from audits.validation.error_page import page as drawn
from audits.validation.error_rates import VERDICTS, Case, ablation, case_of, confidences, figures
from audits.validation.trials import FLOORS, AuditPlan, describe, run_plan
from audits.verdict.calibration import STATES, shipped
from benchmarks.harness.pages import Page, groups, results
from benchmarks.harness.results import Row, read_lines
from benchmarks.harness.runner import Run, Suite, by_part, list_option
from benchmarks.harness.zoo import check_part, zoo_options
from benchmarks.suites.verdict import calibration
from evidence.calibration_metrics import reliability, risk_coverage_curve
from evidence.errors import InputError
from testbeds.zoo.build import SPLITS, split
from testbeds.zoo.kinds import KINDS

NAMES = {"bios": "verdict", "smol": "verdict_smol", "codes": "verdict_codes"}
MAKERS = {
    "bios": "make bench-verdict",
    "smol": "python -m benchmarks verdict --world smol --device cuda",
    "codes": "python -m benchmarks verdict --world codes",
}


AUDITED_ALONE = ("bios_frozen",)
"""Worlds whose audits other suites read; they have no page of rates."""


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--world", choices=(*NAMES, *AUDITED_ALONE), default="bios")
    add("--part", choices=("tuning", "held_out"), default="held_out", help="of the zoo")
    zoo_options(parser, seeds=(), families=(), kinds=())
    add("--floors", type=list_option(), default=list(FLOORS))
    add("--graded", type=list_option(), default=[], help="default: kinds of unknown state")
    add("--jobs", type=int, default=1, help="processes at once")
    add("--limit-s", type=float, default=float("inf"))
    add("--cases", type=Path, nargs="+", default=[], help="audits made already")
    add("--add", action="store_true", help="to what the result holds of other models")
    add("--out", type=Path, help="of the part audits or calibration")


def context(document: dict[str, Any]) -> dict[str, Any]:
    """Variables of the page of a world."""
    world = document["world"]
    return document | {
        "name": NAMES[world],
        "maker": MAKERS[world],
        "split_file": SPLITS[world],
        "why": split(world)["why"],
        "by_group": list(by_group(document["cases"])),
        "classes": VERDICTS,
        "floors": FLOORS,
    }


def by_group(cases: Sequence[dict]) -> Iterator[tuple[str, int, int, int, int]]:
    """By architecture, floor and world: audits, right, wrong and inconclusive ones."""
    known = [case | {"world": _world(case["model"])} for case in cases if case["state"] is not None]
    for key in ("family", "floor", "world"):
        for value, here in groups(known, key):
            right = sum(case["verdict"] == case["state"] for case in here)
            left = sum(case["verdict"] == "inconclusive" for case in here)
            yield f"{key} {value}", len(here), right, len(here) - right - left, left


def _world(model: str) -> str:
    """World of a model by its name: kind of world, shape and seed."""
    return "-".join(model.split("-")[:3])


def _keep(run: Run, suite: Suite, rows: list[Row], stamps: dict) -> dict[str, Any]:
    """The rates take the place of all earlier ones; the other parts write files of theirs."""
    if run.part != "rates":
        return run.document
    if run.args.add:
        stamps["command"] = f"{run.document['command']}; {stamps['command']}"
    run.document = {}
    return by_part(run, suite, rows, stamps)


SUITE = Suite(
    "verdict",
    "Error rates of the verdict on a part of the zoo; audits of it; the calibration.",
    result=lambda args: NAMES.get(args.world, "early"),
    pages=tuple(
        Page(name, lambda name=name: context(results(name)), template="verdict")
        for name in NAMES.values()
    ),
    options=_options,
    devices=("cpu", "cuda"),
    keep=_keep,
)


def plan_of(args: argparse.Namespace) -> AuditPlan:
    """The plan asked for; what lies outside the part is refused."""
    names = ("seeds", "families", "kinds")
    chosen = {name: getattr(args, name) for name in names if getattr(args, name)}
    check_part(args.part, args.world, **chosen)
    whole = split(args.world)[args.part] | chosen
    unknown = (kind for kind in whole["kinds"] if KINDS[kind].state is None)
    return AuditPlan(
        args.root,
        tuple((f, seed) for seed in whole["seeds"] for f in whole["families"]),
        tuple(whole["kinds"]),
        tuple(args.floors),
        graded=tuple(args.graded or unknown),
        device=args.device,
        world=args.world,
    )


def audited(args: argparse.Namespace) -> Iterator[dict]:
    """Records of the audits of a plan, as they end."""
    for case in run_plan(plan_of(args), args.jobs, args.limit_s):
        print(describe(case), flush=True)
        yield case


@SUITE.part()
def rates(run: Run) -> Iterator[Row]:
    """Error rates, probabilities and the worth of each axis."""
    args, before = run.args, run.document
    if args.world in AUDITED_ALONE:
        raise InputError(
            f"{args.world} has no page of rates", fix="Use --only audits, then the suite early"
        )
    found = read_lines(*args.cases) if args.cases else list(audited(args))
    failed = [each for each in found if "failed" in each]
    done = [each for each in found if "failed" not in each]
    if not done:
        raise InputError("nothing was audited", fix="See what failed above")
    manifests = [each["audit"]["manifest"] for each in done]
    code = {manifest["code_sha256"][:12] for manifest in manifests}
    cases, without = [case_of(each) for each in done], ablation(done)
    if args.add:
        cases, without = joined(before, cases, without)
        code |= set(before["code"])
        failed = [*before["failed"], *failed]
    shown = [asdict(case) | {"seconds": round(case.seconds, 1)} for case in cases]
    run.payload = {
        # Audits may be older than the figures made of them.
        "code": sorted(code),
        "part": args.part,
        "world": args.world,
        "worlds": sorted({_world(each.model) for each in cases}),
        "hardware": manifests[0]["hardware"],
        "probabilities": probabilities_of(cases),
        "without_axis": without,
        "failed": failed,
        "cases": shown,
    }
    plots = args.root / "verdict.html"
    plots.write_text(drawn(cases, f"Verdicts, {args.part} part"), encoding="utf-8")
    print(f"plots: {plots}")
    yield from figures(cases)


@SUITE.part(default=False)
def audits(run: Run) -> Iterator[Row]:
    """Audits alone, one line of JSON each with the whole of audit.json, into --out."""
    out = _out(run)
    with out.open("w", encoding="utf-8") as file:
        for case in audited(run.args):
            file.write(json.dumps(case) + "\n")
            file.flush()
    yield from ()


@SUITE.part("calibration", default=False)
def fitted(run: Run) -> Iterator[Row]:
    """The calibration that ships with the package, from --cases of the tuning part."""
    calibration.write(read_lines(*run.args.cases), run.args.out or calibration.FILE)
    yield from ()


def _out(run: Run) -> Path:
    if run.args.out is None:
        raise InputError("there is no place for the audits", fix="Name a file by --out")
    return run.args.out


def probabilities_of(cases: Sequence[Case]) -> dict | None:
    """Reliability and coverage, as far as probabilities were stated."""
    stated = confidences(cases)
    if not stated[0]:
        return None
    kept, wrong = risk_coverage_curve(*stated)
    marks = (0.5, 0.8, 0.9, 0.95, 1.0)
    places = [int((kept < mark - 1e-9).sum()) for mark in marks]
    return {
        "version": shipped().version,
        "reliability": [asdict(each) for each in reliability(*stated)],
        "coverage": [[float(kept[place]), float(wrong[place])] for place in dict.fromkeys(places)],
    }


def joined(
    before: dict, cases: Sequence[Case], without: Sequence[dict]
) -> tuple[list[Case], list[dict]]:
    """Cases and ablation of an earlier result and of audits of other models.

    Raises:
        InputError: the earlier result has one of these models, or other axes.
    """
    fix = "Leave --add out"
    old = [Case(**each) for each in before["cases"]]
    twice = {each.model for each in old} & {each.model for each in cases}
    if twice:
        raise InputError(f"{min(twice)} is in the result already", fix=fix)
    rows = {row["without"]: row for row in before["without_axis"]}
    if set(rows) != {row["without"] for row in without}:
        raise InputError("the earlier result has other axes", fix=fix)
    both = []
    for row in without:
        counts = {
            state: {
                verdict: n + rows[row["without"]][state][verdict]
                for verdict, n in row[state].items()
            }
            for state in STATES
        }
        both.append({"without": row["without"], **counts})
    return [*old, *cases], both
