"""Why the toy's figures differ from the paper's: one thing varied at a time.

Run by hand: ``python -m benchmarks.pga.recipes``; each variant is kept as it is done
in ``benchmarks/results/pga_reasons.json``, and ``make bench-pga`` shows them. What the
paper does and we do not know (its texts, its batches, its weight of the clean loss) is
set here to what its code suggests, and the seeds say how much is luck.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.harness.results import commit, machine
from capture.activations.capture import capture_activations
from capture.checkpoints.cache import cache_root
from erasure.unlearning.probe_alignment import TOY, PgaConfig, align_
from evidence.progress import SILENT, Bars, Progress
from experiments.pga.published_protocol import published_scores
from experiments.pga.readouts import logistic_readouts
from experiments.pga.states import pool_states
from testbeds.memorized_codes.config import PUBLISHED, CodesConfig
from testbeds.memorized_codes.world import (
    CodesWorld,
    build_codes,
    perplexity,
    recall,
    untrained_model,
)
from testbeds.worlds.code_text import make_pools, prompts

RESULT = Path(__file__).parents[1] / "results" / "pga_reasons.json"
# One step an epoch on all rows, Adam at 3e-4, until the probability the paper reached.
THEIRS = replace(PUBLISHED, batch_size=180, lr=3e-4, epochs=1000, enough=0.978)
RECIPES = {"batches of 60": PUBLISHED, "one step an epoch": THEIRS}
ALIGNED = {"pga": TOY, "isotropic": replace(TOY, align="isotropic")}


def reasons_of(
    seed: int,
    root: Path,
    progress: Progress,
    device: str = "cpu",
    done: Mapping[str, dict] | None = None,
    keep: Callable[[dict], None] = lambda found: None,
) -> dict:
    """Both recipes of the original and both alignments at one seed.

    Args:
        seed: Of world and alignment.
        root: Where worlds are kept.
        progress: Where progress is shown.
        device: Where models are trained.
        done: Variants that are there already.
        keep: Given what there is after every variant.
    """
    variants = dict(done or {})
    for recipe, config in RECIPES.items():
        for name, align in ALIGNED.items():
            key = f"{recipe}, {name}, seed {seed}"
            if key in variants:
                continue
            found = variant(config, seed, align, root, progress, device)
            named = {"recipe": recipe, "align": name, "seed": seed}
            variants[key] = named | found
            keep({"rows": [], "variants": variants})
    return {"rows": [], "variants": variants}


def variant(
    config: CodesConfig,
    seed: int,
    align: PgaConfig,
    root: Path,
    progress: Progress,
    device: str = "cpu",
) -> dict:
    """Probes before, and at every fit of the readout during, an alignment."""
    world = build_codes(config, seed, root, device=device, progress=progress)
    model = world.load(device=device)
    rows = world.memorised()

    def look(model: nn.Module) -> dict[str, float]:
        found = {f"depth {d}": value for d, value in enumerate(_probes(model, world))}
        return found | {"least": recall(model, rows).least}  # pyright: ignore

    start = perplexity(model, world.random_codes("clean", -2))
    log = align_(
        model,
        rows,
        lambda epoch: world.random_codes("clean", epoch),
        logistic_readouts(),
        align,
        evaluate=look,
        seed=seed,
        progress=progress,
    )
    curve = [
        {
            "epoch": int(each["step"]),
            "true": [each[f"depth {d}"] for d in range(config.layers + 1)],
            "least": each["least"],
        }
        for each in log.rows
        if "least" in each
    ]
    end = perplexity(model, world.random_codes("clean", -2))
    card = world.card()
    return {
        "curve": curve,
        "perplexity": [start, end],
        "epochs_of_the_original": card["epochs"],
    }


def _probes(model: nn.Module, world: CodesWorld) -> list[float]:
    pools = [
        pool_states(model, world.pools[name].prefixes, world.trained_lead_ins)
        for name in ("memorised", "clean")
    ]
    accuracy = published_scores(*pools, shuffles=0).true.accuracy
    return [round(float(value), 4) for value in accuracy]


def texts(draws: int, root: Path, progress: Progress) -> dict:
    """Depth 0 of the same network over other draws of the texts.

    Depth 0 knows a text's last sign and its length and nothing of training, so that
    texts of another length or ending give another score of the same model.
    """
    world = build_codes(PUBLISHED, 0, root, progress=progress)
    networks = {"trained": world.load(), "untrained": untrained_model(world, 1)}
    found: dict[str, list[float]] = {}
    for ending in ("one ending", "own endings"):
        for name, model in networks.items():
            scores = found.setdefault(f"{name}, {ending}", [])
            for draw in range(draws):
                pools = make_pools({"memorised": 9, "clean": 9}, draw)
                states = []
                for pool in pools.values():
                    prefixes = pool.prefixes
                    if ending == "own endings":
                        prefixes = tuple(text.rstrip(":") for text in prefixes)
                    rows = prompts(prefixes, world.trained_lead_ins)
                    values = capture_activations(model, rows, ["embed"], "last").values
                    table = torch.from_numpy(np.asarray(values, np.float64))
                    states.append(table.reshape(1, 9, len(world.trained_lead_ins), -1))
                scored = published_scores(*states, shuffles=0).true.accuracy
                scores.append(round(float(scored[0]), 4))
    return {
        name: {
            "mean": float(np.mean(each)),
            "sd": float(np.std(each)),
            "low": float(np.quantile(each, 0.025)),
            "high": float(np.quantile(each, 0.975)),
            "draws": draws,
        }
        for name, each in found.items()
    }


def take_reasons(variants: dict[str, dict]) -> None:
    """Put variants among those that were measured."""
    document = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    document.setdefault("variants", {}).update(variants)
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Depth 0 over texts, if it is not there yet, and the seeds asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=cache_root() / "worlds")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--draws", type=int, default=100)
    asked = parser.parse_args()
    facts = {
        "commit": commit(),
        "machine": machine(),
        "device": "cpu",
        "threads": torch.get_num_threads(),
    }
    document = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    if "texts" not in document:
        document["texts"] = texts(asked.draws, asked.root, SILENT)
        document |= facts | {
            "command": "python -m benchmarks.pga.recipes " + " ".join(sys.argv[1:])
        }
        RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    done = document.get("variants", {})
    with Bars() as progress:
        for seed in map(int, asked.seeds.split(",")):

            def keep(found: dict) -> None:
                new = {k: v for k, v in found["variants"].items() if k not in done}
                take_reasons({name: each | facts for name, each in new.items()})

            reasons_of(seed, asked.root, progress, done=done, keep=keep)


if __name__ == "__main__":
    main()
