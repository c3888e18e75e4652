"""Does the verdict come out right on models whose state is known by construction?

About half an hour on two cores. Worlds and models are kept in ``--root`` and not made
twice.
"""

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import results
from benchmarks.harness.results import Row, at_least
from benchmarks.harness.runner import Run, Suite, list_option
from benchmarks.harness.zoo import BY_CONSTRUCTION, KnownModel, audited
from capture.checkpoints.cache import cache_root
from capture.checkpoints.open import open_checkpoint
from capture.data.items import read_items
from testbeds.planted import plant
from testbeds.worlds.biographies import STANDARD, build_bios, train_model
from testbeds.worlds.capitals import capital_items
from testbeds.worlds.smollm2 import fetch_smollm2

# Starting weights and order of the second retrain, the reference.
OTHER = 1000
row = partial(results.row, peer=BY_CONSTRUCTION)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=list_option(int), default=[0, 1, 2])
    parser.add_argument("--worlds", type=list_option(), default=["bios", "smol"])
    parser.add_argument("--root", type=Path, default=cache_root() / "known-pairs")


SUITE = Suite(
    "known-pairs",
    "Verdicts on original, suppressed, deleted and damaged models of two worlds.",
    result="known_pairs",
    options=_options,
)


def bios_models(seed: int, root: Path) -> Iterator[KnownModel]:
    """Candidates of a bios world; never-taught people are invented, as for a user."""
    world = build_bios(STANDARD, seed, root / "bios")
    second = world.root / "reference"
    if not second.is_dir():
        train_model(STANDARD, seed + OTHER, read_items(world.retain), second)
    planted = {
        kind: plant(world, kind, seed=seed, out=root / f"bios-{seed}-{kind}")
        for kind in ("last_block_relabel", "collapse")
    }
    for name, model, state in (
        ("original", world.original, "not_unlearned"),
        ("last_block_relabel", planted["last_block_relabel"], "suppressed"),
        ("twin", world.twin, "deleted"),
        ("collapse", planted["collapse"], "damaged"),
    ):
        sets = (world.original, world.forget, world.retain)
        yield KnownModel(name, model, state, *sets, (second,))


def smol_models(seed: int, root: Path) -> Iterator[KnownModel]:
    """Candidates of the capitals world; no twin of a pretrained model exists."""
    world = capital_items(open_checkpoint(fetch_smollm2()), seed=seed)
    assert world.original is not None
    candidates = [("noop", world.original, "not_unlearned")]
    for kind, state in (("last_block_relabel", "suppressed"), ("collapse", "damaged")):
        model = plant(world, kind, seed=seed, out=root / f"smol-{seed}-{kind}")
        candidates.append((kind, model, state))
    sets = (world.original, world.forget, world.retain)
    for name, model, state in candidates:
        yield KnownModel(name, model, state, *sets, never_taught=world.never_taught)


MODELS = {"bios": bios_models, "smol": smol_models}


def judged(world: str, seed: int, known: KnownModel, floor: str, root: Path) -> Row:
    """Audit one model with one floor."""
    start = time.perf_counter()
    place = root / "audits" / f"{world}-{seed}"
    done = audited(known, floor, place, seed=seed, fresh=True)
    more: dict[str, Any] = {
        "verdict": done.verdict,
        "state": known.state,
        "seconds": round(time.perf_counter() - start, 1),
        "axes": [str(axis) for axis in done.axes.values()],
        "reasons": done.reasons,
    }
    figure = f"{world} seed {seed}: {known.name}, floor {floor}"
    right = int(done.verdict == known.state)
    return row(figure, right, at_least(1), "right (1) or wrong (0)", **more)


@SUITE.part("pairs")
def pairs(run: Run) -> Iterator[Row]:
    """Every model of every world with every floor it has."""
    rows = []
    for world in run.args.worlds:
        for seed in run.args.seeds:
            for known in MODELS[world](seed, run.args.root):
                floors = ["never_taught", *(["reference"] if known.references else [])]
                for floor in floors:
                    rows.append(judged(world, seed, known, floor, run.args.root))
                    mark = "ok " if rows[-1]["value"] else "BAD"
                    print(mark, rows[-1]["figure"], "->", rows[-1]["verdict"], flush=True)
    share = sum(each["value"] for each in rows) / len(rows)
    figure = "verdicts right among all pairs"
    yield row(figure, share, at_least(1.0), "share", n=len(rows))
    yield from rows
