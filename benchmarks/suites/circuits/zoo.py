"""The circuit axis, depth scores and every axis on models of known state.

Models are those of the held-out part of the zoo; CAD and what it is read with were
settled on tuning worlds.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from audits.axes.circuit.judgement import LAST_BLOCK, METRICS, TRANSPLANTED
from audits.core.registry import AXES, axes_of_profile
from audits.output.manifest import code_hash
from audits.run.api import Audit
from audits.validation import error_rates
from audits.validation.error_rates import VERDICTS
from benchmarks.harness.results import Row, at_least, at_most, roc_auc, row
from benchmarks.harness.runner import Run
from benchmarks.harness.zoo import BY_CONSTRUCTION, audited, known_model, specimens
from evidence.intervals import wilson_interval
from testbeds.zoo.build import Specimen

KINDS = (
    *("untouched", "head_only", "last_block_relabel", "last_block_refuse"),
    *("logit_mask", "twin", "retrain_1", "retrain_2", "collapse"),
)
READOUT_EDITS = ("head_only", "logit_mask")
LATE_EDITS = ("last_block_refuse", "last_block_relabel")
RETRAINS = ("twin", "retrain_1", "retrain_2")
KNOWS = (*READOUT_EDITS, *LATE_EDITS)
CIRCUIT = (*axes_of_profile("quick"), "circuit")


def each_audit(
    args: argparse.Namespace, kinds: Sequence[str], axes: Sequence[str], floor: str
) -> Iterator[tuple[Specimen, Audit]]:
    """Models and their audits, kept beside the zoo."""
    place = args.root / "audits" / f"{code_hash()[:12]}-circuits-{len(axes)}"
    settings: dict[str, Any] = {"axes": tuple(axes), "seed": 0, "device": "cpu"}
    for made in specimens(args, "held_out", kinds):
        yield made, audited(known_model(made), floor, place, **settings)


def audits(run: Run) -> Iterator[Row]:
    """CAD by kind, what the axis says, and verdicts with and without it."""
    found: list[dict[str, Any]] = []
    for made, done in each_audit(run.args, KINDS, CIRCUIT, "never_taught"):
        axis = done.axes.get("circuit")
        normal = axis.details.get("normalized", {}) if axis else {}
        shown = {
            "model": made.name,
            "kind": made.kind,
            "state": made.state,
            "verdict": done.verdict,
            "status": axis.status if axis else "not run",
            "cad": {
                readout: round(normal[metric.label]["normalized_cad"], 3)
                for readout, metric in METRICS.items()
                if metric.label in normal
            },
        }
        print(shown, flush=True)
        found.append(shown | {"audit": done.document})
    yield from _cad(found)
    yield from _statuses(found)
    for left_out, share, total, counts in _right(found):
        if left_out in ("", "circuit"):
            figure = f"verdicts right {'without' if left_out else 'with'} the circuit axis"
            yield _shared(figure, share, at_least(), total, counts=counts)


def _shared(
    figure: str, share: float, goal, n: int, spread: float | None = None, **more: Any
) -> Row:
    """A share of models of known state."""
    return row(figure, share, goal, "share of models", BY_CONSTRUCTION, n, spread, **more)


def _half_interval(share: float, n: int) -> float:
    """Half the length of Wilson's 95 % interval."""
    low, high = wilson_interval(share, n, 1.96)
    return round((high - low) / 2, 3)


def _cad(found: list[dict[str, Any]]) -> Iterator[Row]:
    for name, kinds, readouts, limit in (
        ("edits of the readout", READOUT_EDITS, (TRANSPLANTED,), at_most(0.2)),
        ("edits of the last block", LATE_EDITS, (TRANSPLANTED, LAST_BLOCK), at_most(0.2)),
        ("retrains", RETRAINS, (TRANSPLANTED, LAST_BLOCK), at_least(0.5)),
    ):
        for readout in readouts:
            values = {
                each["model"]: each["cad"][readout]
                for each in found
                if each["kind"] in kinds and readout in each["cad"]
            }
            if not values:
                continue
            cads = np.array(list(values.values()))
            good = cads <= limit.target if limit.sense == "<=" else cads >= limit.target
            # The target speaks of the readout; where a last block was edited that cannot
            # be met, and the reading with the block is what must.
            hard = kinds == LATE_EDITS and readout == TRANSPLANTED
            share = float(good.mean())
            yield _shared(
                f"{name}: CAD with the {readout} {limit.sense} {limit.target}",
                share,
                at_least(0.95),
                len(values),
                _half_interval(share, len(good)),
                values=values,
                note="its slopes run through the edited block" if hard else "",
            )


def _statuses(found: list[dict[str, Any]]) -> Iterator[Row]:
    # The very weights of the original are not looked into.
    looked_into = [each for each in found if each["status"] != "not run"]
    for name, states, status, goal in (
        ("knows", ("not_unlearned", "suppressed"), "retained", at_least()),
        ("never knew", ("deleted",), "retained", at_most(0)),
        ("never knew", ("deleted",), "absent", at_least()),
    ):
        here = [each for each in looked_into if each["state"] in states]
        if not here:
            continue
        share = sum(each["status"] == status for each in here) / len(here)
        yield _shared(
            f"{name}, the circuit axis says {status}",
            share,
            goal,
            len(here),
            _half_interval(share, len(here)),
            statuses={each["model"]: each["status"] for each in here},
            # Once is enough.
            models=_without_audits(found) if name == "knows" else [],
        )


def _without_audits(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in each.items() if k != "audit"} for each in found]


def _right(found: list[dict[str, Any]]) -> Iterator[tuple[str, float, int, dict]]:
    """By axis left out: share of verdicts that are right, of how many, counts by state."""
    for each in error_rates.ablation(found):
        counts = {state: each[state] for state in each if state != "without"}
        right = sum(row[state] for state, row in counts.items())
        total = sum(sum(row[v] for v in VERDICTS) for row in counts.values())
        yield each["without"], right / total, total, counts


def depth(run: Run) -> Iterator[Row]:
    """UDS and the smallest loss, knows against never knew, with each floor."""
    for floor, against, target, axes in (
        ("reference", "reference-1", 0.98, ("behaviour", "causal_depth")),
        # The audits of the circuit axis hold these already.
        ("never_taught", "unrelated", 0.97, CIRCUIT),
    ):
        found: dict[str, dict[str, Any]] = {}
        for made, done in each_audit(run.args, (*KNOWS, *RETRAINS), axes, floor):
            axis = done.axes["causal_depth"]
            figures = axis.details.get("depth", {}).get(against, {})
            found[made.name] = {
                "knows": made.kind in KNOWS,
                "status": axis.status,
                "uds": figures.get("uds"),
                "smallest_loss": figures.get("smallest_loss"),
            }
            print(floor, made.name, found[made.name], flush=True)
        for what, goal in (("uds", at_least(target)), ("smallest_loss", at_least())):
            values = {name: each[what] for name, each in found.items()}
            yes, no = (
                [
                    -values[n]
                    for n, e in found.items()
                    if e["knows"] == knows and values[n] is not None
                ]
                for knows in (True, False)
            )
            yield row(
                f"AUC of {what}, knows against never knew, floor {floor}",
                roc_auc(yes, no),
                goal,
                "AUC",
                BY_CONSTRUCTION,
                len(yes) + len(no),
                values=values,
            )


def ablation(run: Run) -> Iterator[Row]:
    """Audits with every axis, decided again with one of them left out at a time."""
    found = []
    for made, done in each_audit(run.args, KINDS, tuple(AXES), "never_taught"):
        statuses = {name: axis.status for name, axis in done.axes.items()}
        print(made.name, done.verdict, statuses, flush=True)
        shown = {"model": made.name, "state": made.state, "verdict": done.verdict}
        found.append(shown | {"statuses": statuses, "audit": done.document})
    seeds = " ".join(map(str, run.args.seeds))
    for left_out, share, total, counts in _right(found):
        which = f"without {left_out}" if left_out else "with every axis"
        figure = f"verdicts right {which}, seeds {seeds}"
        # Once is enough.
        axes = [] if left_out else _without_audits(found)
        yield _shared(figure, share, at_least(), total, counts=counts, axes=axes)
