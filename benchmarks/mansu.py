"""MANSU's four properties on one world; a part of ``benchmarks.circuits``."""

import argparse
from functools import partial

import numpy as np
from torch import nn

from attribution.circuit import Circuit, select_circuit
from attribution.circuit_weights import circuit_weights
from attribution.divergence import kept_mass
from attribution.eap import score_edges
from attribution.pairs import pairs_of_items
from benchmarks.timing import Rows
from capture.items import ItemSet, read_items
from capture.models import open_checkpoint
from capture.scoring import score_answers
from erasure.mansu import MansuConfig, MansuLog, unlearn_in_circuit_
from erasure.quantise import quantise_
from testbeds.bios import STANDARD, BiosWorld, all_prompts, build_bios
from testbeds.zoo import sized

# Settled on tuning seed 0.
CONFIG = MansuConfig(
    steps=150,
    step=0.2,
    directions=8,
    retain_weight=0.5,
    stop_below=0.05,
    every=10,
)


def unlearned(
    world: BiosWorld, config: MansuConfig, seed: int
) -> tuple[nn.Module, MansuLog, Circuit]:
    """The original without the forget set's answers, edited inside their circuit."""
    checkpoint = open_checkpoint(world.original)
    forget = read_items(world.forget)
    model, tokenizer = checkpoint.load(), checkpoint.tokenizer
    pairs = pairs_of_items(tokenizer, forget, np.random.default_rng(seed))
    circuit = select_circuit(model, pairs, score_edges(model, pairs))
    rows = all_prompts(tokenizer, forget)

    def evaluate(now: nn.Module) -> dict[str, float]:
        return {"forget": float(score_answers(now, rows).greedy.mean())}

    log = unlearn_in_circuit_(
        model,
        rows,
        all_prompts(tokenizer, read_items(world.retain)),
        circuit_weights(model, circuit.chosen),
        config,
        evaluate=evaluate,
        seed=seed,
    )
    return model, log, circuit


def mansu(rows: Rows, asked: argparse.Namespace) -> None:
    """Forgetting, keeping, four bits, and the circuit, on the first seed."""
    seed, family = asked.seeds[0], asked.families[0]
    world = build_bios(sized(STANDARD, family), seed, asked.root / "worlds")
    model, log, circuit = unlearned(world, CONFIG, seed)
    checkpoint = open_checkpoint(world.original)

    def said(now: nn.Module, items: ItemSet) -> float:
        asked_for = all_prompts(checkpoint.tokenizer, items)
        return float(score_answers(now, asked_for).greedy.mean())

    forget, retain = read_items(world.forget), read_items(world.retain)
    pairs = pairs_of_items(checkpoint.tokenizer, forget, np.random.default_rng(seed))
    before = score_edges(checkpoint.load(), pairs).mean
    after = score_edges(model, pairs).by_entity()
    full, kept = said(model, forget), said(model, retain)
    quantise_(model)
    add = partial(rows.add, spread=0, n=1)
    name, original = f"bios {family} {seed}", "the original, which says all"
    add(f"{name}: answers to forget said", full, 0.1, "<=", "share", original)
    add(f"{name}: answers to keep said", kept, 0.9, ">=", "share", original)
    add(
        f"{name}: said in four bits less before",
        said(model, forget) - full,
        0.0,
        "<=",
        "share",
        "NF4, block 64",
    )
    add(
        f"{name}: mass of the circuit lost",
        1 - float(kept_mass(after, before, circuit.chosen).mean()),
        0.5,
        ">=",
        "share",
        "the original's circuit, own readout",
    )
    add(f"{name}: weights moved", log.moved / log.total, 0.005, "<=", "share", "all")
    add(
        f"{name}: moved weights that round to their old code",
        log.same_codes,
        None,
        "<=",
        "share",
        "NF4, block 64",
    )
