"""How often is the verdict right? Every model of one part of the zoo is audited.

Run by hand: ``make bench-verdict``. Models and audits are kept in ``--root``; the same
command goes on where it was cut off.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from audits.audit import audit
from audits.manifest import code_hash
from benchmarks.timing import commit, machine
from capture.cache import cache_root
from capture.items import read_items
from evidence.rates import wilson
from testbeds.bios import STANDARD, train_model
from testbeds.zoo import Specimen, build_zoo, sized, split

RESULT = Path(__file__).parent / "results" / "verdict.json"
TABLE = Path(__file__).parent.parent / "docs" / "verdict.md"
STATES = ("not_unlearned", "suppressed", "deleted", "damaged")
VERDICTS = (*STATES, "inconclusive")
FLOORS = ("never_taught", "reference")
# Starting weights and order of the reference: those of no kind in the zoo.
REFERENCE = 9000


@dataclass(frozen=True)
class Case:
    """One audit of a model of the zoo.

    Attributes:
        specimen: The model.
        floor: One of ``FLOORS``.
        verdict: What the audit said.
        residual: Mean of the main residuals of the axes that look inside; None where
            none was run.
        reason: The audit's first reason.
        seconds: What the audit took.
    """

    specimen: Specimen
    floor: str
    verdict: str
    residual: float | None
    reason: str
    seconds: float

    @property
    def right(self) -> bool:
        """Whether the verdict is the model's state."""
        return self.verdict == self.specimen.state


def run_case(specimen: Specimen, floor: str, root: Path) -> Case:
    """Audit one model with the quick profile; the audit invents its own people."""
    world = specimen.world
    reference = world.root / "reference"
    if floor == "reference" and not reference.is_dir():
        config = sized(STANDARD, specimen.family)
        retain = read_items(world.retain)
        train_model(config, specimen.seed + REFERENCE, retain, reference)
    done = audit(
        world.original,
        specimen.model,
        world.forget,
        world.retain,
        root / "audits" / code_hash()[:12] / f"{specimen.name}-{floor}",
        reference=(reference,) if floor == "reference" else (),
        profile="quick",
        seed=0,
    )
    inner = [
        axis.main.residual
        for name, axis in done.axes.items()
        if name != "behaviour" and axis.main is not None
    ]
    return Case(
        specimen,
        floor,
        done.verdict,
        float(np.mean(inner)) if inner else None,
        done.reasons[0] if done.reasons else "",
        sum(part["seconds"] for part in done.document["runtime"]["stages"].values()),
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
    sure = [case for case in cases if case.specimen.state is not None]
    decided = [case for case in sure if case.verdict != "inconclusive"]
    by_state = {
        state: [case for case in sure if case.specimen.state == state]
        for state in STATES
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
        knows = [c.specimen.state != "deleted" for c in here]
        if len(set(knows)) == 2:
            area = float(roc_auc_score(knows, [c.residual for c in here]))
            name = f"AUC of the mean residual, knows against never knew, {floor}"
            rows.append(figure(name, area, target, ">=", len(here), "AUC"))
    return rows


def _share(count: int, total: int) -> float:
    return count / total if total else float("nan")


def page(document: dict) -> str:
    """docs/verdict.md."""
    lines = [
        "# Verdict",
        "",
        "Generated by `make bench-verdict` from `benchmarks/results/verdict.json`; "
        "edits are lost.",
        "",
        f"Part of the zoo: {document['part']}, seeds {document['seeds']}, "
        f"{', '.join(document['families'])}. Commit `{document['commit']}`, quick "
        f"profile, {document['threads']} threads. The split is "
        "`testbeds/zoo_split.json`; how each kind is made and why its state is certain "
        "is in `testbeds/kinds.py`.",
        "",
        f"{len({case['model'] for case in document['cases']})} models, each audited "
        "with each floor below: n counts audits, and the intervals take them for "
        "independent, which two audits of one model are not.",
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
    parser.add_argument("--part", choices=("tuning", "held_out"), default="held_out")
    parser.add_argument("--seeds", default="10,11,12")
    parser.add_argument("--families", default="llama")
    parser.add_argument("--kinds", default="")
    parser.add_argument("--floors", default=",".join(FLOORS))
    parser.add_argument("--root", type=Path, default=cache_root() / "zoo")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--table", type=Path, default=TABLE)
    asked = parser.parse_args()
    part = split()[asked.part]
    seeds = [int(each) for each in asked.seeds.split(",")]
    families = asked.families.split(",")
    kinds = asked.kinds.split(",") if asked.kinds else part["kinds"]
    outside = [each for each in seeds if each not in part["seeds"]]
    outside += [each for each in families if each not in part["families"]]
    outside += [each for each in kinds if each not in part["kinds"]]
    if outside:
        parser.error(f"not in the {asked.part} part: {outside}")
    cases = []
    for family in families:
        for seed in seeds:
            for kind in kinds:
                made = build_zoo(
                    asked.root, seeds=[seed], families=[family], only=[kind]
                )
                for floor in asked.floors.split(","):
                    case = run_case(made[0], floor, asked.root)
                    cases.append(case)
                    mark = {True: "ok ", False: "BAD", None: "   "}[
                        None if made[0].state is None else case.right
                    ]
                    print(
                        mark,
                        f"{made[0].name}, floor {floor} -> {case.verdict}",
                        f"{case.seconds:.0f} s",
                        flush=True,
                    )
    document = {
        "command": "python -m benchmarks.verdict " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "part": asked.part,
        "seeds": seeds,
        "families": families,
        "rows": figures(cases),
        "cases": [
            {
                "model": case.specimen.name,
                "kind": case.specimen.kind,
                "state": case.specimen.state,
                "weights": case.specimen.card["weights"],
                "floor": case.floor,
                "verdict": case.verdict,
                "residual": case.residual,
                "reason": case.reason,
                "seconds": round(case.seconds, 1),
            }
            for case in cases
        ],
    }
    asked.result.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    asked.table.write_text(page(document), encoding="utf-8")
    for row in document["rows"]:
        print(f"{row['figure']}: {row['value']:.3g} (n {row['n']})")


if __name__ == "__main__":
    main()
