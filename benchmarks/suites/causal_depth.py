"""Do patched states tell models that know from models that never knew?

Models of the tuning part of the zoo are audited with ``behaviour`` and
``causal_depth``; edits of known size in bins are quantised. Figures count operations and
errors, none of them time.
"""

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audits.output.manifest import code_hash
from benchmarks.harness import results
from benchmarks.harness.results import Row, at_least, at_most, roc_auc
from benchmarks.harness.runner import Run, Suite
from benchmarks.harness.zoo import BY_CONSTRUCTION, audited, check_part, known_model, zoo_options
from capture.data.items import read_items
from erasure.weights.quantization import edit_survival, quantize
from testbeds.worlds.biographies import STANDARD, train_model
from testbeds.zoo.build import build_zoo, sized

LATE_EDITS = ("last_block_relabel", "last_block_refuse", "last_block_lora")
KNOWS = ("retain_tuned", *LATE_EDITS, "head_only")
NEVER_KNEW = ("twin", "twin_tuned", "retrain_1", "retrain_2")
FLOORS = ("never_taught", "reference")
# Starting weights and order of the reference: those of no kind in the zoo.
REFERENCE = 9000
row = partial(results.row, peer=BY_CONSTRUCTION)


def _options(parser: argparse.ArgumentParser) -> None:
    zoo_options(parser, seeds=(0, 1, 2))
    parser.add_argument("--family", default="llama")
    parser.add_argument("--workers", type=int, default=1)


SUITE = Suite(
    "causal-depth",
    "Causal depth on tuning models that know and that never knew; edits of known size.",
    result="depth",
    options=_options,
    threads=1,
)


def run_seed(root: Path, family: str, seed: int) -> list[dict[str, Any]]:
    """One record a model of a world and floor."""
    torch.set_num_threads(1)
    found = []
    for kind in (*KNOWS, *NEVER_KNEW):
        made = build_zoo(root, seeds=[seed], families=[family], only=[kind])[0]
        known = known_model(made)
        (reference,) = known.references
        if not reference.is_dir():
            config = sized(STANDARD, made.family)
            retain = read_items(known.retain)
            train_model(config, seed + REFERENCE, retain, reference)
        for floor in FLOORS:
            place = root / "depth" / code_hash()[:12]
            done = audited(known, floor, place, axes=("behaviour", "causal_depth"))
            axis = done.axes["causal_depth"]
            main = axis.main_reading
            found.append(
                {
                    "model": made.name,
                    "kind": kind,
                    "floor": floor,
                    "verdict": done.verdict,
                    "status": axis.status,
                    "residual": main.residual if main else None,
                    "p": main.p_value if main else None,
                    "depth": axis.details["depth"],
                }
            )
    return found


@SUITE.part("zoo")
def measure(run: Run) -> Iterator[Row]:
    """Losses and votes against the true states, and what four bits leave of an edit."""
    args = run.args
    check_part("tuning", seeds=args.seeds)
    # A root for each world: the list of models in it has one writer.
    roots = [args.root / f"seed-{seed}" for seed in args.seeds]
    families = [args.family] * len(roots)
    with ProcessPoolExecutor(args.workers) as pool:
        worlds = list(pool.map(run_seed, roots, families, args.seeds))
    cases = [case for world in worlds for case in world]
    run.payload = {"seeds": args.seeds, "family": args.family, "cases": cases}
    yield from depth_figures(cases)
    yield from bin_figures()
    for kind in (*KNOWS, *NEVER_KNEW):
        for floor in FLOORS:
            here = [c for c in cases if c["kind"] == kind and c["floor"] == floor]
            small, mean = (
                [c["depth"]["unrelated"][f"{name}_loss"] for c in here]
                for name in ("smallest", "mean")
            )
            print(
                f"{kind}, {floor}: smallest {np.min(small):.2f} to {np.max(small):.2f},"
                f" mean {np.min(mean):.2f} to {np.max(mean):.2f},"
                f" {sorted(c['status'] for c in here)}"
            )


def depth_figures(cases: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """How well losses and votes agree with the true states."""
    for floor, against, target in (
        ("reference", "reference-1", 0.98),
        ("never_taught", "unrelated", 0.97),
    ):
        for what in ("uds", "smallest_loss", "mean_loss"):
            yes, no = (
                [
                    -loss
                    for case in cases
                    if case["floor"] == floor and (case["kind"] in KNOWS) == knows
                    if (loss := case["depth"].get(against, {}).get(what)) is not None
                ]
                for knows in (True, False)
            )
            figure = f"AUC of {what}, knows against never knew, {floor}"
            goal, n = at_least(target), len(yes) + len(no)
            yield row(figure, roc_auc(yes, no), goal, "AUC", n=n)
    hidden = [case for case in cases if case["kind"] in KNOWS]
    never = [case for case in cases if case["kind"] in NEVER_KNEW]
    late = [case for case in cases if case["kind"] in LATE_EDITS]
    largest = max(case["depth"]["unrelated"]["smallest_loss"] for case in late)
    figure = "smallest loss of an edit of the last block"
    yield row(figure, largest, at_most(0.0), "share", n=len(late))
    found = sum(case["status"] == "retained" for case in hidden) / len(hidden)
    yield row("knows, axis says retained", found, at_least(), "share", n=len(hidden))
    false = sum(case["status"] == "retained" for case in never)
    yield row("never knew, axis says retained", false, at_most(0), "n", n=len(never))
    unread = sum(case["residual"] is None for case in never) / len(never)
    figure = "never knew, states the original cannot read"
    yield row(figure, unread, at_most(), "share", n=len(never))
    tested = [case["p"] for case in never if case["p"] is not None]
    figure = "least p of a model that never knew"
    yield row(figure, min(tested), at_least(), "p", n=len(tested))


def bin_figures() -> Iterator[Row]:
    """What quantisation leaves of edits of known size on Gaussian weights."""
    rng = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(512, 1024, generator=rng)
    edit = torch.randn(512, 1024, generator=rng)
    width = float(quantize(weight).bin_widths.mean())
    for bins, same, cosine in (
        (0.01, at_least(0.98), at_most(0.2)),
        (10, at_most(0.15), at_least(0.98)),
    ):
        left = edit_survival(weight, weight + bins * width * edit / edit.std())
        name = f"an edit of {bins} bins (RMS) under NF4"
        yield row(f"{name}, codes kept", left.same_codes, same, "share")
        figure = f"{name}, cosine with what is left of it"
        yield row(figure, left.fidelity, cosine, "cosine")
