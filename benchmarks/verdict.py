"""How often is the verdict right? Every model of one part of the zoo is audited.

Run by hand: ``make bench-verdict``. Models and audits are kept in ``--root``; the same
command goes on where it was cut off.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks.timing import commit, machine
from benchmarks.zoo_audits import FLOORS, add_arguments, in_words, plan_of, run_plan
from evidence.rates import wilson

RESULT = Path(__file__).parent / "results" / "verdict.json"
TABLE = Path(__file__).parent.parent / "docs" / "verdict.md"
STATES = ("not_unlearned", "suppressed", "deleted", "damaged")
VERDICTS = (*STATES, "inconclusive")


@dataclass(frozen=True)
class Case:
    """One audit of a model of the zoo.

    Attributes:
        model: Its name.
        kind: A name in ``testbeds.kinds.KINDS``.
        state: What it truly is; None where that has to be graded.
        family: Its shape.
        weights: Their hash.
        floor: One of ``FLOORS``.
        verdict: What the audit said.
        residual: Mean of the main residuals of the axes that look inside; None where
            none was run.
        grade: Gold grade between 0 (never knew) and 1 (knows), where one was made.
        reason: The audit's first reason.
        seconds: What the audit took.
    """

    model: str
    kind: str
    state: str | None
    family: str
    weights: str
    floor: str
    verdict: str
    residual: float | None
    grade: float | None
    reason: str
    seconds: float

    @property
    def right(self) -> bool:
        """Whether the verdict is the model's state."""
        return self.verdict == self.state


def case_of(found: dict) -> Case:
    """From one line of ``benchmarks.zoo_audits``."""
    document = found["audit"]
    inner = [
        axis["residual"]
        for axis in document["axes"]
        if axis["name"] != "behaviour" and axis["residual"] is not None
    ]
    reasons = document["verdict"]["reasons"]
    return Case(
        model=found["model"],
        kind=found["kind"],
        state=found["state"],
        family=found["family"],
        weights=found["weights"],
        floor=found["floor"],
        verdict=document["verdict"]["class"],
        residual=float(np.mean(inner)) if inner else None,
        grade=found["gold"]["grade"] if found["gold"] else None,
        reason=reasons[0] if reasons else "",
        seconds=document["runtime"]["seconds"],
    )


def figure(
    name: str, value: float, target: float | None, sense: str, n: int, unit: str
) -> dict:
    """One row of the result."""
    spread = None
    if unit == "share" and n:
        low, high = wilson(value, n, 1.96)
        spread = [round(low, 4), round(high, 4)]
    return {
        "figure": name,
        "value": value,
        "target": target,
        "sense": sense,
        "unit": unit,
        "peer": "state known by construction",
        "spread": spread,
        "n": n,
    }


def figures(cases: Sequence[Case]) -> list[dict]:
    """The figures that issue a verdict's worth, over models of certain state."""
    sure = [case for case in cases if case.state is not None]
    decided = [case for case in sure if case.verdict != "inconclusive"]
    by_state = {
        state: [case for case in sure if case.state == state] for state in STATES
    }

    def said(state: str, verdict: str) -> int:
        return sum(case.verdict == verdict for case in by_state[state])

    holding = len(by_state["not_unlearned"]) + len(by_state["suppressed"])
    wrongly = said("not_unlearned", "deleted") + said("suppressed", "deleted")
    retrains = len(by_state["deleted"])
    rows = [
        figure("holds the knowledge, called deleted", wrongly, 0, "<=", holding, "n"),
        figure(
            "retrains called suppressed",
            said("deleted", "suppressed"),
            0,
            "<=",
            retrains,
            "n",
        ),
        figure(
            "retrains accepted as deleted",
            _share(said("deleted", "deleted"), retrains),
            44 / 45,
            ">=",
            retrains,
            "share",
        ),
        figure(
            "untouched in effect, called anything but not_unlearned",
            len(by_state["not_unlearned"]) - said("not_unlearned", "not_unlearned"),
            0,
            "<=",
            len(by_state["not_unlearned"]),
            "n",
        ),
        figure(
            "suppressions called suppressed",
            _share(said("suppressed", "suppressed"), len(by_state["suppressed"])),
            None,
            ">=",
            len(by_state["suppressed"]),
            "share",
        ),
        figure(
            "wrecks called deleted",
            said("damaged", "deleted"),
            0,
            "<=",
            len(by_state["damaged"]),
            "n",
        ),
        figure(
            "right among decided",
            _share(sum(case.right for case in decided), len(decided)),
            0.98,
            ">=",
            len(decided),
            "share",
        ),
        figure(
            "inconclusive",
            _share(len(sure) - len(decided), len(sure)),
            0.1,
            "<=",
            len(sure),
            "share",
        ),
        figure(
            "median seconds of an audit",
            float(np.median([case.seconds for case in cases])),
            60,
            "<=",
            len(cases),
            "s",
        ),
    ]
    for floor, target in (("reference", 0.995), ("never_taught", 0.99)):
        here = [c for c in sure if c.floor == floor and c.residual is not None]
        knows = [c.state != "deleted" for c in here]
        if len(set(knows)) == 2:
            area = float(roc_auc_score(knows, [c.residual for c in here]))
            name = f"AUC of the mean residual, knows against never knew, {floor}"
            rows.append(figure(name, area, target, ">=", len(here), "AUC"))
    for floor in FLOORS:
        here = [
            (case.residual, case.grade)
            for case in cases
            if case.floor == floor
            and case.state is None
            and None not in (case.residual, case.grade)
        ]
        if len(here) > 2:
            rho = float(spearmanr(*zip(*here, strict=True)).statistic)
            name = f"rank correlation of mean residual and gold grade, {floor}"
            rows.append(figure(name, rho, 0.9, ">=", len(here), "rho"))
    return rows


def _share(count: int, total: int) -> float:
    return count / total if total else float("nan")


def page(document: dict) -> str:
    """docs/verdict.md."""
    failed = len(document["failed"])
    lines = [
        "# Verdict",
        "",
        "Generated by `make bench-verdict` from `benchmarks/results/verdict.json`; "
        "edits are lost.",
        "",
        f"Part of the zoo: {document['part']}; worlds: {', '.join(document['worlds'])}."
        f" Commit `{document['commit']}`, quick profile, "
        f"{document['hardware']['device']}, {document['hardware']['threads']} threads "
        "an audit. The split is `testbeds/zoo_split.json`; how each kind is made and "
        "why its state is certain is in `testbeds/kinds.py`.",
        "",
        f"{len({case['model'] for case in document['cases']})} models, each audited "
        "with each floor below: n counts audits, and the intervals take them for "
        "independent, which two audits of one model are not."
        + (f" {failed} could not be made or audited." if failed else ""),
        "",
        "| figure | measured | target | n | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        target = (
            "none" if row["target"] is None else f"{row['sense']} {row['target']:.3g}"
        )
        spread = "" if row["spread"] is None else "{} to {}".format(*row["spread"])
        cells = (row["figure"], f"{row['value']:.3g}", target, str(row["n"]), spread)
        lines.append(f"| {' | '.join(cells)} |")
    for floor in FLOORS:
        here = [case for case in document["cases"] if case["floor"] == floor]
        if not here:
            continue
        lines += ["", f"## Floor: {floor.replace('_', '-')}", ""]
        lines.append("| kind | state | " + " | ".join(VERDICTS) + " | residual |")
        lines.append("|---|---|" + "---|" * (len(VERDICTS) + 1))
        for kind in dict.fromkeys(case["kind"] for case in here):
            of_kind = [case for case in here if case["kind"] == kind]
            counts = Counter(case["verdict"] for case in of_kind)
            residuals = [c["residual"] for c in of_kind if c["residual"] is not None]
            lines.append(
                f"| {kind} | {of_kind[0]['state'] or 'to be graded'} | "
                + " | ".join(str(counts[name] or "") for name in VERDICTS)
                + f" | {_span(residuals)} |"
            )
    return "\n".join(lines) + "\n"


def _span(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}" if values else ""


def main() -> None:
    """Build, audit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--cases", type=Path, help="audits already made by benchmarks.zoo_audits"
    )
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--table", type=Path, default=TABLE)
    asked = parser.parse_args()
    plan = plan_of(parser, asked)
    if asked.cases is None:
        found = []
        for each in run_plan(plan, asked.jobs, asked.limit_s):
            print(in_words(each), flush=True)
            found.append(each)
    else:
        lines = asked.cases.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
    failed = [each for each in found if "failed" in each]
    cases = [case_of(each) for each in found if "failed" not in each]
    if not cases:
        parser.error("nothing was audited")
    hardware = next(e for e in found if "audit" in e)["audit"]["manifest"]["hardware"]
    document = {
        "command": "python -m benchmarks.verdict " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": machine(),
        "part": asked.part,
        "worlds": sorted({"-".join(each.model.split("-")[:3]) for each in cases}),
        "hardware": hardware,
        "rows": figures(cases),
        "failed": failed,
        "cases": [asdict(case) | {"seconds": round(case.seconds, 1)} for case in cases],
    }
    asked.result.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    asked.table.write_text(page(document), encoding="utf-8")
    for row in document["rows"]:
        print(f"{row['figure']}: {row['value']:.3g} (n {row['n']})")


if __name__ == "__main__":
    main()
