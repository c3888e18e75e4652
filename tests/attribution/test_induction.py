"""A trained two-layer model that repeats what it has seen: its circuit is known.

A head of the first layer tells each position which token stands before it, and heads
of the second look for the position whose predecessor is the current token (Olsson et
al., arXiv 2209.11895). Which heads these are is read off attention patterns, which
know nothing of scores.
"""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from attribution.circuit import cut_metric, measure_circuit, select_circuit
from attribution.eap import Method, score_edges
from attribution.pairs import PromptPairs
from evidence.sequences import Sequences

TOKENS, LENGTH = 24, 24


def repeated(rows, generator):
    """(row, position) tokens that repeat with a period of 6 to 12, and the periods."""
    period = torch.randint(6, 13, (rows, 1), generator=generator)
    base = torch.rand(rows, TOKENS, generator=generator).argsort(1)[:, :12]
    return base.gather(1, torch.arange(LENGTH)[None] % period), period


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=4,
        max_position_embeddings=LENGTH,
        rope_theta=100.0,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    made = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(
        made.parameters(), lr=4e-3, weight_decay=0.01, betas=(0.9, 0.98)
    )
    for _ in range(600):
        ids, period = repeated(64, generator)
        logits = made(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
        missed = -logits.gather(2, ids[:, 1:, None])[..., 0]
        seen = torch.arange(1, LENGTH)[None] > period
        loss = (missed * seen).sum() / seen.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            break
    assert loss < 0.1
    return made.eval()


@pytest.fixture(scope="module")
def pairs():
    """Ten tokens, then one of them: its successor is next.

    In the corrupt prompt it has changed places with another, so that its successor
    is another; only the order tells them apart.
    """
    generator = torch.Generator().manual_seed(1)
    clean, corrupt, foils = [], [], []
    for row in range(24):
        base = torch.randperm(TOKENS, generator=generator)[:10].tolist()
        here, there = row % 4, 5 + row % 3
        other = list(base)
        other[here], other[there] = base[there], base[here]
        end = [base[here], base[here + 1]]
        clean.append((*base, *end))
        corrupt.append((*other, *end))
        foils.append(base[there + 1])
    names = tuple(str(row) for row in range(24))
    starts = (11,) * 24
    return PromptPairs(
        Sequences(tuple(clean), starts),
        Sequences(tuple(corrupt), starts),
        tuple(foils),
        names,
        names,
    )


def heads(model):
    """Head of layer 0 that looks one back; head of layer 1 that looks at successors."""
    ids, period = repeated(100, torch.Generator().manual_seed(2))
    with torch.no_grad():
        first, second = model(input_ids=ids, output_attentions=True).attentions
    late, rows = range(14, LENGTH), torch.arange(100)
    back = torch.stack([first[:, :, t, t - 1] for t in late]).mean((0, 1))
    found = torch.stack([second[rows, :, t, t - period[:, 0] + 1] for t in late])
    return int(back.argmax()), int(found.mean((0, 1)).argmax())


def test_the_induction_circuit_is_found(model, pairs):
    scores = score_edges(model, pairs, method=Method())
    assert scores.clean.mean() > 2 and scores.corrupt.mean() < -2
    back, look = heads(model)
    true = (
        f"embed->v.0.{back}",
        f"head.0.{back}->k.1.{look}",
        f"head.1.{look}->logits",
    )
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
    size = int(circuit.chosen.sum())
    assert circuit.measured.faithfulness >= 0.85
    assert circuit.measured.completeness > 0.8
    assert size < scores.graph.n_edges / 2
    rng = np.random.default_rng(0)
    for _ in range(3):
        other = np.zeros_like(circuit.chosen)
        other[rng.choice(scores.graph.n_edges, size, replace=False)] = True
        assert measure_circuit(model, pairs, other).faithfulness < 0.3


def test_scores_predict_what_cutting_an_edge_does(model, pairs):
    scores = score_edges(model, pairs)
    graph = scores.graph
    cuts = [graph.mask([edge]) for edge in range(graph.n_edges)]
    real = cut_metric(model, pairs, cuts).mean(1) - scores.clean.mean()
    agreement = np.corrcoef(scores.mean, real)[0, 1]
    plain = score_edges(model, pairs, method=Method("eap")).mean
    assert agreement > 0.95
    assert agreement > np.corrcoef(plain, real)[0, 1]
