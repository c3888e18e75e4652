"""Cut edges against plain patching, and a circuit known by construction."""

import numpy as np
import pytest
import torch

from attribution.circuits.ablation import ablated_values, check_ablation, mean_values, run_ablated
from attribution.circuits.circuit import ablated_metric, measure_circuit, select_circuit, top_edges
from attribution.circuits.eap import EapMethod, score_edges
from attribution.circuits.forward_backward import run_forward, writer_outputs
from capture.network.hooks import count_hooks, patch
from evidence.errors import InputError
from tests.helpers.model_families import tiny
from tests.helpers.wired_transformers import (
    SHAPES,
    TRUE_EDGES,
    batch_of,
    random_pairs,
    shaped,
    subject_of,
    wired,
    wired_pairs,
)


def prepared(model):
    subject, batch = subject_of(model), batch_of(random_pairs())
    return subject, batch, ablated_values(subject, batch, "corrupt", None)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_edges_cut_is_the_corrupt_run_and_none_the_clean(shape):
    model = shaped(shape)
    subject, batch, values = prepared(model)
    none = np.zeros(subject.graph.n_edges, dtype=bool)
    clean = run_forward(subject, batch.clean, batch.metric_mask).logits
    corrupt = run_forward(subject, batch.corrupt, batch.metric_mask).logits
    assert torch.equal(run_ablated(subject, batch, none, values).logits, clean)
    # Single precision inside Llama's norm.
    cut = run_ablated(subject, batch, ~none, values).logits
    assert (clean - corrupt).abs().max() > 0.1
    assert (cut - corrupt).abs().max() < 1e-5
    assert count_hooks(model) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_cutting_all_edges_of_a_writer_is_patching_its_output(shape):
    model = shaped(shape)
    subject, batch, values = prepared(model)
    corrupt = run_forward(subject, batch.corrupt, batch.metric_mask).by_site
    graph = subject.graph
    place = "z.1" if subject.structure.n_heads else "attn.1"
    size = corrupt[place].shape[-1] // max(subject.structure.n_heads, 1)

    def last_head(value):
        value = value.clone()
        value[..., -size:] = corrupt[place][..., -size:]
        return value

    for writer, site, new in (
        ("embed", "embed", corrupt["embed"]),
        ("mlp.1", "mlp.1", corrupt["mlp.1"]),
        (graph.writers[graph.writers.index("mlp.1") - 1], place, last_head),
    ):
        cut = graph.edge_writers == graph.writers.index(writer)
        with patch(model, {site: new}, known_sites=subject.structure.sites):
            with torch.no_grad():
                whole = model(**batch.clean.model_inputs, use_cache=False).logits
        got = run_ablated(subject, batch, cut, values).logits
        assert (got - whole[batch.metric_mask]).abs().max() < 1e-5


def test_zero_and_mean_are_what_they_say():
    model = shaped("gpt2")
    subject, batch, _ = prepared(model)
    zero = ablated_values(subject, batch, "zero", None)
    assert zero.abs().sum() == 0
    cut = subject.graph.edge_writers == subject.graph.writers.index("mlp.2")
    with patch(model, {"mlp.2": torch.zeros(24)}):
        whole = model(**batch.clean.model_inputs, use_cache=False).logits
    got = run_ablated(subject, batch, cut, zero).logits
    assert (got - whole[batch.metric_mask]).abs().max() < 1e-6
    mean = mean_values(subject, [batch])
    rows = []
    for half in (batch.clean, batch.corrupt):
        values = writer_outputs(subject, run_forward(subject, half, batch.metric_mask).by_site)
        for row, mask in zip(values, half.attention_mask, strict=True):
            rows.append(row[:, mask.bool()])
    assert torch.allclose(mean, torch.cat(rows, 1).mean(1))
    assert torch.equal(ablated_values(subject, batch, "mean", mean)[1, :, 2], mean)


def test_the_wired_circuit_is_found_without_its_decoys():
    model, pairs = wired(), wired_pairs()
    for method in (EapMethod("eap"), EapMethod(), EapMethod("activations")):
        scores = score_edges(model, pairs, method=method)
        assert scores.clean.min() > 1 and scores.corrupt.max() < -1
        top = [scores.graph.edges[number] for number in scores.top(3)]
        assert set(top) == set(TRUE_EDGES)
        mean = np.abs(scores.mean)
        rest = ~scores.graph.mask(list(TRUE_EDGES))
        assert mean[rest].max() < 0.05 * mean[~rest].min()
    decoys = [e for e in scores.graph.edges if "head.0.3" in e or "mlp.0" in e]
    assert len(decoys) > 10
    # The decoy is as busy as the truth: it adds as much to the stream.
    subject, batch = subject_of(model), batch_of(pairs)
    added = [
        writer_outputs(subject, run_forward(subject, rows, batch.metric_mask).by_site)
        for rows in (batch.clean, batch.corrupt)
    ]
    busy = (added[0] - added[1]).norm(dim=-1).sum((0, 2))
    writers = subject.graph.writers
    assert busy[writers.index("head.0.3")] > 0.99 * busy[writers.index("head.0.1")]


@pytest.mark.parametrize("ablation", ["corrupt", "mean", "zero"])
def test_the_wired_circuit_carries_everything_and_is_complete(ablation):
    model, pairs = wired(), wired_pairs()
    graph = subject_of(model).graph
    # What attention looks at comes from positions, which only zeros and means take.
    looks = [e for e in graph.edges if e in ("embed->q.0.1", "embed->k.0.1")]
    looks += ["embed->q.1.2", "embed->k.1.2"]
    true = graph.mask([*TRUE_EDGES, *(looks if ablation != "corrupt" else [])])
    found = measure_circuit(model, pairs, true, ablation=ablation)
    assert found.completeness > 0.95
    # Without the decoys the last norm divides by less: the answer is only clearer.
    assert found.faithfulness > 0.9
    decoy = graph.mask([e for e in graph.edges if "head.0.3" in e or "mlp.0" in e])
    found = measure_circuit(model, pairs, decoy, ablation=ablation)
    assert abs(found.faithfulness) < 0.05


def test_selection_returns_the_smallest_circuit_that_reaches_the_target():
    model, pairs = wired(), wired_pairs()
    scores = score_edges(model, pairs)
    circuit = select_circuit(model, pairs, scores, target=0.85)
    assert set(circuit.edges) == set(TRUE_EDGES)
    assert circuit.measured.faithfulness >= 0.85
    assert "faithfulness 1.0" in repr(circuit) or "faithfulness 0.9" in repr(circuit)
    assert top_edges(scores, scores.graph.n_edges).sum() <= scores.graph.n_edges
    with pytest.raises(ValueError, match="read-only"):
        circuit.edge_mask[0] = True


def test_a_target_is_reached_on_a_model_with_no_circuit_to_speak_of():
    model, pairs = tiny("llama"), random_pairs()
    scores = score_edges(model, pairs)
    if scores.clean.mean() < scores.corrupt.mean():
        pairs = type(pairs)(pairs.corrupt, pairs.clean, pairs.foils, pairs.entities, pairs.ids)
        scores = score_edges(model, pairs)
    circuit = select_circuit(model, pairs, scores, target=0.9)
    assert circuit.measured.faithfulness >= 0.9
    assert count_hooks(model) == 0


def test_cuts_are_measured_pair_by_pair():
    model, pairs = tiny("neox"), random_pairs()
    scores = score_edges(model, pairs)
    none = np.zeros(scores.graph.n_edges, dtype=bool)
    full, empty = ablated_metric(model, pairs, [none, ~none])
    assert np.allclose(full, scores.clean, atol=1e-5)
    assert np.allclose(empty, scores.corrupt, atol=1e-5)


def test_a_circuit_can_be_measured_again_as_it_is():
    model, pairs = tiny("llama"), random_pairs()
    circuit = select_circuit(model, pairs, score_edges(model, pairs), target=0.5)
    assert not circuit.edge_mask.flags.writeable
    assert measure_circuit(model, pairs, circuit.edge_mask) == circuit.measured


def test_bad_requests_are_refused_in_words():
    model, pairs = tiny("llama"), random_pairs()
    scores = score_edges(model, pairs)
    with pytest.raises(InputError, match="ablation is not known"):
        check_ablation("noise")
    with pytest.raises(InputError, match="share of the metric"):
        select_circuit(model, pairs, scores, target=1.5)
    with pytest.raises(InputError, match="another graph"):
        select_circuit(tiny("gpt2"), pairs, scores)
    subject, batch, values = prepared(model)
    with pytest.raises(InputError, match="edge mask does not fit"):
        run_ablated(subject, batch, np.zeros(3, dtype=bool), values)
    none = np.zeros(scores.graph.n_edges, dtype=bool)
    same = type(pairs)(pairs.clean, pairs.clean, pairs.foils, pairs.entities, pairs.ids)
    with pytest.raises(InputError, match="does not fall"):
        measure_circuit(model, same, none)
