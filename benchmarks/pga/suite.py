"""Probe-geometry alignment: the published toy again, under two protocols.

Run by hand: ``make bench-pga``. Each part is kept as it is done. Those of a world are
named by part, size and seed (``benchmarks.pga.worlds``): ``toy:published:0`` trains the
paper's world and every eraser of it, about twenty minutes on one core;
``claims:small:0`` is ``exhume pga``, ``curve:forty:0`` every eraser at several
strengths. The others: ``noise`` (states without information), ``power`` (a planted
signal), ``equivalence`` (no signal: how many sequences show it), ``passages``
(SmolLM2), ``devices`` (points of a GPU again, on the CPU), ``views`` (where what an
eraser leaves is found), ``axis`` (the membership axis on the zoo, whose models must be
there) and ``speed``. ``--take DIR`` takes in what was measured elsewhere. Why the toy
differs: ``benchmarks.pga.recipes``.
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

from benchmarks.harness.pga_page import write_page
from benchmarks.harness.results import commit, machine
from benchmarks.pga.curve import NEVER, curve_rows, settings
from benchmarks.pga.devices import devices
from benchmarks.pga.equivalence import equivalence
from benchmarks.pga.membership_axis import axis, axis_rows
from benchmarks.pga.passages import passages
from benchmarks.pga.recipes import take_reasons
from benchmarks.pga.simulated import noise, power, row
from benchmarks.pga.views import views
from benchmarks.pga.worlds import EPOCHS, measure
from benchmarks.pga.worlds import PARTS as WORLDS
from capture.checkpoints.cache import cache_root
from evidence.progress import SILENT, Bars, Progress
from evidence.seeds import torch_rng
from probes.sweeps.membership_test import FAMILIES, membership

RESULT = Path(__file__).parents[1] / "results" / "pga.json"
FACTS = ("commit", "machine", "device", "threads")
ORDER = ("original", NEVER, *settings(EPOCHS))
PARTS = (
    "noise,speed,power,equivalence,claims:small:0,claims:forty:0,curve:forty:0,"
    "passages,toy:published:0"
)


def take(folder: Path, parts: dict) -> None:
    """Put the files of ``benchmarks.pga.worlds`` among the parts and the reasons.

    Args:
        folder: Where they are; shards of a curve become one part.
        parts: By name; those of the same name are replaced.
    """
    files: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        files.setdefault(found.pop("key"), []).append(found)
    for key, found in files.items():
        part, size, seed = key.split(":")
        if part == "reasons":
            for each in found:
                facts = {name: each[name] for name in FACTS}
                take_reasons({name: v | facts for name, v in each["variants"].items()})
            continue
        whole = found[0]
        if part == "curve":
            points = {p["eraser"]: p for each in found for p in each["points"]}
            order = [name for name in ORDER if name in points]
            whole["points"] = [points[name] for name in order]
            whole["rows"] = curve_rows(whole["points"], size, int(seed))
            whole["seconds"] = sum(each["seconds"] for each in found)
            whole["finished"] = len(order) == len(ORDER)
        parts[key] = whole


def speed(progress: Progress) -> dict:
    """A full sound evaluation of captured states, and a sample of it by loops."""
    rng = torch_rng(0, "speed")
    labels = np.repeat([1, 0], 40)
    models = [torch.randn(31, 80, 576, generator=rng) for _ in range(11)]
    start = time.perf_counter()
    membership({"last": models[0]}, labels, n_permutations=1000, progress=progress)
    first = time.perf_counter() - start
    for states in models[1:]:
        membership({"last": states}, labels, n_permutations=1000, progress=progress)
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
    parser.add_argument("--take", type=Path, help="take in a folder; measure nothing")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--permutations", type=int, default=199)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--root", type=Path, default=cache_root() / "worlds")
    parser.add_argument("--zoo", type=Path, default=cache_root() / "zoo")
    parser.add_argument("--tuning-zoo", type=Path, default=cache_root() / "zoo")
    asked = parser.parse_args()
    document = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    parts = document.get("parts", {})

    def keep() -> None:
        document.update(
            {
                "command": "python -m benchmarks.pga.suite " + " ".join(sys.argv[1:]),
                "commit": commit(),
                "machine": machine(),
                "threads": torch.get_num_threads(),
                "families": list(FAMILIES),
                "rows": [each for part in parts.values() for each in part["rows"]],
                "parts": parts,
            }
        )
        RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        write_page(document)

    if asked.take is not None:
        take(asked.take, parts)
        keep()
        return
    with Bars() as progress:
        for name in asked.parts.split(","):
            start, kind = time.perf_counter(), name.split(":")[0]
            if kind in WORLDS and name.count(":") == 2:
                found = measure(
                    name,
                    asked.root,
                    progress,
                    device=asked.device,
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
            elif name == "devices":
                found = devices(asked.root, parts.get("curve:forty:0"), progress)
            elif name == "views":
                found = views(asked.root, progress)
            elif name == "equivalence":
                found = equivalence(asked.repeats // 4, asked.root, progress)
            else:
                parser.error(f"there is no part {name!r}")
            parts[name] = found | {
                "commit": commit(),
                "machine": machine(),
                "device": asked.device if kind in WORLDS else "cpu",
                "threads": torch.get_num_threads(),
                "seconds": round(time.perf_counter() - start),
            }
            keep()
    for each in document["rows"]:
        print(f"{each['figure']}: {each['value']:.3g}", flush=True)


if __name__ == "__main__":
    main()
