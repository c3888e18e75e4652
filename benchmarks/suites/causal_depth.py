"""Do patched states tell models that know from models that never knew?

Run by hand: ``python -m benchmarks.suites.causal_depth --seeds 0,1,2``. Models of the
tuning part of the zoo are audited with ``behaviour`` and ``causal_depth``; edits of
known size in bins are quantised. Figures count operations and errors, none of them
time.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from audits.core.manifest import code_hash
from audits.run.api import audit
from benchmarks.harness.results import commit, machine
from capture.checkpoints.cache import cache_root
from capture.data.items import read_items
from erasure.weights.quantization import edit_survival, quantize
from testbeds.worlds.biographies import STANDARD, train_model
from testbeds.zoo.build import build_zoo, sized, split

RESULT = Path(__file__).parents[1] / "results" / "depth.json"
KNOWS = (
    "retain_tuned",
    "last_block_relabel",
    "last_block_refuse",
    "last_block_lora",
    "head_only",
)
NEVER_KNEW = ("twin", "twin_tuned", "retrain_1", "retrain_2")
FLOORS = ("never_taught", "reference")
# Starting weights and order of the reference: those of no kind in the zoo.
REFERENCE = 9000


def run_seed(root: Path, family: str, seed: int) -> list[dict[str, Any]]:
    """One row a model of a world and floor."""
    torch.set_num_threads(1)
    rows = []
    for kind in (*KNOWS, *NEVER_KNEW):
        specimen = build_zoo(root, seeds=[seed], families=[family], only=[kind])[0]
        world = specimen.world
        reference = world.root / "reference"
        if not reference.is_dir():
            config = sized(STANDARD, specimen.family)
            retain = read_items(world.retain)
            train_model(config, seed + REFERENCE, retain, reference)
        for floor in FLOORS:
            done = audit(
                world.original,
                specimen.model,
                world.forget,
                world.retain,
                root / "depth" / code_hash()[:12] / f"{specimen.name}-{floor}",
                reference=(reference,) if floor == "reference" else (),
                axes=("behaviour", "causal_depth"),
            )
            axis = done.axes["causal_depth"]
            main = axis.main_reading
            rows.append(
                {
                    "model": specimen.name,
                    "kind": kind,
                    "floor": floor,
                    "verdict": done.verdict,
                    "status": axis.status,
                    "residual": main.residual if main else None,
                    "p": main.p_value if main else None,
                    "depth": axis.details["depth"],
                }
            )
    return rows


def figure(
    name: str, value: float, target: float | None, sense: str, unit: str, n: int
) -> dict[str, Any]:
    """One row of the result."""
    return {
        "figure": name,
        "value": value,
        "target": target,
        "sense": sense,
        "unit": unit,
        "peer": "state known by construction",
        "spread": None,
        "n": n,
    }


def area(rows: Sequence[dict[str, Any]], against: str, what: str) -> tuple[float, int]:
    """AUC of a loss, knows against never knew."""
    scored = [
        (row["kind"] in KNOWS, -row["depth"][against][what])
        for row in rows
        if row["depth"].get(against, {}).get(what) is not None
    ]
    knows, values = zip(*scored, strict=True)
    return float(roc_auc_score(knows, values)), len(scored)


def depth_figures(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How well losses and votes agree with the true states."""
    found = []
    for floor, against, target in (
        ("reference", "reference-1", 0.98),
        ("never_taught", "stranger", 0.97),
    ):
        here = [row for row in rows if row["floor"] == floor]
        for what in ("uds", "smallest_loss", "mean_loss"):
            value, n = area(here, against, what)
            name = f"AUC of {what}, knows against never knew, {floor}"
            found.append(figure(name, value, target, ">=", "AUC", n))
    hidden = [row for row in rows if row["kind"] in KNOWS]
    never = [row for row in rows if row["kind"] in NEVER_KNEW]
    late = [row for row in rows if row["kind"].startswith("last_block")]
    unread = sum(row["residual"] is None for row in never)
    tested = [row["p"] for row in never if row["p"] is not None]
    return [
        *found,
        figure(
            "smallest loss of an edit of the last block",
            max(row["depth"]["stranger"]["smallest_loss"] for row in late),
            0.0,
            "<=",
            "share",
            len(late),
        ),
        figure(
            "knows, axis says retained",
            sum(row["status"] == "retained" for row in hidden) / len(hidden),
            None,
            ">=",
            "share",
            len(hidden),
        ),
        figure(
            "never knew, axis says retained",
            sum(row["status"] == "retained" for row in never),
            0,
            "<=",
            "n",
            len(never),
        ),
        figure(
            "never knew, states the original cannot read",
            unread / len(never),
            None,
            "<=",
            "share",
            len(never),
        ),
        figure(
            "least p of a model that never knew",
            min(tested),
            None,
            ">=",
            "p",
            len(tested),
        ),
    ]


def bin_figures() -> list[dict[str, Any]]:
    """What quantisation leaves of edits of known size on Gaussian weights."""
    rng = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(512, 1024, generator=rng)
    edit = torch.randn(512, 1024, generator=rng)
    width = float(quantize(weight).bin_widths.mean())
    found = []
    for bins, sense, same, fidelity in ((0.01, ">=", 0.98, None), (10, "<=", 0.15, 1)):
        left = edit_survival(weight, weight + bins * width * edit / edit.std())
        name = f"an edit of {bins} bins (RMS) under NF4"
        found += [
            figure(f"{name}, codes kept", left.same_codes, same, sense, "share", 1),
            figure(
                f"{name}, cosine with what is left of it",
                left.fidelity,
                0.2 if fidelity is None else 0.98,
                "<=" if fidelity is None else ">=",
                "cosine",
                1,
            ),
        ]
    return found


def main() -> None:
    """Build, audit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--family", default="llama")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--root", type=Path, default=cache_root() / "zoo")
    parser.add_argument("--result", type=Path, default=RESULT)
    asked = parser.parse_args()
    seeds = [int(each) for each in asked.seeds.split(",")]
    outside = [each for each in seeds if each not in split()["tuning"]["seeds"]]
    if outside:
        parser.error(f"not in the tuning part: {outside}")
    # A root for each world: the list of models in it has one writer.
    roots = [asked.root / f"seed-{seed}" for seed in seeds]
    with ProcessPoolExecutor(asked.workers) as pool:
        parts = list(pool.map(run_seed, roots, [asked.family] * len(seeds), seeds))
    rows = [row for part in parts for row in part]
    document = {
        "command": "python -m benchmarks.suites.causal_depth " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": machine(),
        "threads": 1,
        "seeds": seeds,
        "family": asked.family,
        "rows": [*depth_figures(rows), *bin_figures()],
        "cases": rows,
    }
    asked.result.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for row in document["rows"]:
        print(f"{row['figure']}: {row['value']:.3g} (n {row['n']})")
    for kind in (*KNOWS, *NEVER_KNEW):
        for floor in FLOORS:
            here = [r for r in rows if r["kind"] == kind and r["floor"] == floor]
            small = [r["depth"]["stranger"]["smallest_loss"] for r in here]
            mean = [r["depth"]["stranger"]["mean_loss"] for r in here]
            print(
                f"{kind}, {floor}: smallest {np.min(small):.2f} to {np.max(small):.2f},"
                f" mean {np.min(mean):.2f} to {np.max(mean):.2f},"
                f" {sorted(r['status'] for r in here)}"
            )


if __name__ == "__main__":
    main()
