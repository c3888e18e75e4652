"""Probe-geometry alignment: the published toy again, under two protocols.

Each part is kept as it is done. Those of a world are named by part, size and seed
(``benchmarks.pga.worlds``): ``toy:published:0`` trains the paper's world and every
eraser of it, about twenty minutes on one core; ``claims:small:0`` is ``exhume pga``,
``curve:forty:0`` every eraser at several strengths, whose settings ``--take`` divides.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from benchmarks.harness.results import Row, at_least, at_most, merge, read, row
from benchmarks.harness.runner import Measure, Run, Suite
from benchmarks.pga import simulated, worlds
from benchmarks.pga.curve import NEVER, curve, curve_rows, settings
from benchmarks.pga.devices import devices
from benchmarks.pga.membership_axis import axis
from benchmarks.pga.page import PAGE
from benchmarks.pga.passages import passages
from benchmarks.pga.views import views
from benchmarks.pga.worlds import EPOCHS
from capture.checkpoints.cache import cache_root
from evidence.errors import InputError
from evidence.progress import SILENT
from evidence.seeds import torch_rng
from probes.sweeps.membership_test import FAMILIES, membership

ORDER = ("original", NEVER, *settings(EPOCHS))


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--permutations", type=int, default=199)
    add("--draws", type=int, default=200, help="of made-up states; of texts half of it")
    add("--root", type=Path, default=cache_root() / "worlds")
    add("--zoo", type=Path, default=cache_root() / "zoo")
    add("--tuning-zoo", type=Path, default=cache_root() / "zoo")
    add("--source", type=Path, help="folder of results, for the part others")
    add("--resume", action="store_true", help="go on with parts that were cut off")
    add("--commit", default="", help="where there is no repository")


def _keep(run: Run, suite: Suite, rows: list[Row], stamps: dict) -> dict[str, Any]:
    """The part in the place of an earlier one, and the rows of all parts."""
    if run.part == "others":
        parts = run.payload
    else:
        known = ("commit", "machine", "device", "threads")
        part = {"rows": rows, "seconds": run.seconds, "finished": True}
        part |= {name: stamps[name] for name in known} | run.payload
        if not run.key:  # All but the parts of a world are measured on the CPU.
            part["device"] = "cpu"
        if part["commit"] == "unknown":
            part["commit"] = run.args.commit
        parts = run.document.get("parts", {}) | {run.part: part}
    rows = [row for part in parts.values() for row in part["rows"]]
    whole = {"families": list(FAMILIES), "rows": rows, "parts": parts}
    return run.document | stamps | whole


SUITE = Suite(
    "pga",
    "Probe-geometry alignment: erasers of memorised codes under two protocols.",
    result="pga",
    pages=(PAGE,),
    options=_options,
    devices=("cpu", "cuda"),
    bars=True,
    digits=4,
    keep=_keep,
)


def others(run: Run) -> Iterator[Row]:
    """Parts measured elsewhere, from the results in --source."""
    if run.args.source is None:
        raise InputError("there is nothing to take in", fix="Name a folder by --source")
    run.payload = taken(run.args.source, run.document.get("parts", {}))
    yield from ()


def taken(folder: Path, parts: dict[str, Any]) -> dict[str, Any]:
    """Parts of a result with those of the results in a folder in their places.

    Args:
        folder: Of files that ``--result`` wrote; shards of a curve become one part.
        parts: By name.
    """
    shards: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        for name, part in read(path)["parts"].items():
            shards.setdefault(name, []).append(part)
    found = dict(parts)
    for name, each in shards.items():
        found[name] = whole = dict(each[0])
        if name.startswith("curve:"):
            _, size, seed = name.split(":")
            points: list[dict] = []
            for shard in each:
                points = merge(points, shard["points"], ["eraser"])
            points.sort(key=lambda point: ORDER.index(point["eraser"]))
            whole["points"] = points
            whole["rows"] = curve_rows(points, size, int(seed))
            whole["seconds"] = sum(shard["seconds"] for shard in each)
            whole["finished"] = len(points) == len(ORDER)
    return found


def speed(run: Run) -> Iterator[Row]:
    """A full sound evaluation of captured states, and a sample of it by loops."""
    rng = torch_rng(0, "speed")
    labels = np.repeat([1, 0], 40)
    models = [torch.randn(31, 80, 576, generator=rng) for _ in range(11)]
    start = time.perf_counter()
    membership({"last": models[0]}, labels, n_permutations=1000, progress=SILENT)
    first = time.perf_counter() - start
    for states in models[1:]:
        membership({"last": states}, labels, n_permutations=1000, progress=SILENT)
    seconds = time.perf_counter() - start
    loops = _one_label_vector_by_loops(models[0][0].numpy(), labels)
    whole = loops * 31 * 1001 * len(models)
    yield row(
        "full sound evaluation: 31 sites, 80 sequences, 7 families, 1,000 "
        "permutations of each of 11 models",
        seconds,
        at_most(600),
        "s",
        first_model=round(first, 1),
        threads=run.clock.threads,
    )
    yield row(
        "times faster than scikit-learn's readers in loops (extrapolated from one "
        "site and label vector)",
        whole / seconds,
        at_least(),
        "ratio",
        "LogisticRegression, 2 MLPClassifier, SVC, KNeighbors; no forest",
        loop_seconds=round(loops, 2),
    )


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
                model = make_pipeline(StandardScaler(), reader).fit(x[~test], labels[~test])
            model.predict(x[test])
    return time.perf_counter() - start


def unless_finished(measure: Measure) -> Measure:
    """With --resume a part that is finished stays as it is."""

    @wraps(measure)
    def resumed(run: Run) -> Iterator[Row]:
        before = run.document.get("parts", {}).get(run.part, {})
        if run.args.resume and before.get("finished"):
            run.payload = before
            yield from before["rows"]
        else:
            yield from measure(run)

    return resumed


for measure, more in (
    (simulated.noise, {}),
    (speed, {}),
    (simulated.power, {}),
    (simulated.equivalence, {}),
    (worlds.claims, {"keyed": True, "keys": ("small:0", "forty:0")}),
    (curve, {"keyed": True, "keys": ("forty:0",), "divided": True}),
    (passages, {}),
    (worlds.toy, {"keyed": True, "keys": ("published:0",)}),
    (worlds.world, {"keyed": True}),
    (axis, {"default": False}),
    (devices, {"default": False}),
    (views, {"default": False}),
    (others, {"default": False}),
):
    SUITE.part(measure.__name__, **more)(unless_finished(measure))
