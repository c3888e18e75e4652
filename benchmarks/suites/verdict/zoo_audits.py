"""Audit one part of the zoo, and keep every document.

``python -m benchmarks.suites.verdict.zoo_audits --part tuning --out cases.jsonl`` makes
the models, audits each with each floor, and writes one line an audit with the whole of
its ``audit.json``. The same command goes on where it was cut off.
"""

import argparse
import json
from pathlib import Path

from audits.validation.trials import FLOORS, AuditPlan, describe, run_plan
from capture.checkpoints.cache import cache_root
from testbeds.zoo.build import split
from testbeds.zoo.kinds import KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to audit, for every command that audits a part of the zoo."""
    parser.add_argument("--world", choices=("bios", "smol", "codes"), default="bios")
    parser.add_argument("--part", choices=("tuning", "held_out"), default="held_out")
    parser.add_argument("--seeds", default="", help="default: all of the part")
    parser.add_argument("--families", default="", help="default: all of the part")
    parser.add_argument("--kinds", default="", help="default: all of the part")
    parser.add_argument("--floors", default=",".join(FLOORS))
    parser.add_argument(
        "--graded", default="", help="kinds to grade; default: those of unknown state"
    )
    parser.add_argument("--root", type=Path, default=cache_root() / "zoo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--limit-s", type=float, default=float("inf"))


def plan_of(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> AuditPlan:
    """The plan asked for; what lies outside the part is refused."""
    part = split(asked.world)[asked.part]
    seeds = [int(each) for each in asked.seeds.split(",")] if asked.seeds else None
    seeds = seeds or part["seeds"]
    families = asked.families.split(",") if asked.families else part["families"]
    kinds = asked.kinds.split(",") if asked.kinds else part["kinds"]
    outside = [each for each in seeds if each not in part["seeds"]]
    outside += [each for each in families if each not in part["families"]]
    outside += [each for each in kinds if each not in part["kinds"]]
    if outside:
        parser.error(f"not in the {asked.part} part: {outside}")
    return AuditPlan(
        asked.root,
        tuple((family, seed) for seed in seeds for family in families),
        tuple(kinds),
        tuple(asked.floors.split(",")),
        graded=tuple(
            asked.graded.split(",")
            if asked.graded
            else (kind for kind in kinds if KINDS[kind].state is None)
        ),
        device=asked.device,
        world=asked.world,
    )


def main() -> None:
    """Make, audit, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines")
    asked = parser.parse_args()
    plan = plan_of(parser, asked)
    with asked.out.open("w", encoding="utf-8") as file:
        for case in run_plan(plan, asked.jobs, asked.limit_s):
            file.write(json.dumps(case) + "\n")
            file.flush()
            print(describe(case), flush=True)


if __name__ == "__main__":
    main()
