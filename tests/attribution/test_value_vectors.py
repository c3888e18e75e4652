"""Value vectors and knowledge neurons: planted ones are found and followed."""

import numpy as np
import pandas as pd
import pytest
import torch

from attribution.patching.steering import add_vector, score_edited
from attribution.value_vectors.find import find_knowledge_neurons, find_value_vectors
from attribution.value_vectors.survival import (
    confirm_traces,
    noisy_value_vectors,
    random_traces,
    trace_survival,
)
from capture.data.sequences import Sequences, pad
from capture.network.hooks import count_hooks, patch
from capture.network.sites import Sites, find_sites, neuron_projection, with_neurons
from capture.network.structure import value_vectors
from capture.scoring.answers import score_answers
from evidence.errors import InputError
from tests.helpers.model_families import LAYERS, VOCABULARY, Cnn, rows, tiny

FAMILIES = ("llama", "gpt2", "neox")


def unembedding(sites: Sites) -> torch.Tensor:
    """Weight of the output layer, (token, width)."""
    assert sites.head is not None
    return sites.head.get_parameter("weight")


def planted(family, layer=1, neurons=(3, 7), tokens=(11, 20)):
    """A random model in which two value vectors are the rows of two tokens."""
    model = tiny(family)
    sites = find_sites(model)
    with torch.no_grad():
        table = unembedding(sites)
        values = value_vectors(neuron_projection(sites, layer))
        for neuron, token in zip(neurons, tokens, strict=True):
            values[neuron] = 3 * (table[token] - table.mean(0))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_vector_is_what_a_neuron_adds_to_the_stream(family):
    model = tiny(family)
    sites = with_neurons(find_sites(model))
    batch = pad(rows())

    def states(extra):
        edits = {"neurons.2": lambda v: v + extra}
        got = []
        with patch(model, edits, known_sites=sites), torch.no_grad():
            handle = sites.resolve("mlp.2").module.register_forward_hook(
                lambda m, a, out: got.append(out.clone())
            )
            model(**batch.model_inputs)
            handle.remove()
        return got[0]

    width = value_vectors(neuron_projection(sites, 2)).shape[0]
    one = torch.zeros(width)
    one[5] = 2.0
    added = states(one) - states(torch.zeros(width))
    wanted = 2 * value_vectors(neuron_projection(sites, 2))[5].detach()
    torch.testing.assert_close(added, wanted.expand_as(added), atol=1e-4, rtol=1e-3)
    assert count_hooks(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_value_vectors_are_found_with_the_score_of_a_plain_projection(family):
    model = planted(family)
    found = find_value_vectors(model, {"a": [11], "b": [20], "both": [11, 20]}, k=2)
    assert found.layers[:2, 0].tolist() == [1, 1]
    assert found.neurons[:2, 0].tolist() == [3, 7]
    assert set(found.neurons[2].tolist()) == {3, 7}
    table = unembedding(find_sites(model)).detach().double()
    vector = value_vectors(neuron_projection(find_sites(model), 1))[3].detach().double()
    logits = table @ vector
    wanted = (logits[11] - logits.mean()) / logits.std(correction=0)
    np.testing.assert_allclose(found.scores[0, 0], float(wanted), rtol=1e-9)
    assert list(found.to_frame()["rank"]) == [0, 1] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_is_activation_times_the_true_gradient(family):
    """Against finite differences of the answer's log-probability."""
    model = tiny(family).double()
    sites = with_neurons(find_sites(model))
    data = Sequences(((5, 9, 4, 8),), (3,))
    batch = pad(data)
    width = value_vectors(neuron_projection(sites, 0)).shape[0]
    found = find_knowledge_neurons(model, data, ["x"], k=width * LAYERS)
    scores = {
        (layer, neuron): score
        for layer, neuron, score in zip(
            found.layers[0], found.neurons[0], found.scores[0], strict=True
        )
    }
    assert len(scores) == width * LAYERS

    def logprob(layer, neuron, factor):
        # Scaling an activation by 1 + e moves the output by e times activation x
        # gradient, summed over positions.
        def scale(value):
            out = value.clone()
            out[:, :3, neuron] *= factor
            return out

        with patch(model, {f"neurons.{layer}": scale}, known_sites=sites), torch.no_grad():
            logits = model(**batch.model_inputs).logits[0, 2]
        return float(logits.log_softmax(0)[8])

    for layer, neuron in [(0, 1), (1, 4), (2, 7)]:
        up, down = (logprob(layer, neuron, 1 + e) for e in (1e-2, -1e-2))
        # Norms compute in float32 whatever the model's type, hence the tolerance.
        assert scores[layer, neuron] == pytest.approx((up - down) / 2e-2, rel=5e-3)
    assert count_hooks(model) == 0


def test_a_baseline_of_the_same_rows_leaves_nothing():
    model, data = tiny("llama"), rows()
    names = [f"c{row % 2}" for row in range(len(data))]
    found = find_knowledge_neurons(model, data, names, baseline=data, baseline_concepts=names, k=3)
    np.testing.assert_allclose(found.scores, 0, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_leaves_the_weights_as_they_were_also_after_an_error(family):
    model = tiny(family)
    sites, before = find_sites(model), {}
    for name, tensor in model.state_dict().items():
        before[name] = tensor.clone()
    with (
        pytest.raises(RuntimeError, match="stop"),
        noisy_value_vectors(model, [1, 1, 1], [3, 3, 5], 2.0, torch.Generator(), sites),
    ):
        values = value_vectors(neuron_projection(sites, 1))
        assert not torch.equal(values, before_values(before, sites, model))
        raise RuntimeError("stop")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def before_values(before, sites, model):
    owner = neuron_projection(sites, 1)
    name = next(n for n, m in model.named_modules() if m is owner)
    weight = before[f"{name}.weight"]
    return weight if type(owner).__name__ == "Conv1D" else weight.T


def two_answers():
    """The same prompts with two answers, of which one neuron writes the first."""
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randint(3, VOCABULARY, (12, 5), generator=generator).tolist()
    ids = tuple((*prompt, token) for token in (11, 30) for prompt in prompts)
    return Sequences(ids, (5,) * 24), ["a"] * 12 + ["b"] * 12


def test_noise_on_what_carries_an_answer_breaks_that_answer_alone():
    model = tiny("gpt2")
    sites = find_sites(model)
    owner = neuron_projection(sites, 2)
    with torch.no_grad():
        values, table = value_vectors(owner), unembedding(sites)
        values[3] = 40 * (table[11] - table.mean(0)) / table[11].norm()
        # The neuron is on for every prompt, and all it does is write token 11.
        first = "transformer.h.2.mlp.c_fc"
        model.get_parameter(f"{first}.weight")[:, 3] = 0.0
        model.get_parameter(f"{first}.bias")[3] = 1.0
    data, names = two_answers()
    found = find_value_vectors(model, {"a": [11]}, k=1)
    assert found.neurons.tolist() == [[3]]
    checked = confirm_traces(model, found, data, names, seed=1)
    assert checked.confirmed.all()
    assert checked.own_fall[0] > 1 > checked.random_fall[0]
    other = random_traces(found, model, seed=2)
    assert other.neurons.tolist() != [[3]]
    refused = confirm_traces(model, other, data, names, seed=1)
    assert not refused.confirmed.any()
    assert isinstance(checked.to_frame(), pd.DataFrame)


@pytest.mark.parametrize("family", FAMILIES)
def test_survival_of_untouched_turned_and_replaced_vectors(family):
    model, edited = planted(family), planted(family)
    found = find_value_vectors(model, {"a": [11], "b": [20]}, k=1)
    same = trace_survival(model, edited, found)
    np.testing.assert_allclose(same.cosine, 1.0)
    assert (same.distance == 0).all() and (same.jaccard == 1).all()
    assert (same.kept_tokens == 1).all() and same.top == VOCABULARY // 4
    with torch.no_grad():
        values = value_vectors(neuron_projection(find_sites(edited), 1))
        values[3] *= -1
        # A changed head must not matter: the original's is used for both.
        if family != "llama":
            unembedding(find_sites(edited)).mul_(-1)
    after = trace_survival(model, edited, found)
    assert after.cosine[0, 0] == pytest.approx(-1, abs=1e-6)
    assert after.distance[0, 0] == pytest.approx(2, abs=1e-6)
    assert after.jaccard[0, 0] == 0 and after.kept_tokens[0, 0] == 0
    assert after.cosine[1, 0] == pytest.approx(1) and after.jaccard[1, 0] == 1
    assert after.layer_mean_cosine[1] < 1 and after.layer_mean_cosine[0] == pytest.approx(1)
    assert set(after.to_frame().columns) >= {"cosine", "jaccard", "typical_cosine"}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_under_an_edit_are_those_of_single_rows(family):
    model, data = tiny(family), rows()
    vector = torch.randn(24, generator=torch.Generator().manual_seed(1)) * 3
    found = score_edited(model, data, {"resid.1": add_vector(vector)}, watch=[4, 7])
    plain = score_answers(model, data, watch=[4, 7])
    for row in range(len(data)):
        one = data[[row]]
        with patch(model, {"resid.1": lambda v: v + vector}, [data.answer_start[row] - 1]):
            alone = score_answers(model, one, watch=[4, 7])
        np.testing.assert_allclose(found.logprob[row], alone.logprob[0], atol=1e-4)
        np.testing.assert_allclose(found.watched[row], alone.watched[0], atol=1e-4)
    assert np.abs(found.logprob - plain.logprob).max() > 0.1
    # Each row gets what is meant for it, however batches are cut.
    table = torch.randn(len(data), 24, generator=torch.Generator().manual_seed(2))

    def own(states, numbers):
        return states + table[numbers]

    for budget in (20, 4096):
        each = score_edited(model, data, {"resid.1": own}, batch_tokens=budget)
        for row in range(len(data)):
            alone = score_edited(model, data[[row]], {"resid.1": add_vector(table[row])})
            np.testing.assert_allclose(each.logprob[row], alone.logprob[0], atol=1e-4)
    same = score_edited(model, data, {"resid.1": lambda states, rows: states})
    np.testing.assert_allclose(same.logprob, plain.logprob, atol=1e-5)
    assert count_hooks(model) == 0


def test_bad_input_gives_one_clear_error():
    model, data = tiny("llama"), rows()
    with pytest.raises(InputError, match="every concept needs tokens"):
        find_value_vectors(model, {})
    with pytest.raises(InputError, match="token that the model lacks"):
        find_value_vectors(model, {"a": [VOCABULARY]})
    with pytest.raises(InputError, match="k is not a number of neurons"):
        find_value_vectors(model, {"a": [1]}, k=10**6)
    with pytest.raises(InputError, match="every row needs a concept"):
        find_knowledge_neurons(model, data, ["a"])
    with pytest.raises(InputError, match="has no baseline row"):
        find_knowledge_neurons(model, data, ["a"] * 9, baseline=data, baseline_concepts=["b"] * 9)
    found = find_value_vectors(model, {"a": [1]}, k=1)
    with pytest.raises(InputError, match="has no rows, or all of them"):
        confirm_traces(model, found, data, ["a"] * 9)
    with pytest.raises(InputError, match="differ in shape"):
        trace_survival(model, tiny("gpt2"), found)
    with pytest.raises(InputError, match="has no site 'mlp"):
        find_value_vectors(Cnn(), {"a": [1]})
