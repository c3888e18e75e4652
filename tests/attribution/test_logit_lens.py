"""Logit lens and direct logit attribution against hand computation and the model's own logits."""

from typing import Any

import numpy as np
import pytest
import torch

from attribution.logit_attribution import logit_attribution
from attribution.logit_lens import logit_lens
from capture.data.sequences import Sequences, pad
from capture.network.hooks import count_hooks, record
from capture.network.sites import find_sites
from evidence.errors import InputError
from tests.helpers.model_families import HEADS, LAYERS, WIDTH, rows, tiny


def own_logits(model, data):
    """Logits of the model where each prompt ends."""
    batch = pad(data)
    with torch.no_grad():
        logits = model(**batch.model_inputs).logits
    last = torch.tensor(data.answer_start) - 1
    return logits[torch.arange(len(last)), last].double().numpy()


def firsts(data):
    return np.array([ids[start] for ids, start in zip(data.ids, data.answer_start, strict=True)])


FAMILIES = ["llama", "gpt2", "neox", "gemma2", "cohere", "granite", "opt", "phi", "bloom", "olmo2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_says_what_the_model_says(family):
    model, data = tiny(family), rows()
    lens = logit_lens(model, data, keep_logits=True)
    assert lens.sites == ("embed", *find_sites(model).of("resid")) and lens.logits is not None
    wanted = own_logits(model, data)
    np.testing.assert_allclose(lens.logits[-1], wanted, atol=1e-4)
    tokens = firsts(data)
    at = np.arange(len(tokens))
    chance = torch.from_numpy(wanted).softmax(1).numpy()
    np.testing.assert_allclose(lens.probability[-1], chance[at, tokens], rtol=1e-3)
    ranks = (lens.logits[-1] > lens.logits[-1][at, tokens][:, None]).sum(1)
    assert (lens.tokens == tokens).all() and (lens.rank[-1] == ranks).all()
    assert (lens.top_tokens[-1][:, 0] == lens.logits[-1].argmax(1)).all()
    assert count_hooks(model) == 0


def test_each_layer_goes_through_norm_and_head():
    model, data = tiny("llama"), rows()
    lens = logit_lens(model, data, ["resid.0", "attn.1"], positions=[0, -2], keep_logits=True)
    assert lens.logits is not None
    for row, ids in enumerate(data.ids):
        with torch.no_grad(), record(model, ["resid.0", "attn.1"]) as got:
            model(torch.tensor([ids]))
            for number, site in enumerate(lens.sites):
                state = got[site][0, [0, -2]]
                wanted = model.lm_head(model.model.norm(state))
                np.testing.assert_allclose(lens.logits[number, row], wanted, atol=1e-4)
        assert lens.tokens[row].tolist() == [ids[1], ids[-1]]
    assert lens.probability.shape == lens.rank.shape == (2, len(data), 2)


def test_tokens_can_be_given_and_can_be_missing():
    model, data = tiny("gpt2"), rows()
    lens = logit_lens(model, data, ["resid.2"], tokens=7, top=2, keep_logits=True)
    assert lens.logits is not None
    np.testing.assert_allclose(lens.logit[0], lens.logits[0][:, 7])
    assert lens.top_tokens.shape == (1, len(data), 2)
    last = logit_lens(model, data, positions="last")
    assert (last.tokens == -1).all() and (last.rank == -1).all()
    assert (
        np.isnan(last.probability).all()
        and np.isnan(last.to_frame()["median_rank"].to_numpy()).all()
    )
    for wrong, reason in (
        (99, "not in the vocabulary"),
        ([1, 2], "do not fit"),
        (0.5, "token ids"),
    ):
        with pytest.raises(InputError, match=reason):
            logit_lens(model, data, tokens=wrong)
    with pytest.raises(InputError, match="is no state of the model"):
        logit_lens(model, data, positions="mean")
    with pytest.raises(InputError, match="another width"):
        logit_lens(model, data, ["head.0.1"])


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "cohere", "granite", "opt", "phi"])
def test_contributions_add_up_to_the_logit(family, heads):
    model, data = tiny(family), rows()
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases of trained models are not 1 and 0
                parameter.add_(0.3 * torch.randn_like(parameter))
    tokens, others = firsts(data), np.full(len(data), 5)
    logits, at = own_logits(model, data), np.arange(len(data))
    single = logit_attribution(model, data, heads=heads)
    both = logit_attribution(model, data, against=5, heads=heads)
    np.testing.assert_allclose(single.values.sum(1), logits[at, tokens], atol=2e-4)
    wanted = logits[at, tokens] - logits[at, others]
    np.testing.assert_allclose(both.values.sum(1), wanted, atol=2e-4)
    assert np.abs(single.error).max() < 2e-4
    parts = LAYERS * (HEADS if heads else 1) + LAYERS + 2
    assert len(single.components) == parts == len(single.to_frame())
    assert count_hooks(model) == 0


def test_a_contribution_is_what_its_part_moves_in_the_frozen_norm():
    model, data = tiny("gpt2"), rows()
    norm: Any = model.get_submodule("transformer.ln_f")
    with torch.no_grad():
        norm.weight.add_(torch.rand(WIDTH))
        norm.bias.add_(torch.rand(WIDTH))
    found = logit_attribution(model, data, tokens=9)
    row = 2
    with torch.no_grad(), record(model, ["mlp.1", "resid.2"]) as got:
        model(torch.tensor([data.ids[row]]))
    last = data.answer_start[row] - 1
    state, part = got["resid.2"][0, last].double(), got["mlp.1"][0, last].double()
    direction = model.get_parameter("lm_head.weight")[9].double()
    spread = (state.var(unbiased=False) + norm.eps).sqrt()
    wanted = ((part - part.mean()) / spread * norm.weight.double()) @ direction
    at = found.components.index("mlp.1")
    assert found.values[row, at] == pytest.approx(float(wanted.detach()), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_half_precision_adds_up_to_its_own_rounding(family):
    model, data = tiny(family).bfloat16(), rows()
    lens = logit_lens(model, data, keep_logits=True)
    assert lens.logits is not None
    wanted = own_logits(model, data)
    np.testing.assert_allclose(lens.logits[-1], wanted, atol=5e-2)
    found = logit_attribution(model, data, heads=True)
    assert np.abs(found.error).max() < 3e-2 * max(1, np.abs(wanted).max())


def test_logits_that_are_no_sums_are_refused():
    data = rows()
    model = tiny("gemma2")
    with pytest.raises(InputError, match="caps its logits"):
        logit_attribution(model, data)
    normed = tiny("olmo2")
    assert np.abs(logit_attribution(normed, data).error).max() < 1e-4
    with pytest.raises(InputError, match="not separate terms"):
        logit_attribution(normed, data, heads=True)
    post = tiny("openai-gpt")
    with pytest.raises(InputError, match="is no sum of contributions"):
        logit_attribution(post, data)
    with pytest.raises(InputError, match="one position"):
        logit_attribution(tiny("gpt2"), data, position="answer")
    with pytest.raises(InputError, match="no token after the position"):
        logit_attribution(tiny("gpt2"), Sequences(((5, 6),), (2,)))
