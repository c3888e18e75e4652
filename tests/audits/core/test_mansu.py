"""MANSU where its parts meet: four properties on a small world."""

import copy

import numpy as np
import pytest

from attribution.circuits.circuit import circuit_weights, select_circuit
from attribution.circuits.divergence import retained_mass
from attribution.circuits.eap import score_edges
from attribution.circuits.prompt_pairs import pair_items
from capture.checkpoints.open import open_checkpoint
from capture.data.items import read_items
from capture.scoring.answers import score_answers
from erasure.weights.mansu import MansuConfig, mansu_
from erasure.weights.quantization import quantize_
from testbeds.worlds.biographies import all_prompts


@pytest.fixture(scope="module")
def edited(world):
    checkpoint = open_checkpoint(world.original)
    items = read_items(world.forget)
    model = checkpoint.load()
    pairs = pair_items(checkpoint.tokenizer, items, np.random.default_rng(0))
    scores = score_edges(model, pairs)
    circuit = select_circuit(model, pairs, scores)
    forget = all_prompts(checkpoint.tokenizer, items)
    retain = all_prompts(checkpoint.tokenizer, read_items(world.retain))
    log = mansu_(
        model,
        forget,
        retain,
        circuit_weights(model, circuit.edge_mask),
        MansuConfig(
            # Half a per cent of so small a model is a few hundred weights.
            share=0.03,
            steps=60,
            step=0.2,
            directions=8,
            stop_below=0.1,
        ),
        evaluate=lambda now: {"forget": float(score_answers(now, forget).greedy.mean())},
        seed=0,
    )
    return model, log, pairs, scores, circuit, forget, retain


def exact_match(model, rows):
    return float(score_answers(model, rows).greedy.mean())


def test_it_forgets_and_keeps_by_few_weights(edited):
    model, log, *_, forget, retain = edited
    assert log.stopped == "criterion"
    assert exact_match(model, forget) <= 0.1
    assert exact_match(model, retain) >= 0.8
    assert log.n_moved <= log.n_selected == round(0.03 * log.n_parameters)


def test_four_bits_bring_nothing_back(edited):
    model, log, *_, forget, _ = edited
    coarse = copy.deepcopy(model)
    quantize_(coarse)
    assert exact_match(coarse, forget) <= exact_match(model, forget) + 0.05
    assert log.same_codes < 0.15


def test_the_circuit_no_longer_carries_the_answers(edited):
    model, _, pairs, scores, circuit, *_ = edited
    after = score_edges(model, pairs).by_entity()
    assert retained_mass(after, scores.mean, circuit.edge_mask).mean() < 0.5
    own = retained_mass(scores.by_entity(), scores.mean, circuit.edge_mask).mean()
    assert own == pytest.approx(1)
