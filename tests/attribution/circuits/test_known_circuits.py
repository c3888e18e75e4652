"""The circuit of a trained two-layer model that repeats what it has seen is known."""

import numpy as np
import pytest

from attribution.circuits.circuit import ablated_metric, measure_circuit, select_circuit
from attribution.circuits.eap import EapMethod, score_edges
from tests.attribution.circuits.induction_model import (
    heads,
    induction_edges,
    induction_pairs,
    trained_model,
)


@pytest.fixture(scope="module")
def model():
    return trained_model()


@pytest.fixture(scope="module")
def pairs():
    return induction_pairs()


def test_the_induction_circuit_is_found(model, pairs):
    scores = score_edges(model, pairs, method=EapMethod())
    assert scores.clean.mean() > 2 and scores.corrupt.mean() < -2
    true = induction_edges(*heads(model))
    graph = scores.graph
    top = {graph.edges[number] for number in scores.top(graph.n_edges // 8)}
    assert set(true) <= top
    # Heads of one layer reach the next by its keys, not by queries or values: the
    # tokens that changed places are the same ones, and the last is the same.
    mass = {"q": 0.0, "k": 0.0, "v": 0.0}
    for edge, score in zip(graph.edges, scores.mean, strict=True):
        if edge.startswith("head.0.") and edge.split("->")[1][0] in mass:
            mass[edge.split("->")[1][0]] += abs(score)
    assert mass["k"] > 4 * (mass["q"] + mass["v"])


def test_its_circuit_carries_it_and_as_many_other_edges_do_not(model, pairs):
    scores = score_edges(model, pairs)
    circuit = select_circuit(model, pairs, scores)
    size = int(circuit.edge_mask.sum())
    assert circuit.measured.faithfulness >= 0.85
    assert circuit.measured.completeness > 0.8
    assert size < scores.graph.n_edges / 2
    rng = np.random.default_rng(0)
    for _ in range(3):
        other = np.zeros_like(circuit.edge_mask)
        other[rng.choice(scores.graph.n_edges, size, replace=False)] = True
        assert measure_circuit(model, pairs, other).faithfulness < 0.3


def test_scores_predict_what_cutting_an_edge_does(model, pairs):
    scores = score_edges(model, pairs)
    graph = scores.graph
    cuts = [graph.mask([edge]) for edge in range(graph.n_edges)]
    real = ablated_metric(model, pairs, cuts).mean(1) - scores.clean.mean()
    agreement = np.corrcoef(scores.mean, real)[0, 1]
    plain = score_edges(model, pairs, method=EapMethod("eap")).mean
    assert agreement > 0.95
    assert agreement > np.corrcoef(plain, real)[0, 1]
