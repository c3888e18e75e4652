"""The circuit axis, depth scores and quantised edits on models of known state.

Parts of ``benchmarks.suites.circuits.suite``. Models are those of the held-out part of
the zoo; CAD and what it is read with were settled on tuning worlds.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from audits.axes.circuit.judgement import LAST_BLOCK, TITLES, TRANSPLANTED
from audits.core.config import QUICK_AXES
from audits.core.manifest import code_hash
from audits.run.api import Audit, audit
from audits.validation.error_rates import VERDICTS, ablation
from benchmarks.harness.results import Rows
from benchmarks.suites.quantization import planted_edits
from evidence.intervals import wilson_interval
from testbeds.zoo.build import Specimen, build_zoo, split

KINDS = (
    *("untouched", "head_only", "last_block_relabel", "last_block_refuse"),
    *("logit_mask", "twin", "retrain_1", "retrain_2", "collapse"),
)
READOUT_EDITS = ("head_only", "logit_mask")
LATE_EDITS = ("last_block_refuse", "last_block_relabel")
RETRAINS = ("twin", "retrain_1", "retrain_2")
KNOWS = (*READOUT_EDITS, *LATE_EDITS)
BY_CONSTRUCTION = "state known by construction"


def specimens(asked: argparse.Namespace, kinds: Sequence[str]) -> Iterator[Specimen]:
    """Models of the held-out part, made or found; anything else is refused."""
    part = split()["held_out"]
    outside = [seed for seed in asked.seeds if seed not in part["seeds"]]
    if outside:
        raise SystemExit(f"not in the held-out part: {outside}")
    for kind in kinds:
        yield from build_zoo(
            asked.root, seeds=asked.seeds, families=asked.families, only=[kind]
        )


def audited(
    asked: argparse.Namespace, made: Specimen, axes: Sequence[str], floor: str
) -> Audit:
    """One audit of a model, kept beside the zoo."""
    world = made.world
    place = asked.root / "audits" / f"{code_hash()[:12]}-circuits-{len(axes)}"
    return audit(
        world.original,
        made.model,
        world.forget,
        world.retain,
        place / f"{made.name}-{floor}",
        reference=(world.root / "reference",) if floor == "reference" else (),
        axes=tuple(axes),
        seed=0,
        device="cpu",
    )


def audits(rows: Rows, asked: argparse.Namespace) -> None:
    """CAD by kind, what the axis says, and verdicts with and without it."""
    found: list[dict[str, Any]] = []
    for made in specimens(asked, KINDS):
        done = audited(asked, made, (*QUICK_AXES, "circuit"), "never_taught")
        axis = done.axes.get("circuit")
        normal = axis.details.get("normalised", {}) if axis else {}
        found.append(
            {
                "model": made.name,
                "kind": made.kind,
                "state": made.state,
                "verdict": done.verdict,
                "status": axis.status if axis else "not run",
                "cad": {
                    readout: round(normal[title]["normalised_cad"], 3)
                    for readout, title in TITLES.items()
                    if title in normal
                },
                "audit": done.document,
            }
        )
        shown = {k: v for k, v in found[-1].items() if k != "audit"}
        print(shown, flush=True)
    _cad(rows, found)
    _statuses(rows, found)
    _verdicts(rows, found)


def _cad(rows: Rows, found: list[dict[str, Any]]) -> None:
    for name, kinds, readouts, sense, target in (
        ("edits of the readout", READOUT_EDITS, (TRANSPLANTED,), "<=", 0.2),
        ("edits of the last block", LATE_EDITS, (TRANSPLANTED,), "<=", 0.2),
        ("edits of the last block", LATE_EDITS, (LAST_BLOCK,), "<=", 0.2),
        ("retrains", RETRAINS, (TRANSPLANTED, LAST_BLOCK), ">=", 0.5),
    ):
        for readout in readouts:
            values = {
                each["model"]: each["cad"][readout]
                for each in found
                if each["kind"] in kinds and readout in each["cad"]
            }
            if not values:
                continue
            list_ = np.array(list(values.values()))
            good = list_ <= target if sense == "<=" else list_ >= target
            # The target speaks of the readout; where a last block was edited
            # that cannot be met, and the reading with the block is what must.
            hard = kinds == LATE_EDITS and readout == TRANSPLANTED
            low, high = wilson_interval(float(good.mean()), len(good), 1.96)
            rows.add(
                f"{name}: CAD with the {readout} {sense} {target}",
                float(good.mean()),
                0.95,
                ">=",
                "share of models",
                BY_CONSTRUCTION,
                round((high - low) / 2, 3),
                len(values),
                values=values,
                note="its slopes run through the edited block" if hard else "",
            )


def _statuses(rows: Rows, found: list[dict[str, Any]]) -> None:
    for name, states, status, target in (
        ("knows", ("not_unlearned", "suppressed"), "retained", None),
        ("never knew", ("deleted",), "retained", 0),
        ("never knew", ("deleted",), "absent", None),
    ):
        # The very weights of the original are not looked into.
        here = [
            each
            for each in found
            if each["state"] in states and each["status"] != "not run"
        ]
        if not here:
            continue
        share = sum(each["status"] == status for each in here) / len(here)
        low, high = wilson_interval(share, len(here), 1.96)
        rows.add(
            f"{name}, the circuit axis says {status}",
            share,
            target,
            "<=" if target == 0 else ">=",
            "share of models",
            BY_CONSTRUCTION,
            round((high - low) / 2, 3),
            len(here),
            statuses={each["model"]: each["status"] for each in here},
            # Once is enough.
            models=[{k: v for k, v in each.items() if k != "audit"} for each in found]
            if name == "knows"
            else [],
        )


def _verdicts(rows: Rows, found: list[dict[str, Any]]) -> None:
    table = ablation(found)
    for each in table:
        if each["without"] not in ("", "circuit"):
            continue
        counts = {state: each[state] for state in each if state != "without"}
        right = sum(row[state] for state, row in counts.items())
        total = sum(sum(row[v] for v in VERDICTS) for row in counts.values())
        rows.add(
            f"verdicts right {'without' if each['without'] else 'with'} the circuit "
            "axis",
            right / total,
            None,
            ">=",
            "share of models",
            BY_CONSTRUCTION,
            0,
            total,
            counts=counts,
        )


def depth(rows: Rows, asked: argparse.Namespace) -> None:
    """UDS and the smallest loss, knows against never knew, with each floor."""
    for floor, against, target, axes in (
        ("reference", "reference-1", 0.98, ("behaviour", "causal_depth")),
        # The audits of the circuit axis hold these already.
        ("never_taught", "stranger", 0.97, (*QUICK_AXES, "circuit")),
    ):
        found: dict[str, dict[str, Any]] = {}
        for made in specimens(asked, (*KNOWS, *RETRAINS)):
            done = audited(asked, made, axes, floor)
            axis = done.axes["causal_depth"]
            figures = axis.details.get("depth", {}).get(against, {})
            found[made.name] = {
                "knows": made.kind in KNOWS,
                "status": axis.status,
                "uds": figures.get("uds"),
                "smallest_loss": figures.get("smallest_loss"),
            }
            print(floor, made.name, found[made.name], flush=True)
        for what in ("uds", "smallest_loss"):
            pairs = [
                (each["knows"], -each[what])
                for each in found.values()
                if each[what] is not None
            ]
            knows, values = zip(*pairs, strict=True)
            rows.add(
                f"AUC of {what}, knows against never knew, floor {floor}",
                float(roc_auc_score(knows, values)),
                target if what == "uds" else None,
                ">=",
                "AUC",
                BY_CONSTRUCTION,
                0,
                len(pairs),
                values={name: each[what] for name, each in found.items()},
            )


def bins(rows: Rows, asked: argparse.Namespace) -> None:
    """Codes against bitsandbytes, and edits of a hundredth of a bin and of ten."""
    planted_edits(rows, asked.root, asked.seeds[0])
