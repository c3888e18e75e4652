"""Restoration and concept figures: what comes back, what it shows, what tools cost.

Run by hand: ``make bench-restoration``. Each part is measured at the commit its rows
name and replaces its own rows alone; models, activations and axes are kept in
``--work`` and not computed twice.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.harness.restoration_page import RESULT, write_page
from benchmarks.harness.results import Clock, Rows, commit, machine
from benchmarks.suites.concepts import overhead_rows, sae_rows, vector_rows
from benchmarks.suites.restoration.figures import (
    rate_rows,
    shown_cases,
    verdicts,
    zoo_rows,
)
from benchmarks.suites.restoration.zoo import KINDS_ASKED, measured, models_of
from capture.checkpoints.cache import cache_root
from evidence.progress import Bars
from testbeds.zoo.build import build_zoo

PARTS = ("zoo", "tuning", "autoencoder", "overhead", "vectors")


def _zoo(rows: Rows, part: str, asked: argparse.Namespace) -> dict:
    """The axes on models of the zoo that are there, or are made."""
    seeds = [int(each) for each in (asked.seeds or "12").split(",")]
    kinds = asked.kinds.split(",") if asked.kinds else list(KINDS_ASKED)
    families = asked.families.split(",")
    if asked.make:
        build_zoo(asked.root, seeds=seeds, families=families, only=kinds)
    models = models_of(asked.root, kinds, seeds)
    cases = list(measured(models, asked.root, asked.work / part))
    what = f"{'held-out' if part == 'zoo' else 'tuning'} bios, seeds " + ",".join(
        map(str, seeds)
    )
    zoo_rows(rows, cases, what)
    rate_rows(rows, cases, what)
    found: dict = {"cases": shown_cases(cases), "verdicts": []}
    if asked.others is not None:
        lines = asked.others.read_text(encoding="utf-8").splitlines()
        found["verdicts"] = verdicts(cases, [json.loads(each) for each in lines])
    return found


def main() -> None:
    """Run the parts asked for, keep each, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="zoo,autoencoder,overhead,vectors")
    parser.add_argument("--seeds", default="", help="default: 12")
    parser.add_argument("--kinds", default="", help="default: the bounded set")
    parser.add_argument(
        "--families", default="llama,gpt2", help="where models are made"
    )
    parser.add_argument("--make", action="store_true", help="make models that lack")
    parser.add_argument(
        "--others",
        type=Path,
        help="audits by benchmarks.suites.verdict.zoo_audits, for the verdicts",
    )
    parser.add_argument("--root", type=Path, default=cache_root() / "zoo")
    parser.add_argument("--work", type=Path, default=cache_root() / "restoration")
    parser.add_argument("--result", type=Path, default=RESULT)
    asked = parser.parse_args()
    unknown = set(asked.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {min(unknown)!r}")
    document = (
        json.loads(asked.result.read_text(encoding="utf-8"))
        if asked.result.exists()
        else {}
    )
    clock = Clock(torch.get_num_threads())
    with Bars() as progress:
        for part in asked.parts.split(","):
            rows = Rows(part=part)
            if part in ("zoo", "tuning"):
                document[part] = _zoo(rows, part, asked)
            elif part == "autoencoder":
                sae_rows(rows, asked.work, progress)
            elif part == "overhead":
                overhead_rows(rows, clock)
            else:
                vector_rows(rows, clock)
            kept = [each for each in document.get("rows", ()) if each["part"] != part]
            commands = document.get("commands", {})
            commands[part] = (
                "python -m benchmarks.suites.restoration.suite "
                + " ".join(
                    each if not Path(each).is_absolute() else Path(each).name
                    for each in sys.argv[1:]
                )
            )
            document |= {
                "command": "make bench-restoration",
                "commands": commands,
                "commit": commit(),
                "machine": machine(),
                "threads": clock.threads,
                "clock": clock.name,
                "rows": sorted(
                    [*kept, *rows.rows], key=lambda each: PARTS.index(each["part"])
                ),
            }
            asked.result.parent.mkdir(exist_ok=True)
            text = json.dumps(document, indent=1) + "\n"
            asked.result.write_text(text, encoding="utf-8")
    write_page(document)


if __name__ == "__main__":
    main()
