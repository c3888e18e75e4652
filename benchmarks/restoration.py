"""Restoration and concept figures: what steers back, and what the tools cost.

Run by hand: ``python -m benchmarks.restoration`` on a quiet machine. Zoo models are
kept in ``--root`` and not made twice. Rows of models whose state is graded are left
out of the AUC.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from audits.config import make_config
from audits.restoration import net_rate
from audits.restoration_trial import restore
from audits.subjects import Subject
from capture.cache import cache_root
from capture.items import read_items
from capture.models import open_checkpoint
from capture.never_taught import invent_items
from evidence.progress import SILENT
from evidence.rates import by_entity
from evidence.seeds import numpy_rng
from probes.concept_labels import concepts_of
from probes.concepts import concept_vectors
from testbeds.zoo import build_zoo

RESULT = Path(__file__).parent / "results" / "restoration.json"
SUPPRESSED = ("last_block_relabel", "last_block_refuse", "last_block_lora", "head_only")
RETRAINED = ("twin", "retrain_1", "retrain_2")
FALSE = 0.2
"""A net rate above this on a retrain is a false restoration."""


def row(figure, value, target, sense, unit, peer, n, spread=None, **more) -> dict:
    """One figure in the shape all benchmarks share."""
    fixed = {"figure": figure, "value": value, "target": target, "sense": sense}
    return fixed | {"unit": unit, "peer": peer, "spread": spread, "n": n} | more


def restored(specimen, seed: int) -> dict:
    """Net restoration rate of one model of the zoo, and what it was chosen with."""
    config = make_config({"seed": seed})
    world = specimen.world
    forget, retain = read_items(world.forget), read_items(world.retain)
    never = invent_items(forget, retain, numpy_rng(seed, "never"))
    original = open_checkpoint(world.original)
    start = time.perf_counter()
    run = restore(
        Subject.of("original", original),
        Subject.of("unlearned", open_checkpoint(specimen.model)),
        original.tokenizer,
        forget,
        retain,
        never,
        config.budget.prompts_per_item,
        seed,
        device="cpu",
        progress=SILENT,
    )
    # The zoo's original says every answer; that is part of its card.
    entities = list(dict.fromkeys(run["entities"]))
    rate = net_rate(run, by_entity(np.ones(len(entities)), entities))
    found = {"name": specimen.name, "kind": specimen.kind, "rate": rate}
    print(specimen.name, rate and round(rate["net"], 3), flush=True)
    seconds = round(time.perf_counter() - start, 1)
    return found | {"choices": run["choices"], "seconds": seconds}


def zoo_rows(seeds: list[int], family: str, root: Path) -> list[dict]:
    """Do suppressions come back where retrains do not?"""
    found = []
    for seed in seeds:
        kinds = SUPPRESSED + RETRAINED
        for each in build_zoo(root, seeds=[seed], families=[family], only=kinds):
            found.append(restored(each, seed))
    net = {
        group: [f["rate"]["net"] for f in found if f["kind"] in group and f["rate"]]
        for group in (SUPPRESSED, RETRAINED)
    }
    yes, no = net[SUPPRESSED], net[RETRAINED]
    labels = [1] * len(yes) + [0] * len(no)
    area = float(roc_auc_score(labels, yes + no))
    wrong = sum(value > FALSE for value in no)
    what = f"bios {family}, seeds {','.join(map(str, seeds))}"
    return [
        row(
            f"AUC of the net restoration rate, suppressed against retrained, {what}",
            area,
            0.98,
            ">=",
            "AUC",
            "state known by construction",
            len(labels),
            [min(yes), max(no)],
        ),
        row(
            f"false restorations (net rate over {FALSE}) among retrains, {what}",
            wrong / len(no),
            2 / 45,
            "<=",
            "share",
            "state known by construction",
            len(no),
            models=found,
        ),
    ]


def vector_rows(sites: int, concepts: int, rows: int, width: int, fits: int) -> list:
    """All concepts at all sites at once, against scikit-learn one at a time."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(rows) % concepts)
    places = rng.standard_normal((concepts, width))
    x = rng.standard_normal((sites, rows, width)) + places[labels]
    known = concepts_of(labels)

    def ours() -> np.ndarray:
        return concept_vectors(x, known, "logistic").vectors

    times = []
    for _ in range(3):
        start = time.process_time()
        vectors = ours()
        times.append(time.process_time() - start)
    pairs = [
        divmod(int(i), concepts) for i in np.linspace(0, sites * concepts - 1, fits)
    ]
    worst, start = 1.0, time.process_time()
    for site, concept in pairs:
        scale = x[site].std(0)
        model = LogisticRegression(
            C=0.1, tol=1e-8, max_iter=5000, class_weight="balanced"
        )
        model.fit((x[site] - x[site].mean(0)) / scale, labels == concept)
        own = model.coef_[0] / scale
        worst = min(worst, float(vectors[site, concept] @ own / np.linalg.norm(own)))
    peer = (time.process_time() - start) / fits * sites * concepts
    return [
        row(
            f"logistic concept vectors, {sites} sites x {concepts} concepts, "
            f"n={rows}, d={width}",
            peer / float(np.median(times)),
            50,
            ">=",
            "times",
            f"scikit-learn, one at a time, extrapolated from {fits} fits",
            len(times),
            [peer / max(times), peer / min(times)],
            least_cosine=worst,
        )
    ]


def main() -> None:
    """Run, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="10")
    parser.add_argument("--family", default="llama")
    parser.add_argument("--root", type=Path, default=cache_root() / "zoo")
    parser.add_argument("--parts", default="zoo,vectors")
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    seeds = [int(each) for each in given.seeds.split(",")]
    parts = given.parts.split(",")
    rows = zoo_rows(seeds, given.family, given.root) if "zoo" in parts else []
    if "vectors" in parts:
        rows += vector_rows(31, 50, 1000, 576, 20)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    document = {
        "command": "python -m benchmarks.restoration " + " ".join(sys.argv[1:]),
        "commit": commit,
        "machine": f"{platform.machine()}, {platform.processor() or 'cpu'}",
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    given.result.parent.mkdir(exist_ok=True)
    text = json.dumps(document, indent=1) + "\n"
    given.result.write_text(text, encoding="utf-8")
    for each in rows:
        print(each["figure"], "->", round(each["value"], 3), "target", each["target"])


if __name__ == "__main__":
    main()
