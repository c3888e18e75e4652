"""Does the verdict come out right on models whose state is known by construction?

Run by hand: ``make bench-known-pairs`` (about half an hour on two cores). Worlds and
models are kept in ``--root`` and not made twice.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from audits.run.api import Audit, audit
from capture.checkpoints.cache import cache_root
from capture.checkpoints.open import open_checkpoint
from capture.data.items import ItemSet, read_items
from testbeds.planted import plant
from testbeds.worlds.biographies import STANDARD, BiosWorld, build_bios, train_model
from testbeds.worlds.capitals import CapitalWorld, capital_items
from testbeds.worlds.smollm2 import fetch_smollm2

RESULT = Path(__file__).parents[2] / "results" / "known_pairs.json"
# Starting weights and order of the second retrain, the reference.
OTHER = 1000


def bios_pairs(world: BiosWorld, seed: int, root: Path):
    """Candidates of a bios world: name, model, true state, references."""
    second = world.root / "reference"
    if not second.is_dir():
        train_model(STANDARD, seed + OTHER, read_items(world.retain), second)
    planted = {
        kind: plant(world, kind, seed=seed, out=root / f"bios-{seed}-{kind}")
        for kind in ("last_block_relabel", "collapse")
    }
    models = [
        ("original", world.original, "not_unlearned"),
        ("last_block_relabel", planted["last_block_relabel"], "suppressed"),
        ("twin", world.twin, "deleted"),
        ("collapse", planted["collapse"], "damaged"),
    ]
    for name, model, state in models:
        for references in ((), (second,)):
            yield name, model, state, references


def smol_pairs(world: CapitalWorld, seed: int, root: Path):
    """Candidates of the capitals world; no twin of a pretrained model exists."""
    yield "noop", world.original, "not_unlearned", ()
    for kind, state in (("last_block_relabel", "suppressed"), ("collapse", "damaged")):
        model = plant(world, kind, seed=seed, out=root / f"smol-{seed}-{kind}")
        yield kind, model, state, ()


def one(world_name: str, seed: int, pair, options: dict, out: Path) -> dict:
    """Audit one pair; a row of the result."""
    name, model, state, references = pair
    start = time.perf_counter()
    done: Audit = audit(
        unlearned=model, reference=references, out=out, seed=seed, fresh=True, **options
    )
    floor = "reference" if references else "never_taught"
    row = {
        "figure": f"{world_name} seed {seed}: {name}, floor {floor}",
        "value": int(done.verdict == state),
        "target": 1,
        "sense": ">=",
        "unit": "right (1) or wrong (0)",
        "peer": "state known by construction",
        "spread": None,
        "n": 1,
        "verdict": done.verdict,
        "state": state,
        "seconds": round(time.perf_counter() - start, 1),
        "axes": [str(axis) for axis in done.axes.values()],
        "reasons": done.reasons,
    }
    mark = "ok " if row["value"] else "BAD"
    print(mark, row["figure"], "->", done.verdict, f"{row['seconds']} s", flush=True)
    return row


def run_bios(seeds: list[int], root: Path) -> list[dict]:
    """Every pair of every bios world."""
    rows = []
    for seed in seeds:
        world = build_bios(STANDARD, seed, root / "bios")
        # Never-taught people are invented by the audit, as they would be for a user.
        options = {
            "original": world.original,
            "forget": world.forget,
            "retain": world.retain,
        }
        for number, pair in enumerate(bios_pairs(world, seed, root)):
            out = root / "audits" / f"bios-{seed}-{number}"
            rows.append(one("bios", seed, pair, options, out))
    return rows


def run_smol(seeds: list[int], root: Path) -> list[dict]:
    """Every pair of every split of the capitals."""
    rows = []
    checkpoint = open_checkpoint(fetch_smollm2())
    for seed in seeds:
        world = capital_items(checkpoint, seed=seed)
        sets: dict[str, ItemSet] = {
            "forget": world.forget,
            "retain": world.retain,
            "never_taught": world.never_taught,
        }
        options = {"original": world.original} | sets
        for number, pair in enumerate(smol_pairs(world, seed, root)):
            out = root / "audits" / f"smol-{seed}-{number}"
            rows.append(one("smol", seed, pair, options, out))
    return rows


def main() -> None:
    """Run, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--worlds", default="bios,smol")
    parser.add_argument("--root", type=Path, default=cache_root() / "known-pairs")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    seeds = [int(each) for each in arguments.seeds.split(",")]
    rows = []
    for world in arguments.worlds.split(","):
        rows += {"bios": run_bios, "smol": run_smol}[world](seeds, arguments.root)
    right = sum(row["value"] for row in rows)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", check=False
    ).stdout.strip()
    document = {
        "command": "python -m benchmarks.suites.verdict.known_pairs "
        + " ".join(sys.argv[1:]),
        "commit": commit,
        "machine": f"{platform.machine()}, {platform.processor() or 'cpu'}",
        "threads": torch.get_num_threads(),
        "rows": [
            {
                "figure": "verdicts right among all pairs",
                "value": right / len(rows),
                "target": 1.0,
                "sense": ">=",
                "unit": "share",
                "peer": "state known by construction",
                "spread": None,
                "n": len(rows),
            },
            *rows,
        ],
    }
    arguments.result.parent.mkdir(exist_ok=True)
    text = json.dumps(document, indent=1) + "\n"
    arguments.result.write_text(text, encoding="utf-8")
    print(f"{right} of {len(rows)} right; written to {arguments.result}")


if __name__ == "__main__":
    main()
