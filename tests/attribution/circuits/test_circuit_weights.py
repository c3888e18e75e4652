"""Weights of edges: without them the ends are silent, and nothing else is theirs."""

import pytest
import torch

from attribution.circuits.circuit import circuit_weights
from attribution.circuits.forward_backward import run_forward
from attribution.circuits.graph import build_graph
from attribution.circuits.structure import find_structure, head_outputs
from evidence.errors import InputError
from tests.helpers.model_families import tiny
from tests.helpers.wired_transformers import batch_of, headless, random_pairs, subject_of


def without(model, edges):
    """The model with the edges' weights at 0, and their masks."""
    graph = build_graph(find_structure(model))
    masks = circuit_weights(model, graph.mask(edges))
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name)[mask] = 0
    return masks


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_a_head_and_a_part_without_their_weights_write_nothing(family):
    model = tiny(family)
    masks = without(model, ["head.1.2->logits"])
    (name,) = masks
    assert ".1." in name
    assert masks[name].float().mean() == pytest.approx(1 / find_structure(model).n_heads)
    subject, batch = subject_of(model), batch_of(random_pairs())
    z = run_forward(subject, batch.clean, batch.metric_mask).by_site["z.1"]
    heads = head_outputs(subject.structure, 1, z)
    assert heads[2].abs().max() == 0
    assert heads[1].abs().max() > 0
    masks = without(model, ["mlp.0->logits"])
    assert len(masks) >= 2
    assert all(mask.all() for mask in masks.values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("kind", ["q", "k", "v"])
def test_a_reader_without_its_weights_reads_nothing(family, kind):
    model = tiny(family)
    structure = find_structure(model)
    masks = without(model, [f"embed->{kind}.1.0"])
    (mask,) = masks.values()
    qkv = structure.blocks[1].qkv
    assert qkv is not None
    rows = qkv.columns[kind][0]
    assert mask.sum() == len(rows) * structure.d_model
    linear = qkv.linears[kind]
    with torch.no_grad():
        out = linear(torch.randn(3, structure.d_model))
        base = linear(torch.zeros(1, structure.d_model))
    silent = (out - base).abs().amax(0) < 1e-6
    assert silent[rows].all()
    assert silent.sum() == len(rows)


def test_ends_of_no_part_have_no_weights():
    model = tiny("llama")
    graph = build_graph(find_structure(model))
    assert circuit_weights(model, graph.mask(["embed->logits"])) == {}


def test_bad_requests_are_refused():
    model = tiny("llama")
    graph = build_graph(find_structure(model))
    with pytest.raises(InputError, match="another graph"):
        circuit_weights(model, graph.mask([])[:-1])
    with pytest.raises(InputError, match="separate heads"):
        circuit_weights(headless(), graph.mask([]))
