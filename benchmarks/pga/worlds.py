"""One world's part of ``benchmarks.pga.suite``, on any device and in a file of its own.

Run by hand where a GPU is, many at once, and put together afterwards:

    python -m benchmarks.pga.worlds curve --size two_hundred --seed 0 --device cuda
        --out DIR
    python -m benchmarks.pga.suite --take DIR

A file is written anew after every model, and what is in it is not measured again.
Parts: ``world`` (makes it), ``curve`` (every eraser at several strengths), ``claims``
(``exhume pga``), ``toy`` (the published toy) and ``reasons``.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.results import commit, machine
from benchmarks.pga.curve import curve
from benchmarks.pga.recipes import reasons_of
from benchmarks.pga.simulated import row
from capture.checkpoints.cache import cache_root
from evidence.progress import SILENT, Bars, Progress
from evidence.storage.files import write_atomic
from experiments.pga.config import make_config
from experiments.pga.erasers import ERASERS
from experiments.pga.run import criterion, measure_published, pga
from testbeds.memorized_codes.config import SIZES
from testbeds.memorized_codes.world import build_codes

PARTS = ("world", "curve", "claims", "toy", "reasons")
NEAR = 0.08
EPOCHS = 100
"""Of the alignments on forty keys or more; some of the curve take four times that."""
SHARES = {"two_hundred": 0.3, "large": 0.3}
"""Of the keys that an eraser sees; half where nothing is said. 140 + 140 sequences can
show equivalence to chance within 0.2, 100 + 100 only half of the time."""
BASELINE = (0.656, 0.739, 0.883, 1.0, 1.0)
PUBLISHED = {
    "pga": (0.65, 0.55, 0.29, 0.22, 0.19),
    "isotropic": (0.66, 0.69, 0.68, 0.67, 0.62),
}
LEFT = {
    "output distillation": 0.92,
    "gradient ascent": 1.0,
    "npo": 1.0,
    "rmu": 1.0,
    "idk": 1.0,
}
"""Highest probe the paper's baselines leave on its toy."""
SOUND = ("pga", "isotropic", "md-pga", "gradient ascent")
Keep = Callable[[dict], None]


def toy(root: Path, seed: int, progress: Progress, device: str, keep: Keep) -> dict:
    """The published toy: every eraser scored on the keys it saw."""
    rows, models = [], []
    config = make_config({"size": "published", "seed": seed, "device": device})
    before = measure_published(config, root, None, progress)
    models.append({"seed": seed, "eraser": None, **before})
    for depth, expected in enumerate(BASELINE):
        rows.append(
            _near(f"baseline, depth {depth}", before["true"][depth], expected, seed)
        )
    for name in ERASERS:
        if name == "leace":  # the paper has none on its toy
            continue
        found = measure_published(config, root, name, progress)
        models.append({"seed": seed, "eraser": name, **found})
        true = found["true"]
        if name in PUBLISHED:
            for depth, expected in enumerate(PUBLISHED[name]):
                rows.append(
                    _near(f"{name}, depth {depth}", true[depth], expected, seed)
                )
            met = criterion({"published": found})
            rows.append(
                row(
                    f"{name}: terms of the paper's criterion met, of 4",
                    sum(met.values()),
                    None,
                    ">=",
                    "",
                    1,
                    seed=seed,
                    met=met,
                )
            )
        if name in LEFT:
            rows.append(
                _near(f"{name}, highest probe left", max(true), LEFT[name], seed)
            )
        keep({"rows": rows, "models": models})
    return {"rows": rows, "models": models}


def _near(figure: str, ours: float, published: float, seed: int) -> dict:
    """Distance from a published figure; ours and theirs come along."""
    return row(
        figure,
        abs(ours - published),
        NEAR,
        "<=",
        f"arXiv 2605.01699: {published}",
        1,
        ours=ours,
        published=published,
        seed=seed,
        unit="difference",
    )


def claims(
    root: Path, out: Path, seed: int, size: str, progress: Progress, device: str
) -> dict:
    """``exhume pga``: which claims survive, and every model's p."""
    erasers = SOUND if size == "small" else (*SOUND, "leace")
    config = make_config(
        {
            "size": size,
            "seed": seed,
            "erasers": erasers,
            "epochs": 200 if size == "small" else EPOCHS,
            "erase_share": SHARES.get(size, 0.5),
            "device": device,
        }
    )
    document = pga(config, out, root=root, progress=progress)
    rows = []
    for each in document["rows"]:
        name = each["eraser"] or each["model"]
        if "sound" not in each or name.startswith("untrained"):
            continue
        sound = each["sound"]
        # The original must be found; on the twin there is nothing to find.
        target, sense = {"original": (0.05, "<="), "twin": (0.05, ">=")}.get(
            name, (None, ">=")
        )
        rows.append(
            row(
                f"codes, {sound['sequences']} sequences, {name}: p",
                sound["p"],
                target,
                sense,
                f"{sound['reading']}; best AUC {sound['best']:.2f}, "
                f"null's 95 % {sound['band']:.2f}",
                sound["sequences"],
                best=sound["best"],
                worst=sound["worst"],
                seed=seed,
            )
        )
    kept = {key: document[key] for key in ("claims", "interventions", "config")}
    return {"rows": rows, **kept}


def make_world(
    root: Path, seed: int, size: str, progress: Progress, device: str
) -> dict:
    """The world with its twin, and what its models know."""
    config = make_config({"size": size, "seed": seed, "device": device})
    world = build_codes(
        SIZES[size], seed, root, twin=True, device=config.device, progress=progress
    )
    cards = {name: world.card(name) for name in ("original", "twin")}
    return {"rows": [], "cards": cards}


def measure(
    key: str,
    root: Path,
    progress: Progress,
    *,
    device: str = "cpu",
    permutations: int = 199,
    shard: tuple[int, int] = (0, 1),
    done: Mapping[str, Any] | None = None,
    keep: Keep = lambda found: None,
) -> dict:
    """One part of one world.

    Args:
        key: Part, size and seed, such as "curve:forty:0".
        root: Where worlds are kept.
        progress: Where progress is shown.
        device: Where models are trained.
        permutations: Of the curve's nulls.
        shard: Of the curve's settings, this one of so many parts.
        done: What was kept before.
        keep: Given what there is after every model.
    """
    part, size, number = key.split(":")
    seed, before = int(number), done or {}
    if part == "world":
        return make_world(root, seed, size, progress, device)
    if part == "curve":
        return curve(
            size,
            seed,
            root,
            progress,
            epochs=EPOCHS,
            permutations=permutations,
            share=SHARES.get(size, 0.5),
            device=device,
            shard=shard,
            done=before.get("points", []),
            keep=keep,
        )
    if part == "claims":
        folder = root.parent / "bench-pga" / f"{size}-{seed}"
        return claims(root, folder, seed, size, progress, device)
    if part == "toy":
        return toy(root, seed, progress, device, keep)
    return reasons_of(seed, root, SILENT, device, before.get("variants", {}), keep)


def main() -> None:
    """Measure one part of one world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--size", default="forty", choices=tuple(SIZES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=cache_root() / "worlds")
    parser.add_argument("--shard", default="0/1", help="of the curve: this of so many")
    parser.add_argument("--permutations", type=int, default=199)
    parser.add_argument("--commit", default="", help="where there is no repository")
    asked = parser.parse_args()
    turn, shards = map(int, asked.shard.split("/"))
    key = f"{asked.part}:{asked.size}:{asked.seed}"
    name = key.replace(":", "-") + (f"-{turn}" if shards > 1 else "")
    path = asked.out / f"{name}.json"
    done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = commit()
    facts = {
        "key": key,
        "commit": asked.commit if known == "unknown" else known,
        "machine": machine(),
        "device": asked.device,
        "threads": torch.get_num_threads(),
    }
    start = time.perf_counter() - done.get("seconds", 0)

    def keep(found: dict, finished: bool = False) -> None:
        seconds = round(time.perf_counter() - start)
        document = found | facts | {"seconds": seconds, "finished": finished}
        write_atomic(path, json.dumps(document, indent=1) + "\n")

    if done.get("finished"):
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    with Bars() as progress:
        found = measure(
            key,
            asked.root,
            progress,
            device=asked.device,
            permutations=asked.permutations,
            shard=(turn, shards),
            done=done,
            keep=keep,
        )
    keep(found, finished=True)


if __name__ == "__main__":
    main()
