"""Edge scores against real interventions, known circuits and a public implementation.

Parts of ``benchmarks.suites.circuits.suite``: each takes the table of rows and what was
asked for.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from attribution.circuits.circuit import ablated_metric, top_edges
from attribution.circuits.eap import EapMethod, score_edges
from attribution.circuits.forward_backward import InstrumentedModel, run_forward
from attribution.circuits.graph import build_graph
from attribution.circuits.metrics import make_batch, make_metric
from attribution.circuits.prompt_pairs import PromptPairs, pair_items
from attribution.circuits.structure import find_structure
from audits.core.workspace import peak_memory
from benchmarks.harness.results import Clock, Rows
from capture.checkpoints.open import open_checkpoint
from capture.data.items import read_items
from capture.data.sequences import Sequences
from capture.network.hooks import evaluation_mode, patch
from testbeds.worlds.biographies import STANDARD, build_bios
from testbeds.worlds.capitals import capital_items
from testbeds.worlds.smollm2 import fetch
from testbeds.zoo.build import sized
from tests.attribution.circuits.induction_model import (
    heads,
    induction_edges,
    induction_pairs,
    trained_model,
)
from tests.helpers.wired_transformers import TRUE_EDGES, wired, wired_pairs

PAIRS, RANDOM, LARGEST = 16, 300, 50


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


def cases(asked: argparse.Namespace):
    """Name and maker of every model looked at."""
    seed = asked.seeds[0]
    return [
        *(
            (f"bios {family}", partial(bios_case, asked.root, seed, family))
            for family in asked.families
        ),
        ("SmolLM2", smol_case),
    ]


def few_pairs(tokenizer, items) -> PromptPairs:
    pairs = pair_items(tokenizer, items, np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(len(pairs))[:PAIRS]
    return pairs[order.tolist()]


def effects(rows: Rows, asked: argparse.Namespace) -> None:
    """How well scores predict what cutting one edge does, random and large ones."""
    for name, make in cases(asked):
        model, pairs = make()
        scores = {
            label: score_edges(model, pairs, method=method)
            for label, method in (
                ("EAP-IG, m=5", EapMethod()),
                ("EAP", EapMethod("eap")),
            )
        }
        best = scores["EAP-IG, m=5"]
        graph = best.graph
        rng = np.random.default_rng(2)
        chosen = rng.permutation(graph.n_edges)[:RANDOM].tolist()
        chosen += [edge for edge in best.top(LARGEST).tolist() if edge not in chosen]
        cuts = [graph.mask([edge]) for edge in chosen]
        real = ablated_metric(model, pairs, cuts).mean(1) - best.clean.mean()
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
            for what, here in (("random", ~large), ("largest", large)):
                rows.add(
                    f"{name}: {label} against cutting each edge, {what} ones alone",
                    float(np.corrcoef(guess[here], real[here])[0, 1]),
                    None,
                    ">=",
                    "correlation",
                    "cutting the edge",
                    0,
                    int(here.sum()),
                )
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
    for name, make in cases(asked):
        model, pairs = make()
        scores = score_edges(model, pairs, method=EapMethod("eap"))
        own = node_scores(model, pairs)
        gap = np.abs(scores.node_scores() - own).max() / np.abs(own).max()
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
    anatomy = find_structure(model)
    subject = InstrumentedModel(model, anatomy, build_graph(anatomy), anatomy.readout)
    every = list(range(len(pairs)))
    batch = make_batch(pairs, every, "logit_difference", torch.device("cpu"))
    clean = run_forward(subject, batch.clean, batch.metric_mask)
    corrupt = run_forward(subject, batch.corrupt, batch.metric_mask)
    metric = make_metric("logit_difference", batch, clean.logits)
    kept = {}

    def tap(name):
        def keep(value):
            value = value.detach().requires_grad_() if name == "embed" else value
            kept[name] = value.view_as(value)
            return kept[name]

        return keep

    edits = {name: tap(name) for name in clean.by_site}
    with evaluation_mode(model), patch(model, edits, known_sites=anatomy.sites):
        logits = model(**batch.clean.model_inputs, use_cache=False).logits
    slopes = torch.autograd.grad(
        metric(logits[batch.metric_mask]).sum(), list(kept.values())
    )
    parts = []
    for (name, _), slope in zip(kept.items(), slopes, strict=True):
        shift = (
            slope
            * (corrupt.by_site[name] - clean.by_site[name])
            * batch.token_mask[..., None]
        )
        heads = anatomy.n_heads if name.startswith("z.") else 1
        parts.append(shift.unflatten(-1, (heads, -1)).sum((1, 3)))
    return torch.cat(parts, 1).numpy()


def known(rows: Rows, asked: argparse.Namespace) -> None:
    """Circuits whose edges are known before they are scored."""
    scores = score_edges(wired(), wired_pairs())
    graph = scores.graph
    decoys = {e for e in graph.edges if "head.0.3" in e or "mlp.0" in e}
    learned = trained_model()
    found = score_edges(learned, induction_pairs())
    planted = (
        ("wired by hand", scores, set(TRUE_EDGES), decoys, len(TRUE_EDGES)),
        (
            "induction heads of a trained model",
            found,
            set(induction_edges(*heads(learned))),
            set(),
            found.graph.n_edges // 8,
        ),
    )
    for name, table, true, wrong, size in planted:
        chosen = top_edges(table, size)
        top = {table.graph.edges[number] for number in np.flatnonzero(chosen)}
        share = len(true & top) / len(true)
        figure = f"{name}: true edges among the {size} of largest score"
        rows.add(figure, share, 1, ">=", "share", "known by construction", 0, len(true))
        if wrong:
            figure = f"{name}: decoys among them"
            rows.add(figure, len(wrong & top), 0, "<=", "n", "known", 0, len(wrong))


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
    from benchmarks.suites.circuits.circuitkit_peer import Peer

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
        method = EapMethod("inputs", 5, "right")
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
