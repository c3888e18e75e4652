"""Edge attribution against real interventions, a public implementation, and the zoo.

Run by hand: ``python -m benchmarks.circuits``. The peer is circuitkit 0.2.0, whose
dependencies do not fit ours: unpack its wheel somewhere and pass the folder as
``--peer``; only its edge attribution is loaded, from there. Models of the zoo are kept
in ``--root`` and not made twice. A part that is not asked for keeps its earlier rows.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from attribution.anatomy import find_anatomy
from attribution.circuit import cut_metric
from attribution.eap import Method, score_edges
from attribution.graph import build_graph
from attribution.metrics import make_batch, make_metric
from attribution.pairs import PromptPairs, pairs_of_items
from attribution.stream import Subject as Scored
from attribution.stream import run
from audits.circuit import run_circuit
from audits.circuit_evidence import TITLES, TRANSPLANTED
from audits.config import make_config
from audits.stages import peak_memory
from audits.subjects import Subject
from benchmarks.timing import Clock, Rows, commit, machine
from capture.cache import cache_root
from capture.hooks import evaluating, patch
from capture.items import read_items
from capture.models import open_checkpoint
from evidence.progress import SILENT
from evidence.sequences import Sequences
from testbeds.bios import STANDARD, build_bios
from testbeds.capitals import capital_items
from testbeds.families import FAMILIES
from testbeds.smol import fetch
from testbeds.zoo import build_zoo, sized

RESULT = Path(__file__).parent / "results" / "circuits.json"
PARTS = ("effects", "sums", "cost", "peer", "zoo")
PAIRS, RANDOM, LARGEST = 16, 300, 50
READOUT_EDITS = ("head_only", "last_block_refuse")
RETRAINS = ("retrain_1", "retrain_2", "twin")


def bios_case(root: Path, seed: int, family: str):
    """A bios original and pairs of its forgotten people."""
    world = build_bios(sized(STANDARD, family), seed, root / "worlds")
    checkpoint = open_checkpoint(world.original)
    items = read_items(world.forget)
    return checkpoint.load(), few_pairs(checkpoint.tokenizer, items)


def smol_case():
    """SmolLM2 and pairs of capitals it knows."""
    checkpoint = open_checkpoint(fetch())
    items = capital_items(checkpoint, seed=0).forget
    return checkpoint.load(), few_pairs(checkpoint.tokenizer, items)


def few_pairs(tokenizer, items) -> PromptPairs:
    pairs = pairs_of_items(tokenizer, items, np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(len(pairs))[:PAIRS]
    return pairs[order.tolist()]


def effects(rows: Rows, asked: argparse.Namespace) -> None:
    """How well scores predict what cutting one edge does, random and large ones."""
    cases = [(f"bios {f}", lambda f=f: bios_case(asked.root, 0, f)) for f in FAMILIES]
    for name, make in [*cases, ("SmolLM2", smol_case)]:
        model, pairs = make()
        scores = {
            label: score_edges(model, pairs, method=method)
            for label, method in (("EAP-IG, m=5", Method()), ("EAP", Method("eap")))
        }
        best = scores["EAP-IG, m=5"]
        graph = best.graph
        rng = np.random.default_rng(2)
        chosen = rng.permutation(graph.n_edges)[:RANDOM].tolist()
        chosen += [edge for edge in best.top(LARGEST).tolist() if edge not in chosen]
        cuts = [graph.mask([edge]) for edge in chosen]
        real = cut_metric(model, pairs, cuts).mean(1) - best.clean.mean()
        for label, each in scores.items():
            guess = each.values.mean(0)[chosen]
            rows.add(
                f"{name}: {label} against cutting each edge, Pearson",
                float(np.corrcoef(guess, real)[0, 1]),
                0.95 if label != "EAP" else None,
                ">=",
                "correlation",
                f"{RANDOM} random edges and the {LARGEST} of largest score",
                0,
                len(chosen),
            )
            large = np.isin(chosen, best.top(LARGEST))
            rows.add(
                f"{name}: {label}, slope of scores on effects, largest edges",
                float(guess[large] @ real[large] / (real[large] @ real[large])),
                None,
                ">=",
                "ratio",
                "cutting the edge",
                0,
                int(large.sum()),
            )


def sums(rows: Rows, asked: argparse.Namespace) -> None:
    """Edges against their node's score by plain autograd; sizes of SmolLM2's graph."""
    cases = [(f"bios {f}", lambda f=f: bios_case(asked.root, 0, f)) for f in FAMILIES]
    for name, make in [*cases, ("SmolLM2", smol_case)]:
        model, pairs = make()
        scores = score_edges(model, pairs, method=Method("eap"))
        own = node_scores(model, pairs)
        gap = np.abs(scores.nodes() - own).max() / np.abs(own).max()
        figure = f"{name}: a node's edges against the node, largest difference"
        rows.add(figure, float(gap), 1e-5, "<=", "of the largest", "", 0, own.size)
        if name == "SmolLM2":
            graph = scores.graph
            for what, value, target in (
                ("writers", len(graph.writers), 301),
                ("edges", graph.n_edges, 70_651),
            ):
                rows.add(
                    f"SmolLM2: {what}", value, target, ">=", "count", "by hand", 0, 1
                )


def node_scores(model, pairs: PromptPairs) -> np.ndarray:
    """(pair, writer) by one backward pass of the whole model, without our readers."""
    anatomy = find_anatomy(model)
    subject = Scored(model, anatomy, build_graph(anatomy), anatomy.readout)
    every = list(range(len(pairs)))
    batch = make_batch(pairs, every, "logit_difference", torch.device("cpu"))
    clean = run(subject, batch.clean, batch.where)
    corrupt = run(subject, batch.corrupt, batch.where)
    metric = make_metric("logit_difference", batch, clean.logits)
    kept = {}

    def tap(name):
        def keep(value):
            value = value.detach().requires_grad_() if name == "embed" else value
            kept[name] = value.view_as(value)
            return kept[name]

        return keep

    edits = {name: tap(name) for name in clean.raw}
    with evaluating(model), patch(model, edits, where=anatomy.places):
        logits = model(**batch.clean.model_inputs, use_cache=False).logits
    slopes = torch.autograd.grad(metric(logits[batch.where]).sum(), list(kept.values()))
    parts = []
    for (name, _), slope in zip(kept.items(), slopes, strict=True):
        shift = slope * (corrupt.raw[name] - clean.raw[name]) * batch.mask[..., None]
        heads = anatomy.n_heads if name.startswith("z.") else 1
        parts.append(shift.unflatten(-1, (heads, -1)).sum((1, 3)))
    return torch.cat(parts, 1).numpy()


def cost(rows: Rows, asked: argparse.Namespace) -> None:
    """Time of EAP-IG on SmolLM2 over the plain forward of the same pairs."""
    clock = Clock(asked.threads, asked.repeats)
    model, pairs = smol_case()
    batch = make_batch(
        pairs, list(range(len(pairs))), "logit_difference", torch.device("cpu")
    )
    inputs = batch.clean.model_inputs | {"use_cache": False}
    with torch.no_grad():
        model(**inputs)
        forward = clock.times(lambda: model(**inputs))
    scoring = clock.times(lambda: score_edges(model, pairs))
    rows.add(
        "SmolLM2: edge EAP-IG, m=5, 16 pairs, over the plain forward",
        float(np.median(scoring) / np.median(forward)),
        50,
        "<=",
        "x",
        "forward of the clean prompts",
        float(np.ptp(scoring) / np.median(forward) / 2),
        len(scoring),
        own_seconds=float(np.median(scoring)),
        peer_seconds=float(np.median(forward)),
    )
    peak = peak_memory() / 2**30
    rows.add("SmolLM2: peak memory of it", peak, 6, "<=", "GiB", "", 0, 1)


def peer(rows: Rows, asked: argparse.Namespace) -> None:
    """Scores and time against the public implementation, on GPT-2's shape."""
    if asked.peer is None:
        print("peer: left out; pass --peer FOLDER of the unpacked circuitkit wheel")
        return
    from benchmarks.circuitkit import Peer

    clock = Clock(asked.threads, asked.repeats)
    for name, sizes in (
        ("a small GPT-2", {"n_embd": 48, "n_layer": 4, "n_head": 4}),
        ("GPT-2 small", {"n_embd": 768, "n_layer": 12, "n_head": 12}),
    ):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=1000,
            n_positions=32,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=None,
            **sizes,
        )
        model = GPT2LMHeadModel(config).eval()
        ids = torch.randint(0, 1000, (2, PAIRS, 14))
        ids[1, :, 4:] = ids[0, :, 4:]  # the last is the answer
        pairs = PromptPairs(
            Sequences(tuple(map(tuple, ids[0].tolist())), (13,) * PAIRS),
            Sequences(tuple(map(tuple, ids[1].tolist())), (13,) * PAIRS),
            tuple(((ids[0, :, -1] + 7) % 1000).tolist()),
            tuple(map(str, range(PAIRS))),
            tuple(map(str, range(PAIRS))),
        )
        other = Peer(asked.peer, model, pairs)
        method = Method("inputs", 5, "right")
        ours = score_edges(model, pairs, method=method)
        theirs = other.scores(ours.graph, 5)
        gap = np.abs(ours.values.mean(0) - theirs).max() / np.abs(theirs).max()
        figure = f"{name}: EAP-IG edges against circuitkit 0.2.0, largest difference"
        n = ours.graph.n_edges
        rows.add(figure, float(gap), 1e-4, "<=", "of the largest", "circuitkit", 0, n)
        score = partial(score_edges, model, pairs, method=method)
        own, peers = clock.times(score), clock.times(partial(other.run, 5))
        rows.add(
            f"{name}: time over circuitkit's",
            float(np.median(own) / np.median(peers)),
            0.5,
            "<=",
            "x",
            "circuitkit",
            float(np.ptp(own) / np.median(peers) / 2),
            len(own),
            own_seconds=float(np.median(own)),
            peer_seconds=float(np.median(peers)),
        )


def zoo(rows: Rows, asked: argparse.Namespace) -> None:
    """CAD with the original's readout, on models of known state."""
    config = make_config({"device": "cpu"})
    for name, kinds, sense, target in (
        ("readout and refusal edits", READOUT_EDITS, "<=", 0.2),
        ("scratch retrains", RETRAINS, ">=", 0.5),
    ):
        specimens = build_zoo(
            asked.root, seeds=asked.seeds, families=asked.families, only=kinds
        )
        found: dict[str, float] = {}
        for specimen in specimens:
            original = open_checkpoint(specimen.world.original)
            candidate = open_checkpoint(specimen.model)
            axis = run_circuit(
                {
                    "original": Subject.of("original", original),
                    "unlearned": Subject.of("unlearned", candidate),
                },
                original.tokenizer,
                read_items(specimen.world.forget),
                read_items(specimen.world.never_taught),
                config,
                device="cpu",
                notes=(),
                progress=SILENT,
            )
            cad = axis.details["normalised"][TITLES[TRANSPLANTED]]["normalised_cad"]
            found[specimen.name] = cad
            print(f"{specimen.name}: CAD {cad:.2f}, {axis.status}", flush=True)
        values = np.array(list(found.values()))
        good = values <= target if sense == "<=" else values >= target
        rows.add(
            f"{name} with CAD, original's readout, {sense} {target}",
            float(good.mean()),
            0.95,
            ">=",
            "share of models",
            "state known by construction",
            0,
            len(values),
            values={key: round(value, 3) for key, value in found.items()},
        )


def main() -> None:
    """Run the parts asked for and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--root", type=Path, default=cache_root() / "zoo")
    parser.add_argument("--seeds", type=int, nargs="*", default=[10, 11])
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--peer", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = Rows()
    for part in asked.only:
        rows.part = part
        globals()[part](rows, asked)
    if asked.dry:
        return
    before = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []
    measured = {row["part"] for row in rows.rows}
    kept = [row for row in before if row["part"] not in measured]
    document = {
        "command": "python -m benchmarks.circuits " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": machine(),
        "threads": asked.threads,
        "rows": [*rows.rows, *kept],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
