"""Probe-geometry alignment: the published toy again, under two protocols.

Each part is kept as it is done. Those of a world are named by part, size and seed
(``benchmarks.pga.worlds``): ``toy:published:0`` trains the paper's world and every
eraser of it, about twenty minutes on one core; ``claims:small:0`` is ``exhume pga``,
``curve:forty:0`` every eraser at several strengths, whose settings ``--take`` divides.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
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

from benchmarks.harness.results import (
    Row,
    at_least,
    at_most,
    commit,
    machine,
    merge,
    read,
    row,
)
from benchmarks.harness.runner import Run, Suite
from benchmarks.pga import simulated, worlds
from benchmarks.pga.curve import NEVER, curve, curve_rows, settings
from benchmarks.pga.devices import devices
from benchmarks.pga.membership_axis import axis, axis_rows
from benchmarks.pga.page import PAGE
from benchmarks.pga.passages import passages
from benchmarks.pga.views import views
from benchmarks.pga.worlds import EPOCHS, SHARES
from capture.checkpoints.cache import cache_root
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
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


def facts(run: Run, stamps: dict[str, Any]) -> dict[str, Any]:
    """What a part keeps of how it was made."""
    known = stamps["commit"]
    return {
        "commit": run.asked.commit if known == "unknown" else known,
        "machine": stamps["machine"],
        "device": run.clock.device,
        "threads": run.clock.threads,
    }


def _keep(run: Run, suite: Suite, rows: list[Row], stamps: dict) -> dict[str, Any]:
    """The part in the place of an earlier one, and the rows of all parts."""
    if run.part == "others":
        parts = run.payload
    else:
        part = {"rows": rows, "seconds": run.seconds, "finished": True}
        part |= facts(run, stamps) | run.payload
        parts = run.document.get("parts", {}) | {run.part: part}
    return (
        run.document
        | stamps
        | {
            "families": list(FAMILIES),
            "rows": [row for part in parts.values() for row in part["rows"]],
            "parts": parts,
        }
    )


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


def kept(name: str = "", **more: Any) -> Callable:
    """Make a function a part that is kept whole: rows, and all else it gives."""

    def add(make: Callable[[Run], dict[str, Any]]) -> Callable:
        def measure(run: Run) -> Iterator[Row]:
            found = dict(make(run))
            rows = found.pop("rows")
            run.payload |= found
            yield from rows

        measure.__doc__ = make.__doc__
        SUITE.part(name or make.__name__, **more)(measure)
        return make

    return add


def earlier(run: Run) -> dict[str, Any]:
    """What there is of a part that is to go on; empty where it is to be made anew."""
    return run.document.get("parts", {}).get(run.part, {}) if run.asked.resume else {}


def keeping(run: Run) -> Callable[[dict], None]:
    """Keeps what there is of a part after every model."""
    stamps = {"commit": commit(), "machine": machine()}
    run.start -= earlier(run).get("seconds", 0)

    def keep(found: dict) -> None:
        part = found | facts(run, stamps) | {"seconds": run.seconds, "finished": False}
        run.document.setdefault("parts", {})[run.part] = part
        run.save()

    return keep


@kept()
def noise(run: Run) -> dict[str, Any]:
    """States without information."""
    return simulated.noise(run.asked.draws, run.asked.permutations, run.progress)


@kept("speed")
def speed_part(run: Run) -> dict[str, Any]:
    """A full sound evaluation, and readers in loops."""
    return speed(SILENT)


@kept()
def power(run: Run) -> dict[str, Any]:
    """A planted signal, by number of sequences."""
    done = run.document.get("parts", {}).get("power", {}).get("curve", [])
    draws, permutations = run.asked.draws // 4, run.asked.permutations
    return simulated.power(draws, permutations, run.progress, done)


@kept()
def equivalence(run: Run) -> dict[str, Any]:
    """No signal: how many sequences show that."""
    return simulated.equivalence(run.asked.draws // 4, run.asked.root, run.progress)


@kept("claims", keyed=True, keys=("small:0", "forty:0"))
def claims_part(run: Run) -> dict[str, Any]:
    """``exhume pga``: which claims survive."""
    size, seed = run.key
    out = run.asked.root.parent / "bench-pga" / f"{size}-{seed}"
    device = run.clock.device
    return worlds.claims(run.asked.root, out, int(seed), size, run.progress, device)


@kept("curve", keyed=True, keys=("forty:0",))
def curve_part(run: Run) -> dict[str, Any]:
    """Every eraser at several strengths."""
    size, seed = run.key
    before = earlier(run)
    return (
        before
        if before.get("finished")
        else curve(
            size,
            int(seed),
            run.asked.root,
            run.progress,
            epochs=EPOCHS,
            permutations=run.asked.permutations,
            share=SHARES.get(size, 0.5),
            device=run.clock.device,
            shard=run.asked.take,
            done=before.get("points", []),
            keep=keeping(run),
        )
    )


@kept("passages")
def passages_part(run: Run) -> dict[str, Any]:
    """A signature of passages that SmolLM2 knows."""
    return passages(499, run.progress)


@kept("toy", keyed=True, keys=("published:0",))
def toy_part(run: Run) -> dict[str, Any]:
    """The published toy: every eraser scored on the keys it saw."""
    _, seed = run.key
    root, device = run.asked.root, run.clock.device
    return worlds.toy(root, int(seed), run.progress, device, keeping(run))


@kept("world", keyed=True)
def world_part(run: Run) -> dict[str, Any]:
    """A world with its twin, and what its models know."""
    size, seed = run.key
    device = run.clock.device
    return worlds.make_world(run.asked.root, int(seed), size, run.progress, device)


@kept("axis", default=False)
def axis_part(run: Run) -> dict[str, Any]:
    """The membership axis on models of the zoo, which must be there."""
    held_out, tuning = [("llama", 10), ("gpt2", 10)], [("llama", 0), ("llama", 1)]
    models = axis(run.asked.zoo, "held out", held_out, run.progress)
    models += axis(run.asked.tuning_zoo, "tuning", tuning, run.progress)
    return {"rows": axis_rows(models), "models": models}


@kept("devices", default=False)
def devices_part(run: Run) -> dict[str, Any]:
    """Points of a GPU again, on the CPU."""
    there = run.document.get("parts", {}).get("curve:forty:0")
    return devices(run.asked.root, there, run.progress)


@kept("views", default=False)
def views_part(run: Run) -> dict[str, Any]:
    """Where what an eraser leaves is found."""
    return views(run.asked.root, run.progress)


@SUITE.part(default=False)
def others(run: Run) -> Iterator[Row]:
    """Parts measured elsewhere, from the results in --source."""
    if run.asked.source is None:
        raise InputError("there is nothing to take in", fix="Name a folder by --source")
    run.payload = taken(run.asked.source, run.document.get("parts", {}))
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
    rows = [
        row(
            "full sound evaluation: 31 sites, 80 sequences, 7 families, 1,000 "
            "permutations of each of 11 models",
            seconds,
            at_most(600),
            "s",
            first_model=round(first, 1),
            threads=torch.get_num_threads(),
        ),
        row(
            "times faster than scikit-learn's readers in loops (extrapolated from one "
            "site and label vector)",
            whole / seconds,
            at_least(),
            "ratio",
            "LogisticRegression, 2 MLPClassifier, SVC, KNeighbors; no forest",
            loop_seconds=round(loops, 2),
        ),
    ]
    return {"rows": rows}


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
