"""Probe-geometry alignment: the published toy again, under two protocols.

Run by hand: ``make bench-pga``. Each part is kept as it is done: ``toy`` (trains the
paper's world and every eraser of it, about twenty minutes on one core), ``codes`` and
``forty`` (``exhume pga`` on 20 + 20 and 40 + 40 prefixes), ``curve`` (every eraser at
several strengths), ``noise`` (states without information), ``power`` (a planted
signal), ``passages`` (SmolLM2), ``axis`` (the membership axis on the zoo, whose models
must be there) and ``speed``. Why the toy differs: ``benchmarks.pga_reasons``.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from audits.membership import FAMILIES, membership
from benchmarks.pga_axis import axis, axis_rows
from benchmarks.pga_page import write_page
from benchmarks.pga_passages import passages
from benchmarks.pga_simulated import noise, power, row
from benchmarks.timing import commit, machine
from capture.cache import cache_root
from evidence.progress import SILENT, Bars, Progress
from evidence.seeds import torch_rng

RESULT = Path(__file__).parent / "results" / "pga.json"
PARTS = "noise,power,speed,codes,forty,curve,passages,toy"


def speed(progress: Progress) -> dict:
    """A full sound evaluation of captured states, and a sample of it by loops."""
    rng = torch_rng(0, "speed")
    labels = np.repeat([1, 0], 40)
    models = [torch.randn(31, 80, 576, generator=rng) for _ in range(11)]
    start = time.perf_counter()
    membership({"last": models[0]}, labels, permutations=1000, progress=progress)
    first = time.perf_counter() - start
    for states in models[1:]:
        membership({"last": states}, labels, permutations=1000, progress=progress)
    seconds = time.perf_counter() - start
    loops = _one_label_vector_by_loops(models[0][0].numpy(), labels)
    whole = loops * 31 * 1001 * len(models)
    return {
        "rows": [
            row(
                "full sound evaluation: 31 sites, 80 sequences, 7 families, 1,000 "
                "permutations of each of 11 models",
                seconds,
                600,
                "<=",
                "",
                1,
                unit="s",
                first_model=round(first, 1),
                threads=torch.get_num_threads(),
            ),
            row(
                "times faster than scikit-learn's readers in loops (extrapolated from "
                "one site and label vector)",
                whole / seconds,
                None,
                ">=",
                "LogisticRegression, 2 MLPClassifier, SVC, KNeighbors; no forest",
                1,
                unit="ratio",
                loop_seconds=round(loops, 2),
            ),
        ]
    }


def _one_label_vector_by_loops(x: np.ndarray, labels: np.ndarray) -> float:
    """Seconds of one site and label vector by five of scikit-learn's readers."""
    readers = [
        LogisticRegression(max_iter=2000),
        MLPClassifier((64,), alpha=0.01),
        MLPClassifier((128, 64), alpha=0.01),
        SVC(),
        KNeighborsClassifier(10),
    ]
    start = time.perf_counter()
    for fold in range(5):
        test = np.arange(80) % 5 == fold
        for reader in readers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = make_pipeline(StandardScaler(), reader).fit(
                    x[~test], labels[~test]
                )
            model.predict(x[test])
    return time.perf_counter() - start


def main() -> None:
    """Run the parts asked for, keep each, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=PARTS)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--permutations", type=int, default=199)
    parser.add_argument("--curve-size", default="forty")
    parser.add_argument("--root", type=Path, default=cache_root() / "worlds")
    parser.add_argument("--zoo", type=Path, default=cache_root() / "zoo")
    parser.add_argument("--tuning-zoo", type=Path, default=cache_root() / "zoo")
    asked = parser.parse_args()
    document = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    parts = document.get("parts", {})
    with Bars() as progress:
        for name in asked.parts.split(","):
            start = time.perf_counter()
            if name == "toy":
                seeds = [int(word) for word in asked.seeds.split(",")]
                found = toy(asked.root, seeds, progress)
            elif name in ("codes", "forty"):
                size = "small" if name == "codes" else name
                first = int(asked.seeds.split(",")[0])
                found = codes(asked.root, first, size, progress)
            elif name == "curve":
                found = curve(
                    asked.curve_size,
                    int(asked.seeds.split(",")[0]),
                    asked.root,
                    progress,
                    epochs=EPOCHS,
                    permutations=asked.permutations,
                )
            elif name == "passages":
                found = passages(499, progress)
            elif name == "axis":
                models = axis(
                    asked.zoo, "held out", [("llama", 10), ("gpt2", 10)], progress
                )
                models += axis(
                    asked.tuning_zoo, "tuning", [("llama", n) for n in (0, 1)], progress
                )
                found = {"rows": axis_rows(models), "models": models}
            elif name == "speed":
                found = speed(SILENT)
            elif name == "noise":
                found = noise(asked.repeats, asked.permutations, progress)
            elif name == "power":
                done = parts.get("power", {}).get("curve", [])
                found = power(asked.repeats // 4, asked.permutations, progress, done)
            else:
                parser.error(f"there is no part {name!r}")
            parts[name] = found | {
                "commit": commit(),
                "seconds": round(time.perf_counter() - start),
            }
            document = {
                "command": "python -m benchmarks.pga " + " ".join(sys.argv[1:]),
                "commit": commit(),
                "machine": machine(),
                "threads": torch.get_num_threads(),
                "families": list(FAMILIES),
                "rows": [each for part in parts.values() for each in part["rows"]],
                "parts": parts,
            }
            RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            write_page(document)
    for each in document["rows"]:
        print(f"{each['figure']}: {each['value']:.3g}", flush=True)


if __name__ == "__main__":
    main()
