"""Edge scores against real interventions, known circuits and a public implementation.

Parts of the circuits suite.
"""

import argparse
from collections.abc import Iterator
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
from audits.output.workspace import peak_memory
from benchmarks.harness.results import Row, at_least, at_most, row
from benchmarks.harness.runner import Run
from capture.checkpoints.open import open_checkpoint
from capture.data.items import read_items
from capture.data.sequences import Sequences
from capture.network.hooks import evaluation_mode, patch
from testbeds.worlds.biographies import STANDARD, build_bios
from testbeds.worlds.capitals import capital_items
from testbeds.worlds.random_models import Family
from testbeds.worlds.smollm2 import fetch_smollm2
from testbeds.zoo.build import sized
from tests.attribution.circuits.induction_model import (
    heads,
    induction_edges,
    induction_pairs,
    trained_model,
)
from tests.helpers.wired_transformers import TRUE_EDGES, wired, wired_pairs

PAIRS, RANDOM, LARGEST = 16, 300, 50


def bios_case(root: Path, seed: int, family: Family):
    """A bios original and pairs of its forgotten people."""
    world = build_bios(sized(STANDARD, family), seed, root / "worlds")
    checkpoint = open_checkpoint(world.original)
    items = read_items(world.forget)
    return checkpoint.load(), few_pairs(checkpoint.tokenizer, items)


def smol_case():
    """SmolLM2 and pairs of capitals it knows."""
    checkpoint = open_checkpoint(fetch_smollm2())
    items = capital_items(checkpoint, seed=0).forget
    return checkpoint.load(), few_pairs(checkpoint.tokenizer, items)


def cases(args: argparse.Namespace):
    """Name and maker of every model looked at."""
    seed = args.seeds[0]
    return [
        *(
            (f"bios {family}", partial(bios_case, args.root, seed, family))
            for family in args.families
        ),
        ("SmolLM2", smol_case),
    ]


def few_pairs(tokenizer, items) -> PromptPairs:
    pairs = pair_items(tokenizer, items, np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(len(pairs))[:PAIRS]
    return pairs[order.tolist()]


def effects(run: Run) -> Iterator[Row]:
    """How well scores predict what cutting one edge does, random and large ones."""
    for name, make in cases(run.args):
        model, pairs = make()
        scores = {
            label: score_edges(model, pairs, method=method)
            for label, method in (("EAP-IG, m=5", EapMethod()), ("EAP", EapMethod("eap")))
        }
        best = scores["EAP-IG, m=5"]
        graph = best.graph
        rng = np.random.default_rng(2)
        chosen = rng.permutation(graph.n_edges)[:RANDOM].tolist()
        chosen += [edge for edge in best.top(LARGEST).tolist() if edge not in chosen]
        cuts = [graph.mask([edge]) for edge in chosen]
        real = ablated_metric(model, pairs, cuts).mean(1) - best.clean.mean()
        large = np.isin(chosen, best.top(LARGEST))
        for label, each in scores.items():
            guess = each.values.mean(0)[chosen]
            figure = f"{name}: {label} against cutting each edge"
            yield row(
                f"{figure}, Pearson",
                float(np.corrcoef(guess, real)[0, 1]),
                at_least(0.95 if label != "EAP" else None),
                "correlation",
                f"{RANDOM} random edges and the {LARGEST} of largest score",
                len(chosen),
            )
            for what, here in (("random", ~large), ("largest", large)):
                value = float(np.corrcoef(guess[here], real[here])[0, 1])
                which, n = f"{figure}, {what} ones alone", int(here.sum())
                yield row(which, value, at_least(), "correlation", "cutting the edge", n)
            yield row(
                f"{name}: {label}, slope of scores on effects, largest edges",
                float(guess[large] @ real[large] / (real[large] @ real[large])),
                at_least(),
                "ratio",
                "cutting the edge",
                int(large.sum()),
            )


def sums(run: Run) -> Iterator[Row]:
    """Edges against their node's score by plain autograd; sizes of SmolLM2's graph."""
    for name, make in cases(run.args):
        model, pairs = make()
        scores = score_edges(model, pairs, method=EapMethod("eap"))
        own = node_scores(model, pairs)
        gap = float(np.abs(scores.node_scores() - own).max() / np.abs(own).max())
        figure = f"{name}: a node's edges against the node, largest difference"
        yield row(figure, gap, at_most(1e-5), "of the largest", n=own.size)
        if name == "SmolLM2":
            writers, edges = len(scores.graph.writers), scores.graph.n_edges
            yield row("SmolLM2: writers", writers, at_least(301), "count", "by hand")
            yield row("SmolLM2: edges", edges, at_least(70_651), "count", "by hand")


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
    slopes = torch.autograd.grad(metric(logits[batch.metric_mask]).sum(), list(kept.values()))
    parts = []
    for (name, _), slope in zip(kept.items(), slopes, strict=True):
        shift = slope * (corrupt.by_site[name] - clean.by_site[name]) * batch.token_mask[..., None]
        heads = anatomy.n_heads if name.startswith("z.") else 1
        parts.append(shift.unflatten(-1, (heads, -1)).sum((1, 3)))
    return torch.cat(parts, 1).numpy()


def known(run: Run) -> Iterator[Row]:
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
        yield row(figure, share, at_least(1), "share", "known by construction", len(true))
        if wrong:
            figure = f"{name}: decoys among them"
            yield row(figure, len(wrong & top), at_most(0), "n", "known", len(wrong))


def cost(run: Run) -> Iterator[Row]:
    """Time of EAP-IG on SmolLM2 over the plain forward of the same pairs."""
    model, pairs = smol_case()
    every = list(range(len(pairs)))
    batch = make_batch(pairs, every, "logit_difference", torch.device("cpu"))
    inputs = batch.clean.model_inputs | {"use_cache": False}
    with torch.no_grad():
        model(**inputs)
        forward = run.clock.times(lambda: model(**inputs))
    scoring = run.clock.times(lambda: score_edges(model, pairs))
    figure = "SmolLM2: edge EAP-IG, m=5, 16 pairs, over the plain forward"
    yield _times(figure, scoring, forward, 50, "forward of the clean prompts")
    peak = peak_memory() / 2**30
    yield row("SmolLM2: peak memory of it", peak, at_most(6), "GiB")


def _times(figure: str, own: list[float], peer: list[float], limit: float, against: str) -> Row:
    """Our median time over the peer's, at most ``limit``."""
    seconds, base = float(np.median(own)), float(np.median(peer))
    return row(
        figure,
        seconds / base,
        at_most(limit),
        "x",
        against,
        len(own),
        float(np.ptp(own)) / base / 2,
        own_seconds=seconds,
        peer_seconds=base,
    )


def peer(run: Run) -> Iterator[Row]:
    """Scores and time against the public implementation, on GPT-2's shape."""
    args, clock = run.args, run.clock
    if args.peer is None:
        print("peer: left out; pass --peer FOLDER of the unpacked circuitkit wheel")
        return
    from benchmarks.suites.circuits.circuitkit_peer import Peer

    for name, width, layers, heads_each in (
        ("a small GPT-2", 48, 4, 4),
        ("GPT-2 small", 768, 12, 12),
    ):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=1000,
            n_positions=32,
            n_embd=width,
            n_layer=layers,
            n_head=heads_each,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=None,
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
        other = Peer(args.peer, model, pairs)
        method = EapMethod("inputs", 5, "right")
        ours = score_edges(model, pairs, method=method)
        theirs = other.scores(ours.graph, 5)
        gap = float(np.abs(ours.values.mean(0) - theirs).max() / np.abs(theirs).max())
        figure = f"{name}: EAP-IG edges against circuitkit 0.2.0, largest difference"
        n = ours.graph.n_edges
        yield row(figure, gap, at_most(1e-4), "of the largest", "circuitkit", n)
        own = clock.times(partial(score_edges, model, pairs, method=method))
        peers = clock.times(partial(other.run, 5))
        yield _times(f"{name}: time over circuitkit's", own, peers, 0.5, "circuitkit")
