"""What each axis is worth when all are run: a part of ``benchmarks.suites.circuits.suite``."""

import argparse

from audits.core.config import AXES
from audits.validation.error_rates import VERDICTS, ablation
from benchmarks.harness.results import Rows
from benchmarks.suites.circuits.zoo import BY_CONSTRUCTION, KINDS, audited, specimens


def every_axis(rows: Rows, asked: argparse.Namespace) -> None:
    """Audits with every axis, decided again with one of them left out at a time."""
    found = []
    for made in specimens(asked, KINDS):
        done = audited(asked, made, AXES, "never_taught")
        statuses = {name: axis.status for name, axis in done.axes.items()}
        print(made.name, done.verdict, statuses, flush=True)
        found.append(
            {
                "model": made.name,
                "state": made.state,
                "verdict": done.verdict,
                "statuses": statuses,
                "audit": done.document,
            }
        )
    for each in ablation(found):
        counts = {state: each[state] for state in each if state != "without"}
        right = sum(row[state] for state, row in counts.items())
        total = sum(sum(row[v] for v in VERDICTS) for row in counts.values())
        shown = f"without {each['without']}" if each["without"] else "with every axis"
        rows.add(
            f"verdicts right {shown}, seeds {' '.join(map(str, asked.seeds))}",
            right / total,
            None,
            ">=",
            "share of models",
            BY_CONSTRUCTION,
            0,
            total,
            counts=counts,
            # Once is enough.
            axes=[]
            if each["without"]
            else [{k: v for k, v in one.items() if k != "audit"} for one in found],
        )
