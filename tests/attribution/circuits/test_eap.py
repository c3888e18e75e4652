"""Scores against real interventions, known sums, invariances; the model left alone."""

import numpy as np
import pytest
import torch

from attribution.circuits.ablation import ablated_values, run_ablated
from attribution.circuits.eap import EapMethod, score_edges
from attribution.circuits.forward_backward import run_backward, run_forward, writer_outputs
from attribution.circuits.metrics import MetricName, make_metric
from attribution.circuits.qk_attribution import apply_qk_fix
from attribution.circuits.structure import Readout
from capture.network.hooks import count_hooks, patch
from evidence.errors import InputError
from tests.helpers.model_families import tiny
from tests.helpers.wired_transformers import SHAPES, batch_of, random_pairs, shaped, subject_of

EAP = EapMethod("eap")


def job(model, metric: MetricName = "logit_difference"):
    pairs = random_pairs()
    subject, batch = subject_of(model), batch_of(pairs, metric)
    clean = run_forward(subject, batch.clean, batch.metric_mask)
    corrupt = run_forward(subject, batch.corrupt, batch.metric_mask)
    return pairs, subject, batch, clean, corrupt


@pytest.mark.parametrize("shape", SHAPES)
def test_a_score_is_the_slope_of_cutting_that_edge_alone(shape):
    model = shaped(shape)
    pairs, subject, batch, clean, corrupt = job(model)
    metric = make_metric("logit_difference", batch, clean.logits)
    scores = score_edges(model, pairs, method=EAP).values
    before, after = (writer_outputs(subject, each.by_site) for each in (clean, corrupt))
    # Llama's norm computes in single precision whatever it is given.
    single = shape in ("llama", "qwen3", "headless")
    step, close = (1e-2, 2e-3) if single else (1e-4, 1e-5)
    # Every fourth edge reaches every reader from some writer.
    tried = range(0, subject.graph.n_edges, 1 if shape == "headless" else 4)
    real, scores = np.zeros_like(scores[:, tried]), scores[:, tried]
    for place, edge in enumerate(tried):
        cut = subject.graph.mask([edge])
        up, down = (
            metric(run_ablated(subject, batch, cut, before + sign * (after - before)).logits)
            for sign in (step, -step)
        )
        real[:, place] = ((up - down) / (2 * step)).numpy()
    assert np.abs(real).max() > 1e-2
    assert np.abs(scores - real).max() < close * np.abs(real).max()


@pytest.mark.parametrize("shape", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("metric", ["logit_difference", "answer_logprob"])
def test_edges_that_leave_a_node_add_up_to_the_nodes_own_score(shape, metric):
    model = shaped(shape)
    pairs, subject, batch, clean, corrupt = job(model, metric)
    scores = score_edges(model, pairs, method=EAP, metric=metric)
    function = make_metric(metric, batch, clean.logits)
    places = list(clean.by_site)
    kept = {}

    def tap(name):
        def keep(value):
            value = value.detach().requires_grad_() if name == "embed" else value
            kept[name] = value.view_as(value)
            return kept[name]

        return keep

    with patch(model, {p: tap(p) for p in places}, known_sites=subject.structure.sites):
        output = model(**batch.clean.model_inputs, use_cache=False)
    total = function(output.logits[batch.metric_mask]).sum()
    slopes = torch.autograd.grad(total, [kept[place] for place in places])
    own = []
    for place, slope in zip(places, slopes, strict=True):
        each = slope * (corrupt.by_site[place] - clean.by_site[place])
        each = each * batch.token_mask[..., None]
        heads = subject.structure.n_heads if place.startswith("z.") else 1
        own.append(each.unflatten(-1, (heads, -1)).sum((1, 3)))
    own = torch.cat(own, 1).numpy()
    assert np.abs(scores.node_scores() - own).max() < 1e-5 * np.abs(own).max()


@pytest.mark.parametrize("shape", ["llama", "neox"])
def test_integrated_over_inputs_the_embedding_gets_the_whole_difference(shape):
    model = shaped(shape)
    pairs = random_pairs()
    scores = score_edges(model, pairs, method=EapMethod("inputs", 80))
    whole = scores.corrupt - scores.clean
    assert np.abs(whole).max() > 0.1
    assert np.abs(scores.node_scores()[:, 0] - whole).max() < 5e-3 * np.abs(whole).max()


def test_integrated_over_activations_the_last_writer_gets_its_real_effect():
    model = shaped("llama")
    pairs, subject, batch, clean, _ = job(model)
    metric = make_metric("logit_difference", batch, clean.logits)
    edge = subject.graph.edge_index("mlp.2->logits")
    values = ablated_values(subject, batch, "corrupt", None)
    cut = run_ablated(subject, batch, subject.graph.mask([edge]), values)
    real = (metric(cut.logits) - metric(clean.logits)).numpy()
    score = score_edges(model, pairs, method=EapMethod("activations", 20))
    assert np.abs(score.values[:, edge] - real).max() < 1e-3 * np.abs(real).max()
    plain = score_edges(model, pairs, method=EAP).values[:, edge]
    assert np.abs(plain - real).max() > 1e-2 * np.abs(real).max()


def test_one_step_at_its_right_end_is_plain_attribution():
    model, pairs = shaped("gpt2"), random_pairs()
    one = score_edges(model, pairs, method=EapMethod("inputs", 1, "right")).values
    assert np.allclose(one, score_edges(model, pairs, method=EAP).values, atol=1e-6)
    assert EapMethod(steps=4).path_fractions == [0.125, 0.375, 0.625, 0.875]
    assert EapMethod(steps=4, rule="right").path_fractions == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("shape", ["llama", "gpt2", "neox", "bigcode"])
def test_the_query_and_key_fix_follows_attention_as_it_really_moves(shape):
    model = shaped(shape)
    pairs, subject, batch, clean, corrupt = job(model)
    metric = make_metric("logit_difference", batch, clean.logits)
    fixed = score_edges(model, pairs, method=EapMethod("eap", qk_fix=True)).values
    plain = score_edges(model, pairs, method=EAP).values
    heads = tuple(f"z.{layer}" for layer in range(3))
    slopes = run_backward(subject, batch.clean, batch.metric_mask, metric, {}, heads).by_site
    values = writer_outputs(subject, corrupt.by_site)
    graph, moved = subject.graph, 0
    for edge in range(0, graph.n_edges, 7):
        kind, layer, *_ = [*graph.readers[graph.edge_readers[edge]].split("."), ""]
        if kind not in "qk":
            assert fixed[0, edge] == plain[0, edge]
            continue
        cut = run_ablated(subject, batch, graph.mask([edge]), values).by_site[f"z.{layer}"]
        slope = slopes[f"z.{layer}"]
        assert slope is not None
        shift = (cut - clean.by_site[f"z.{layer}"]) * slope
        expected = (shift * batch.token_mask[..., None]).sum((1, 2)).numpy()
        assert np.allclose(fixed[:, edge], expected, rtol=1e-4, atol=1e-6)
        moved += not np.allclose(fixed[:, edge], plain[:, edge], rtol=1e-2)
    assert moved > 3


def test_a_dropped_gradient_changes_nothing_after_the_last_block():
    model, pairs = shaped("llama"), random_pairs()
    plain = score_edges(model, pairs, method=EAP)
    dropped = score_edges(model, pairs, method=EapMethod("eap", grad_drop=True))
    assert (dropped.values >= 0).all()
    graph = plain.graph
    late = graph.mask([e for e in graph.edges if e.endswith(("->mlp.2", "->logits"))])
    early = graph.mask([e for e in graph.edges if e.endswith("->mlp.0")])
    assert np.allclose(dropped.values[:, late], np.abs(plain.values[:, late]))
    assert not np.allclose(dropped.values[:, early], np.abs(plain.values[:, early]))


def test_scores_do_not_depend_on_company_order_or_memory():
    model = tiny("neox")
    pairs = random_pairs((5, 9, 6, 17, 5))
    together = score_edges(model, pairs).values
    scale = np.abs(together).max()
    for row in range(len(pairs)):
        alone = score_edges(model, pairs[[row]]).values[0]
        assert np.abs(alone - together[row]).max() < 1e-5 * scale
    order = [3, 0, 4, 2, 1]
    moved = score_edges(model, pairs[order]).values
    assert np.abs(moved - together[order]).max() < 1e-5 * scale
    cramped = score_edges(model, pairs, max_bytes=400_000).values
    assert np.abs(cramped - together).max() < 1e-5 * scale


@pytest.mark.parametrize("method", [EAP, EapMethod(), EapMethod("activations", 2)])
def test_the_model_is_left_as_it_was_found(method):
    model = tiny("llama").train()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    scores = score_edges(model, random_pairs(), method=method)
    assert count_hooks(model) == 0
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad == wanted[name]
        assert torch.equal(parameter, before[name])
    with pytest.raises(ValueError, match="read-only"):
        scores.values[0] = 0


def test_no_hook_stays_when_a_run_fails():
    model = tiny("llama")
    structure = subject_of(model).structure
    broken = Readout(structure.readout.norm, torch.nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        score_edges(model, random_pairs(), readout=broken)
    assert count_hooks(model) == 0


def test_a_transplanted_readout_is_the_other_models():
    one, other = tiny("llama"), tiny("llama", seed=1)
    readout = subject_of(other).structure.readout
    pairs = random_pairs()
    scores = score_edges(one, pairs, readout=readout)
    row = torch.tensor([pairs.clean.ids[0][:-2]])
    with torch.no_grad():
        got = one.model(input_ids=row, output_hidden_states=True).hidden_states
        # The last entry is normed already; the one before it leaves block 1.
        stream = one.model.layers[2](
            got[2], position_embeddings=one.model.rotary_emb(got[2], torch.arange(3)[None])
        )
        logits = other.lm_head(other.model.norm(stream))[0, -1]
    right = logits[pairs.clean.ids[0][-2]] - logits[pairs.foils[0]]
    assert abs(scores.clean[0] - float(right)) < 1e-4


def test_metrics_are_what_their_names_say():
    model, pairs = tiny("gpt2"), random_pairs((6,))
    ids, start = pairs.clean.ids[0], pairs.clean.answer_start[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        other = model(input_ids=torch.tensor([pairs.corrupt.ids[0]])).logits[0]
    clean, corrupt = logits.log_softmax(-1), other.log_softmax(-1)
    first, second = start - 1, start
    answer = float(clean[first, ids[start]] + clean[second, ids[start + 1]])
    scored = score_edges(model, pairs, metric="answer_logprob")
    assert abs(scored.clean[0] - answer) < 1e-4
    scored = score_edges(model, pairs, metric="kl")
    apart = (clean[first].exp() * (clean[first] - corrupt[first])).sum()
    assert abs(scored.clean[0]) < 1e-6
    assert abs(scored.corrupt[0] + float(apart)) < 1e-4
    assert np.abs(scored.values).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "accuracy"}, "metric is not known"),
        ({"metric": "kl", "method": EAP}, "no gradient in the clean run"),
        ({"max_bytes": 1000}, "more memory than allowed"),
    ],
)
def test_bad_requests_are_refused_in_words(options, message):
    with pytest.raises(InputError, match=message):
        score_edges(tiny("llama"), random_pairs(), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EapMethod("exact"), "not known"),  # pyright: ignore[reportArgumentType]
        (lambda: EapMethod(rule="left"), "not known"),  # pyright: ignore[reportArgumentType]
        (lambda: EapMethod(steps=0), "need steps"),
        (lambda: EapMethod("activations", qk_fix=True), "one path for all"),
    ],
)
def test_methods_that_make_no_sense_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_model_whose_logits_are_not_numbers_is_refused():
    model = tiny("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    structure = subject_of(tiny("llama")).structure
    with pytest.raises(InputError, match="logits that are not finite"):
        score_edges(model, random_pairs())
    readout = Readout(model.model.norm, structure.readout.head)
    with pytest.raises(InputError, match="not finite"):
        score_edges(tiny("llama"), random_pairs(), readout=readout)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_half_precision_gives_about_the_same_scores(family):
    pairs = random_pairs()
    full = score_edges(tiny(family), pairs, method=EAP).mean
    half = score_edges(tiny(family).bfloat16(), pairs, method=EAP).mean
    assert np.corrcoef(full, half)[0, 1] > 0.98


def test_the_fix_needs_heads():
    subject = subject_of(shaped("headless"))
    batch = batch_of(random_pairs())
    nothing = torch.zeros(0)
    with pytest.raises(InputError, match="heads that can be told apart"):
        apply_qk_fix(subject, batch.clean, nothing, {}, nothing)
