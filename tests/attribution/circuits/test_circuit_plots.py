"""Pictures show the circuit's edges, and the scores' tables agree with them."""

import re

import numpy as np
import pytest

from attribution.circuit_plots import SUPPORTING_COLOR, draw_circuit, to_dot
from attribution.circuits.circuit import Circuit, Faithfulness, select_circuit
from attribution.circuits.eap import score_edges
from evidence.errors import InputError
from tests.helpers.model_families import tiny
from tests.helpers.wired_transformers import TRUE_EDGES, random_pairs, wired, wired_pairs


@pytest.fixture(scope="module")
def found():
    scores = score_edges(wired(), wired_pairs())
    return select_circuit(wired(), wired_pairs(), scores), scores


def test_a_picture_has_a_line_an_edge_and_a_point_a_node(found):
    circuit, scores = found
    figure = draw_circuit(circuit, scores)
    *lines, points = figure.to_dict()["data"]
    assert len(lines) == len(TRUE_EDGES)
    assert {line["text"].split(":")[0] for line in lines} == set(TRUE_EDGES)
    assert {line["line"]["color"] for line in lines} == {SUPPORTING_COLOR}
    assert set(points["text"]) == {"embed", "head.0.1", "head.1.2", "logits"}
    heights = dict(zip(points["text"], points["y"], strict=True))
    order = ["embed", "head.0.1", "head.1.2", "logits"]
    assert sorted(heights, key=heights.__getitem__) == order
    assert "3 of" in figure.layout.title.text


def test_graphviz_text_has_the_same_edges(found):
    text = to_dot(*found)
    assert text.startswith("digraph") and text.count("{") == text.count("}") == 1
    links = re.findall(r'"(\S+)" -> "(\S+)" \[.*label="(\w*)"', text)
    assert set(links) == {
        ("embed", "head.0.1", "value"),
        ("head.0.1", "head.1.2", "value"),
        ("head.1.2", "logits", ""),
    }


def test_an_input_shared_by_heads_leads_to_each_of_them():
    scores = score_edges(tiny("llama"), random_pairs())
    chosen = scores.graph.mask(["embed->k.0.1"])
    circuit = Circuit(scores.graph, chosen, Faithfulness(1, 0, 1, 0), "corrupt", 0.5)
    text = to_dot(circuit, scores)
    assert '"embed" -> "head.0.2"' in text and '"embed" -> "head.0.3"' in text


def test_bad_requests_are_refused_in_words(found):
    circuit, scores = found
    other = score_edges(tiny("llama"), random_pairs())
    with pytest.raises(InputError, match="different graphs"):
        draw_circuit(circuit, other)
    nothing = np.zeros_like(circuit.edge_mask)
    empty = Circuit(circuit.graph, nothing, circuit.measured, "corrupt", 0.85)
    with pytest.raises(InputError, match="cannot be drawn"):
        to_dot(empty, scores)


def test_tables_rank_edges_and_count_each_entity_once(found):
    _, scores = found
    frame = scores.to_frame()
    assert set(frame["edge"][:3]) == set(TRUE_EDGES)
    assert len(frame) == scores.graph.n_edges
    pairs = random_pairs((6, 6, 6))
    twice = type(pairs)(pairs.clean, pairs.corrupt, pairs.foils, ("a", "a", "b"), pairs.ids)
    table = score_edges(tiny("llama"), twice)
    rows = table.values.astype(float)
    expected = np.stack([rows[:2].mean(0), rows[2]])
    assert np.allclose(table.by_entity(), expected)
    assert np.allclose(table.mean, expected.mean(0))
    assert "3 pairs" in repr(table)
