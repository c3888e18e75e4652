"""Counts, names and paths of the graph; what is refused, and what falls back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from attribution.circuits.graph import EdgeGraph, build_graph
from attribution.circuits.qkv_projections import weight_matrix
from attribution.circuits.structure import find_structure
from capture.network.hooks import count_hooks
from evidence.errors import InputError
from tests.helpers.model_families import tiny
from tests.helpers.wired_transformers import SHARED, headless, shaped


def graph_of(model):
    return build_graph(find_structure(model))


def counted(layers, heads, groups, parallel):
    """Edges by adding them up in words: what each reader has before it."""
    total, writers = 0, 1
    for _ in range(layers):
        total += writers * (heads + 2 * groups)
        total += writers + (0 if parallel else heads)
        writers += heads + 1
    return writers, total + writers


@pytest.mark.parametrize(
    ("shape", "groups", "parallel"),
    [
        ("llama", 2, False),
        ("gpt2", 4, False),
        ("neox", 4, True),
        ("neox_in_turn", 4, False),
        ("bigcode", 1, False),
        ("qwen3", 2, False),
    ],
)
def test_writers_and_edges_are_those_of_the_shape(shape, groups, parallel):
    model = shaped(shape)
    graph = graph_of(model)
    writers, edges = counted(3, 4, groups, parallel)
    assert (len(graph.writers), graph.n_edges) == (writers, edges)
    assert len(graph.edges) == len(set(graph.edges)) == edges
    assert graph.note == ""
    assert count_hooks(model) == 0


def test_smollm2_has_its_edges_on_groups_of_keys_and_values():
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=18,
        intermediate_size=4,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    torch.manual_seed(0)
    graph = graph_of(LlamaForCausalLM(config).eval())
    assert (len(graph.writers), graph.n_edges) == (301, 70_651)


def test_edges_are_found_by_name_and_by_number():
    graph = graph_of(tiny("llama"))
    for number in range(graph.n_edges):
        assert graph.edge_index(graph.edges[number]) == number
    assert "head.0.3->k.1.1" in graph.edges
    # The feed-forward part of a block reads its heads, its queries do not.
    assert "head.1.0->mlp.1" in graph.edges
    with pytest.raises(InputError, match=r"no edge 'head\.1\.0->q\.1\.1'"):
        graph.edge_index("head.1.0->q.1.1")


def test_side_by_side_a_feed_forward_part_does_not_read_its_own_heads():
    graph = graph_of(tiny("neox"))
    assert "head.1.0->mlp.1" not in graph.edges
    assert "head.0.0->mlp.1" in graph.edges


def test_edges_without_a_path_to_the_logits_are_left_out():
    graph = graph_of(tiny("llama"))
    # Key group 1 serves heads 2 and 3.
    path = ["embed->k.0.1", "head.0.3->mlp.2", "mlp.2->logits"]
    dead = ["embed->q.0.0", "head.0.0->q.1.1", "embed->mlp.1"]
    kept = graph.connected_to_logits(graph.mask(path + dead))
    assert kept.sum() == 3
    assert {graph.edges[n] for n in np.flatnonzero(kept)} == set(path)


GRAPH = EdgeGraph(
    ("embed", "attn.0", "mlp.0"), ("attn.0", "mlp.0", "logits"), (1, 2, 3), ((1,), (2,), ())
)


@settings(max_examples=64, deadline=None)
@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_paths_are_a_part_of_what_was_chosen_and_stay(chosen):
    mask = np.array(chosen)
    kept = GRAPH.connected_to_logits(mask)
    assert not (kept & ~mask).any()
    assert (GRAPH.connected_to_logits(kept) == kept).all()
    # By hand: into the logits all, into the part only if the part leads there.
    to_mlp = mask[1:3] if mask[5] else np.zeros(2, bool)
    alive = mask[4] or (to_mlp[1])
    assert kept.tolist() == [bool(mask[0] and alive), *to_mlp, *mask[3:]]


def test_heads_that_cannot_be_told_apart_fall_back_to_parts_and_say_so():
    graph = graph_of(headless())
    assert graph.writers[:3] == ("embed", "attn.0", "mlp.0")
    assert graph.readers == (
        *(f"{part}.{layer}" for layer in range(3) for part in ("attn", "mlp")),
        "logits",
    )
    assert "no query, key and value maps" in graph.note


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny("bert"), "BertModel cannot be followed"),
        (lambda: tiny("vit"), "does not read tokens"),
        (
            lambda: Gemma2ForCausalLM(
                Gemma2Config(**SHARED, num_key_value_heads=2, head_dim=6)
            ).eval(),
            "not the sum of what its parts write",
        ),
    ],
    ids=["bert", "vit", "gemma2"],
)
def test_other_structures_are_refused_in_words(make, message):
    torch.manual_seed(0)
    model = make()
    with pytest.raises(InputError, match=message):
        find_structure(model)
    assert count_hooks(model) == 0


def test_the_matrix_of_a_map_is_what_it_applies():
    torch.manual_seed(0)
    x = torch.randn(3, 24)
    block = tiny("gpt2").get_submodule("transformer.h.0.attn.c_attn")
    assert isinstance(block, Conv1D)
    assert torch.allclose(x @ weight_matrix(block).T + block.bias, block(x), atol=1e-5)
    plain = torch.nn.Linear(24, 5)

    class Adapted(torch.nn.Module):
        in_features, out_features = 24, 5

        def __init__(self):
            super().__init__()
            self.base, self.low = plain, torch.nn.Linear(24, 5, bias=False)

        def forward(self, value):
            return self.base(value) + 2 * self.low(value)

    adapted = Adapted()
    whole = plain.weight + 2 * adapted.low.weight
    assert torch.allclose(weight_matrix(adapted), whole, atol=1e-5)
